"""Runs all checks for a question, in the order in which a user repairs things, and finds the next command."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pplex.doctor import bundle, checkpoint, engines, kernels, machine, packages, serving
from pplex.doctor.driver import Driver, ask_driver
from pplex.doctor.findings import OK, PROBLEM, WARNING, Check, Finding, Question, gigabytes, guarded
from pplex.doctor.probe import Probe, probe
from pplex.runtime.gpus import TENSORRT, TENSORRT_RTX, parse_gpu

_SIZES = """
import json
from pplex.doctor.sizes import model_sizes
found = model_sizes(**json.loads(arguments[0]))
"""
_SLOTS = """
import json
from pplex.doctor.sizes import slots_by_precision
found = slots_by_precision(**json.loads(arguments[0]))
"""
_CHOICE = """
import json
from pplex.doctor.sizes import auto_choice
found = auto_choice(**json.loads(arguments[0]))
"""
RUNNING = {"run", "serve"}


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the checks that stop each command."""

    question: Question
    findings: tuple[Finding, ...]
    gpu_precision: str | None  # the best precision that fits the GPU's memory

    @property
    def stopped(self) -> dict[str, list[str]]:
        """The checks that stop each command; an empty list if it can work."""
        return {
            aim: list(dict.fromkeys(finding.check for finding in self.findings if aim in finding.stops))
            for aim in self.question.aims
        }

    @property
    def passed(self) -> bool:
        """False if the named command cannot work; always True without a named command."""
        return self.question.aim is None or not self.stopped[self.question.aim]

    @property
    def next(self) -> str:
        """What to do next: repair what stops the command, or run it."""
        aim = self.question.aim or self._possible_aim
        first = next((finding for finding in self.findings if aim in finding.stops), None)
        if first is not None:
            return first.advice or first.fact
        source = self.question.source
        if aim == "serve" and source:
            port = f" --port {self.question.port}" if self.question.port != Question().port else ""
            return f"pplex-export serve {source} --slots {self.question.slots}{port}"
        if aim == "run" and source:
            return f"pplex-export run {source} --input-wav user.wav --output-wav agent.wav --output-text agent.json"
        return self._build

    @property
    def _possible_aim(self) -> str:
        """The command to suggest: the first that can work, beginning with those for this kind of source."""
        order = ("serve", "run", "build") if self.question.bundle is not None else ("build",)
        return next((aim for aim in order if not self.stopped[aim]), order[0])

    @property
    def _build(self) -> str:
        question = self.question
        gpu = question.gpu or ("local" if self.gpu_precision else None)
        precision = f" --precision {question.precision}" if question.precision else ""
        source = question.checkpoint or machine.RELEASED
        return f"pplex-export build {source}{precision}{f' --gpu {gpu}' if gpu else ''} --out {question.out}"


def diagnose(question: Question) -> Diagnosis:
    """Run all checks for the question. Raises nothing: a broken part becomes a finding."""
    examination = Examination(question)
    found = tuple(
        _judged(finding, question) for name, check in examination.checks() for finding in guarded(name, check)
    )
    return Diagnosis(question, found, examination.gpu_precision)


def _judged(finding: Finding, question: Question) -> Finding:
    """The finding as a problem, if it stops the named command; else unchanged."""
    return replace(finding, level=PROBLEM) if question.aim in finding.stops else finding


