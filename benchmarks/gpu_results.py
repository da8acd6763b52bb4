"""Steps, their stored results, and which steps must still run: for benchmarks/gpu.py.

A call has a time limit, may be killed at any moment, and may lose its machine with all files. So `results.json` has all
results. It is written atomically before and after every step, and the next call resumes from it.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, FAILED, TIMED_OUT, SKIPPED, CUT_OFF = "ok", "failed", "timed out", "skipped", "cut off"
TRIES = 2  # of a step that the end of a call cut off
USELESS = "no step that needs it can run here"


@dataclass(frozen=True)
class Step:
    """A command, its limits and its dependencies.

    limit_s: the command is killed after this time.
    least_s: a call with less time left does not start it.
    needs: steps that must have succeeded; the command reads their folders.
    unless: steps whose success makes this one unnecessary.
    lacks: the reason why it cannot run here.
    makes: its product, which later steps need. Its parent folder holds only this, and is deleted after the last such step.
    out: the file where the command stores its JSON, and resumes from it.
    json: the command prints JSON instead.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    least_s: float = 30.0
    needs: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    lacks: str | None = None
    makes: Path | None = None
    out: Path | None = None
    json: bool = False


class ResultStore:
    """`results.json` and `log.txt` of a folder: a record of every started or skipped step, and the options of the run."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log_path = folder / "results.json", folder / "log.txt"
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.facts: dict[str, Any] = kept.get("facts", {})
        self.steps: dict[str, dict[str, Any]] = kept.get("steps", {})

    def record(self, name: str, **values: Any) -> None:
        self.steps[name] = values
        self.save()

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"facts": self.facts, "steps": self.steps}, indent=1) + "\n")
        os.replace(part, self.path)

    def outcome(self, name: str) -> str | None:
        return self.steps.get(name, {}).get("outcome")

    def is_settled(self, name: str) -> bool:
        """Whether the step has run and needs no other try."""
        record = self.steps.get(name, {})
        tries = record.get("tries", 0)
        return bool(tries) and (record["outcome"] != CUT_OFF or tries >= TRIES)

    def is_given_up(self, name: str) -> bool:
        """Whether the step was cut off at every try."""
        return self.outcome(name) == CUT_OFF and self.is_settled(name)


class StepPlan:
    """The steps in order; the store decides which of them must still run."""

    def __init__(self, steps: Sequence[Step], store: ResultStore):
        self.steps, self.store = {step.name: step for step in steps}, store

    def blocked(self, step: Step) -> str | None:
        """The reason why the step cannot run, now or later; None if it can."""
        if step.lacks:
            return step.lacks
        for name in step.unless:
            if self.store.outcome(name) == OK:
                return f"{name} succeeded"
        for name in step.needs:
            if self.store.is_settled(name):
                outcome = self.store.outcome(name)
            else:
                outcome = SKIPPED if self.blocked(self.steps[name]) else OK  # it may still succeed
            if outcome != OK:
                return f"needs {name}, which {'was ' if outcome in (SKIPPED, CUT_OFF) else ''}{outcome}"
        return None

    def is_wanted(self, step: Step) -> bool:
        """Whether the step must run, or must run again because its product is needed and missing."""
        if self.blocked(step) or self.is_useless(step):
            return False
        gone = step.makes is not None and not step.makes.exists()
        return not self.store.is_settled(step.name) or (gone and any(map(self.is_wanted, self.users(step))))

    def is_useless(self, step: Step) -> bool:
        """Whether the step makes something that no step can use here, now."""
        users = self.users(step) if step.makes else []
        return bool(users) and all(self.blocked(user) or self.is_useless(user) for user in users)

    def why_not(self, step: Step) -> str | None:
        return self.blocked(step) or (USELESS if self.is_useless(step) else None)

    def users(self, step: Step) -> list[Step]:
        return [other for other in self.steps.values() if step.name in other.needs]

    def with_needs(self, names: Sequence[str]) -> set[str]:
        """These steps and all steps that they need, by name."""
        found = set(names)
        for name in names:
            found |= self.with_needs(self.steps[name].needs)
        return found

    def free(self) -> None:
        """Delete the products that no remaining step needs."""
        for step in self.steps.values():
            if step.makes and not self.is_wanted(step) and not any(map(self.is_wanted, self.users(step))):
                shutil.rmtree(step.makes.parent, ignore_errors=True)
