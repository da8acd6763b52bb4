"""Runs a bundle on all samples of Full-Duplex-Bench, or on any folder of recordings. Called by `cli.fdb_run`.

    DATA/TASK/ID/input.wav -> OUT/TASK/ID/output.wav, agent_text.json, and copies of the sample's facts for the score

A run that was stopped goes on: complete answers are kept.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pplex.fdb.layout import Task
from pplex.fdb.questions import RATE_HZ, Question, questions
from pplex.fdb.record import Record, check_own, digest_of, is_complete, open_record
from pplex.measure.tables import aligned
from pplex.runtime.batch import Answer, Recording, recorded
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import AudioError, ConfigError
from pplex.runtime.files import is_file, make_folder, remove_parts, write_files
from pplex.runtime.locks import take_lock
from pplex.runtime.offline import FrameBar, OfflineReport, OfflineSettings, answer_all, no_bar
from pplex.runtime.personas import CONVERSATION, TEACHER

SEED = 42424242  # of the examples in the reference's README
PERSONAS = {  # by task, as in the reference's README; any other task gets the assistant
    Task.PAUSE: CONVERSATION,
    Task.BACKCHANNEL: CONVERSATION,
    Task.TURN_TAKING: CONVERSATION,
    Task.INTERRUPTION: TEACHER,
    Task.UNKNOWN: TEACHER,
}
_LOCK = ".fdb_run.lock"


@dataclass(frozen=True)
class RunSettings:
    """The agent of each task. agent: its voice and sampling, and the slots; persona and seed are those of the task."""

    agent: OfflineSettings
    personas: Mapping[Task, str] = field(default_factory=lambda: dict(PERSONAS))
    seeds: Mapping[Task, int] = field(default_factory=lambda: dict.fromkeys(Task, SEED))

    def of(self, task: Task) -> OfflineSettings:
        return replace(self.agent, persona=self.personas[task], seed=self.seeds[task])

    def facts(self, bundle: Bundle) -> dict[str, Any]:
        """All that an answer depends on besides the recording, by name."""
        voice = self.agent.voice
        if voice is not None and voice not in bundle.voices and is_file(Path(voice)):
            voice = f"a recording, {digest_of(Path(voice))}"
        return {
            "bundle": bundle.manifest["digest"],
            "voice": voice,
            **{f"sampling: {name}": value for name, value in asdict(self.agent.sampling).items()},
            **{f"persona of {task}": text for task, text in self.personas.items()},
            **{f"seed of {task}": seed for task, seed in self.seeds.items()},
        }


@dataclass(frozen=True)
class RunReport:
    """How many recordings of each folder are answered. kept: from an earlier run. failures: reasons, by recording."""

    out: str
    answered: dict[str, int]
    kept: dict[str, int]
    failed: dict[str, int]
    failures: dict[str, str]
    audio_s: float  # of this run's answers
    seconds: dict[str, float]

    @property
    def times_real_time(self) -> float:
        """Seconds of audio for a second of computing, with priming and without loading."""
        spent = self.seconds.get("frames", 0.0) + self.seconds.get("prime", 0.0)
        return self.audio_s / spent if spent else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "times_real_time": self.times_real_time}

    def to_text(self) -> str:
        names = sorted({*self.answered, *self.kept, *self.failed})
        rows = [(n, *(str(count.get(n, 0)) for count in (self.answered, self.kept, self.failed))) for n in names]
        table = aligned([("folder", "answered", "kept", "failed"), *rows], right=(1, 2, 3))
        lines = [
            table,
            f"{self.audio_s:.1f} s of audio, {self.times_real_time:.1f} times real time. Answers: {self.out}",
        ]
        if self.failures:
            lines += [f"{len(self.failures)} without an answer:", *(f"- {why}" for why in self.failures.values())]
        return "\n".join(lines)


def run_benchmark(
    bundle: Path,
    data: Path,
    out: Path,
    settings: RunSettings,
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = no_bar,
) -> RunReport:
    """Answer every recording of a data set in OUT, over `settings.agent.slots` slots, the longest first.

    Each answer is the same to the bit as that of `run_offline` with as many slots. Complete answers in OUT are kept, if they
    come from the same recordings, settings and bundle. A recording that cannot be read is in the report. Raises ConfigError
    for a folder without recordings or answered with other settings, and as `run_offline`.
    """
    asked = questions(data, out)
    facts = settings.facts(open_bundle(bundle, verify=False))
    make_folder(out)
    lock = take_lock(out / _LOCK)
    if lock is None:
        raise ConfigError(f"Another process answers in {out}. Wait for its end, or name another --out.")
    try:
        record = open_record(out, facts, _notes(bundle, data, asked, settings))
        check_own(record, asked)
        plan = _plan(asked, record, settings)
        record.save(out)
        report = plan.run(bundle, settings, threads, device, bar)
        return _report(out, plan, report)
    finally:
        os.close(lock)


def _notes(bundle: Path, data: Path, asked: list[Question], settings: RunSettings) -> dict[str, Any]:
    """What the score and a reader want to know besides. data: the folder that holds TASK/ID, also if DATA is one task's."""
    root = data.resolve()
    if not (root / asked[0].name).parent.is_dir() and (root.parent / asked[0].name).parent.is_dir():
        root = root.parent
    return {"bundle": str(bundle.resolve()), "data": str(root), "slots": settings.agent.slots}