class Examination:
    """The checks. Facts that several checks need are queried only once."""

    def __init__(self, question: Question):
        self._question = question

    def checks(self) -> Iterator[tuple[str, Check]]:
        """The checks for this question, with their names."""
        question, aims = self._question, set(self._question.aims)
        yield "python", partial(packages.check_python, question)
        yield "packages", partial(packages.check_packages, question)
        yield "onnxruntime", lambda: engines.check_onnxruntime(question, self._ort, self._needs_onnxruntime)
        yield "gpu", lambda: engines.check_gpu(question, self._driver, self._uses_gpu)
        if self._needs_onnxruntime:
            yield "cuda", lambda: engines.check_cuda(question, self._ort, self._driver)
        if "build" in aims or not self._needs_onnxruntime:
            yield "tensorrt", lambda: engines.check_tensorrt(question, self._driver, self._libraries)
        if self._needs_onnxruntime and question.device != "cuda":
            yield "kernels", lambda: kernels.check_kernels(question, kernels.ask_kernels())
        yield "processors", partial(machine.check_processors, question)
        yield "memory", lambda: machine.check_memory(question, self._sizes, self._bundle)
        yield "gpu memory", self._check_gpu_memory
        if "build" in aims and question.bundle is None and question.precision is None:
            yield "precision", self._check_choice
        yield "disk", lambda: machine.check_disk(question, self._sizes, self._bundle, self._cache)
        if "build" in aims and question.bundle is None:
            yield "checkpoint", partial(checkpoint.check_checkpoint, question)
            yield "hub", partial(checkpoint.check_hub, question)
        if aims & RUNNING:
            yield "audio", partial(serving.check_audio, question)
            yield "bundle", lambda: bundle.check_bundle(question, self._asked_bundle)
            yield "engines", self._check_engines
        if "serve" in aims:
            yield "port", partial(serving.check_port, question)
            yield "certificate", partial(serving.check_certificate, question)
        yield "browser", partial(serving.check_browser, question)

    @cached_property
    def gpu_precision(self) -> str | None:
        """The best precision whose weights and one conversation fit the GPU; None if none fits."""
        slots = self._slots.value if self._slots and not self._slots.error else {}
        return next((name for name in slots if name != "fp32" and slots[name]), None)

    def _check_engines(self) -> Iterator[Finding]:
        if self._bundle is not None:
            yield from bundle.check_engines_run(self._question, self._bundle, self._driver, self._ort, self._libraries)

    def _check_gpu_memory(self) -> Iterator[Finding]:
        gpu = engines.local_gpu(self._driver)
        if gpu is None or self._question.device == "cpu" or self._slots is None or self._slots.error:
            return
        slots, size = self._slots.value, gigabytes(gpu.memory_nbytes or 0)
        listed = ", ".join(f"{name} {count}" for name, count in slots.items())
        fact = f"{gpu.title} has {size}. Conversations that fit, by precision: {listed or 'none'}."
        if any(slots.values()):
            yield Finding("gpu memory", OK, fact, details=slots)
        else:
            yield Finding("gpu memory", WARNING, fact, "To see what fits each GPU: pplex-export plan", details=slots)

    def _check_choice(self) -> Iterator[Finding]:
        """What a build would choose, as the suggested command has no --precision."""
        named, wanted = self._question.gpu, self._question.gpu or ("local" if self.gpu_precision else None)
        gpu = engines.local_gpu(self._driver) if wanted == "local" else parse_gpu(wanted) if wanted else None
        if wanted and (gpu is None or gpu.memory_nbytes is None):
            advice = "Name a --precision, or give the GPU's memory to build: --memory 16GB"
            yield Finding("precision", WARNING, f"The memory of {named} is not known here.", advice)
            return
        answer = probe(_CHOICE, json.dumps({"source": self._folder, "gpu": gpu and asdict(gpu)}))
        if answer.error:
            return  # the check of packages has the reason
        reason, _, advice = answer.value["reason"].partition("\n")
        if answer.value["precision"]:
            yield Finding("precision", OK, reason, details=answer.value)
        else:
            yield Finding("precision", PROBLEM, reason, advice.strip() or None, ("build",), answer.value)

    @property
    def _needs_onnxruntime(self) -> bool:
        """False only for a named bundle in which all graphs are compiled engines."""
        return self._bundle is None or bool(self._bundle["on_onnxruntime"])

    @property
    def _uses_gpu(self) -> bool:
        """Whether the installed ONNX Runtime or the bundle's engines use the GPU's driver."""
        provider = not self._ort.error and engines.CUDA in self._ort.value["providers"]
        return provider or not self._needs_onnxruntime

    @cached_property
    def _ort(self) -> Probe:
        return engines.ask_onnxruntime()

    @cached_property
    def _driver(self) -> Driver:
        return ask_driver()

    @cached_property
    def _libraries(self) -> dict[str, Probe]:
        return {kind: engines.ask_library(kind) for kind in (TENSORRT_RTX, TENSORRT)}

    @cached_property
    def _asked_bundle(self) -> Probe | None:
        return bundle.ask_bundle(self._question)

    @property
    def _bundle(self) -> Mapping[str, Any] | None:
        """The bundle's state; None if no bundle was named, or it cannot be opened."""
        return None if self._asked_bundle is None or self._asked_bundle.error else self._asked_bundle.value

    @cached_property
    def _cache(self) -> Path | None:
        return checkpoint.hub_cache(self._question)

    @cached_property
    def _sizes(self) -> Mapping[str, Mapping[str, int]]:
        """Sizes of the checkpoint by precision; empty if they cannot be computed, as without numpy."""
        asked = {
            "source": self._folder,
            "precision": self._question.precision,
            "compiled": self._question.gpu is not None,
        }
        answer = probe(_SIZES, json.dumps(asked))
        return {} if answer.error else answer.value

    @cached_property
    def _slots(self) -> Probe | None:
        """Conversations that fit this machine's GPU, by precision."""
        gpu = engines.local_gpu(self._driver)
        if gpu is None:
            return None
        source = self._folder if self._bundle is None else str(self._question.bundle)
        return probe(_SLOTS, json.dumps({"source": source, "gpu": asdict(gpu), "precision": self._question.precision}))

    @property
    def _folder(self) -> str | None:
        """The checkpoint's folder; None for a repository, which is assumed to have the released model's sizes."""
        source = self._question.checkpoint
        return source if source and Path(source).is_dir() else None
