"""Runs a bundle on all samples of Full-Duplex-Bench, or on any folder of recordings. Called by `cli.fdb_run`.

    DATA/TASK/ID/input.wav -> OUT/TASK/ID/output.wav, agent_text.json, and copies of the sample's facts for the score

A run that was stopped goes on: complete answers are kept.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pplex.fdb.layout import Task
from pplex.fdb.questions import RATE_HZ, Question, questions
from pplex.fdb.record import VOICE_FILE, Record, check_own, digest_of, is_complete, open_record, recorded_voice
from pplex.measure.tables import aligned
from pplex.runtime.batch import Answer, Recording, recorded
from pplex.runtime.bundle import Bundle, open_bundle
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import AudioError, ConfigError, SampleError
from pplex.runtime.files import is_file, make_folder, remove_parts, write_files
from pplex.runtime.locks import take_lock
from pplex.runtime.offline import FrameBar, OfflineReport, OfflineSettings, answer_all, no_bar
from pplex.runtime.personas import CONVERSATION, TEACHER

SEED = 42424242  # of the examples in the reference's README
# By task, as in the reference's README; any other task gets the assistant. None: each sample has its own persona.
PERSONAS: Mapping[Task, str | None] = {
    Task.PAUSE: CONVERSATION,
    Task.BACKCHANNEL: CONVERSATION,
    Task.TURN_TAKING: CONVERSATION,
    Task.INTERRUPTION: TEACHER,
    Task.UNKNOWN: TEACHER,
    Task.SERVICE: None,
}
OF_SAMPLE = "that of each sample"
_LOCK = ".fdb_run.lock"


@dataclass(frozen=True)
class RunSettings:
    """The agent of each task. agent: its voice and sampling, and the slots; persona and seed are those of the task."""

    agent: OfflineSettings
    personas: Mapping[Task, str | None] = field(default_factory=lambda: dict(PERSONAS))
    seeds: Mapping[Task, int] = field(default_factory=lambda: dict.fromkeys(PERSONAS, SEED))

    def of(self, question: Question) -> OfflineSettings:
        """The agent of a question. Raises SampleError if its own persona cannot be read."""
        persona = self.personas[question.task]
        own = question.persona() if persona is None else persona
        return replace(self.agent, persona=own, seed=self.seeds[question.task])

    def input_of(self, question: Question, agent: OfflineSettings) -> str:
        """What the answer depends on besides the settings: the recording, and a persona of its own."""
        digest = digest_of(question.recording)
        if self.personas[question.task] is not None:
            return digest
        return f"{digest}, persona {hashlib.sha256(agent.persona.encode()).hexdigest()}"

    def voice_file(self, bundle: Bundle) -> Path | None:
        """The recording of the voice; None if it is a voice of the bundle."""
        voice = self.agent.voice
        return Path(voice) if voice is not None and voice not in bundle.voices and is_file(Path(voice)) else None

    def facts(self, bundle: Bundle) -> dict[str, Any]:
        """All that an answer depends on besides the recording, by name."""
        recording = self.voice_file(bundle)
        return {
            "bundle": bundle.manifest["digest"],
            "voice": recorded_voice(recording) if recording else self.agent.voice,
            **{f"sampling: {name}": value for name, value in asdict(self.agent.sampling).items()},
            **{f"persona of {task}": OF_SAMPLE if text is None else text for task, text in self.personas.items()},
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
    opened = open_bundle(bundle, verify=False)
    facts = settings.facts(opened)
    make_folder(out)
    lock = take_lock(out / _LOCK)
    if lock is None:
        raise ConfigError(f"Another process answers in {out}. Wait for its end, or name another --out.")
    try:
        record = open_record(out, facts, _notes(opened, data, asked, settings))
        check_own(record, asked)
        plan = _plan(asked, record, settings)
        record.save(out)
        report = plan.run(bundle, settings, threads, device, bar)
        return _report(out, plan, report)
    finally:
        os.close(lock)


def _notes(bundle: Bundle, data: Path, asked: list[Question], settings: RunSettings) -> dict[str, Any]:
    """What the score and a reader want to know besides. data: the folder that holds TASK/ID, also if DATA is one task's."""
    root = data.resolve()
    if not (root / asked[0].name).parent.is_dir() and (root.parent / asked[0].name).parent.is_dir():
        root = root.parent
    notes = {"bundle": str(bundle.folder.resolve()), "data": str(root), "slots": settings.agent.slots}
    voice = settings.voice_file(bundle)
    return {**notes, VOICE_FILE: str(voice.resolve())} if voice else notes


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
            recording = _recording(question, settings)
        except AudioError as error:
            plan.failures[name] = str(error)
            continue
        except SampleError as error:
            plan.failures[name] = f"{question.name}: {error}"
            continue
        digest = settings.input_of(question, recording.settings)
        is_same = record.recordings.get(question.name) == digest
        record.recordings[question.name] = digest
        if is_same and is_complete(question, round(recording.samples * RATE_HZ / SAMPLE_RATE_HZ)):
            write_files(question.new_facts())
            plan.kept.append(question)
        else:
            _make_room(question)
            plan.recordings.append(recording)
    return plan


def _recording(question: Question, settings: RunSettings) -> Recording:
    """What is to be answered, and by whom. Raises AudioError or SampleError if the recording or a fact cannot be read."""
    question.new_facts()  # for its errors: before hours of work for others
    recording = recorded(question.recording, settings.of(question))
    return replace(recording, has_own_prompt=settings.personas[question.task] is None)


def _make_room(question: Question) -> None:
    """Make the folder of an answer, without files of an earlier one. Raises OutputError if it cannot be written."""
    make_folder(question.folder)
    remove_parts(question.folder)
    for path in question.found:
        path.unlink()
    question.check()


def _report(out: Path, plan: _Plan, report: OfflineReport) -> RunReport:
    failed = Counter(plan.asked[name].collection for name in report.failures)
    kept = Counter(question.collection for question in plan.kept)
    asked = Counter(plan.asked[one.name].collection for one in plan.recordings)
    unread = Counter(plan.asked[one.name].collection for one in plan.recordings if one.name in report.failures)
    return RunReport(
        str(out), dict(asked - unread), dict(kept), dict(failed), report.failures, report.audio_s, report.seconds
    )