@dataclass
class _Plan:
    """What is to be done: recordings to answer, complete answers, and recordings that cannot be read."""

    asked: dict[str, Question] = field(default_factory=dict)  # by the path of the recording
    recordings: list[Recording] = field(default_factory=list)
    kept: list[Question] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def run(
        self, bundle: Path, settings: RunSettings, threads: int | None, device: str | None, bar: FrameBar
    ) -> OfflineReport:
        if not self.recordings:
            return OfflineReport(0.0, {}, self.failures)
        return answer_all(bundle, self.recordings, settings.agent, self.keep, threads, device, bar, self.failures)

    def keep(self, recording: Recording, answer: Answer) -> None:
        """Write an answer, and the facts of its sample."""
        question = self.asked[recording.name]
        write_files({**question.new_facts(), **question.outputs.contents(answer)})


def _plan(asked: Iterable[Question], record: Record, settings: RunSettings) -> _Plan:
    """Read every recording once, for its length, its digest and its faults. Removes answers to what was there before."""
    plan = _Plan()
    for question in asked:
        name = str(question.recording)
        plan.asked[name] = question
        try:
            recording = recorded(question.recording, settings.of(question.task))
        except AudioError as error:
            plan.failures[name] = str(error)
            continue
        digest = digest_of(question.recording)
        is_same = record.recordings.get(question.name) == digest
        record.recordings[question.name] = digest
        if is_same and is_complete(question, round(recording.samples * RATE_HZ / SAMPLE_RATE_HZ)):
            write_files(question.new_facts())
            plan.kept.append(question)
        else:
            _make_room(question)
            plan.recordings.append(recording)
    return plan


def _make_room(question: Question) -> None:
    """Make the folder of an answer, without files of an earlier one. Raises OutputError if it cannot be written."""
    make_folder(question.folder)
    remove_parts(question.folder)
    for path in question.found:
        path.unlink()
    question.outputs.check()


def _report(out: Path, plan: _Plan, report: OfflineReport) -> RunReport:
    failed = Counter(plan.asked[name].collection for name in report.failures)
    kept = Counter(question.collection for question in plan.kept)
    asked = Counter(plan.asked[one.name].collection for one in plan.recordings)
    unread = Counter(plan.asked[one.name].collection for one in plan.recordings if one.name in report.failures)
    return RunReport(
        str(out), dict(asked - unread), dict(kept), dict(failed), report.failures, report.audio_s, report.seconds
    )
