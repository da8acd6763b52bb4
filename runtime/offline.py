"""Offline runs, like the reference's offline script: recordings in, the agent's recordings and texts out.

Called by `cli.talk`, `cli.voices` and by programs.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.runtime.audio import check_audio_target, encode_audio, read_audio
from pplex.runtime.batch import Answer, Answers, OfflineSettings, Recording, load, recorded
from pplex.runtime.bundle import open_bundle
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.errors import AudioError, PromptError
from pplex.runtime.files import check_distinct, check_writable, make_folder, write_files
from pplex.runtime.session import Runtime

FrameBar = Callable[[int], AbstractContextManager[Callable[[int], Any]]]


def no_bar(total: int) -> AbstractContextManager[Callable[[int], Any]]:
    """A bar that shows nothing."""
    return nullcontext(lambda frames: None)


@dataclass(frozen=True)
class OfflineReport:
    """Seconds of each stage of one run, and the length of the audio. failures: why a recording has no answer, by name."""

    audio_s: float
    seconds: dict[str, float]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio, without loading and priming."""
        return self.seconds["frames"] / self.audio_s if self.audio_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "real_time_factor": self.real_time_factor}

    def to_text(self) -> str:
        stages = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        lines = [f"{stages}\n{self.audio_s:.2f} s of audio, real-time factor {self.real_time_factor:.3f}"]
        if self.failures:
            lines += [f"{len(self.failures)} without an answer:", *(f"- {why}" for why in self.failures.values())]
        return "\n".join(lines)


@dataclass(frozen=True)
class Outputs:
    """The files of an answer; "-" is standard output. rate_hz: of the audio."""

    wav: str
    text: str
    rate_hz: int = SAMPLE_RATE_HZ

    def check(self) -> None:
        """Raise OutputError if they cannot be written."""
        check_audio_target(self.wav)
        check_writable(self.text)

    def contents(self, answer: Answer) -> dict[str, bytes]:
        """The bytes of the files: the text first, so that the audio's name says that both are there."""
        text = json.dumps(answer.pieces, ensure_ascii=False) + "\n"
        return {self.text: text.encode(), self.wav: encode_audio(self.wav, answer.pcm, self.rate_hz)}


def run_offline(
    bundle: Path,
    input_wav: str,
    output_wav: str,
    output_text: str,
    settings: OfflineSettings,
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = no_bar,
    rate_hz: int = SAMPLE_RATE_HZ,
) -> OfflineReport:
    """Play a recording to the agent; write its speech, as long as the input, and a JSON list of its text pieces.

    Padding tokens are named PAD, EPAD, BOS and EOS. "-" is standard input or output. Both outputs are written at the end.
    `threads` and `device` as in `Runtime`. rate_hz: of the output. Raises AccessError, AudioError, BundleError, EngineError,
    OutputError, PromptError.
    """
    outputs = Outputs(output_wav, output_text, rate_hz)
    outputs.check()
    check_distinct(input_wav, output_wav, output_text)
    pcm = read_audio(input_wav)
    recording = Recording(input_wav, lambda: pcm, len(pcm), settings)
    keep = partial(_write, {input_wav: outputs})
    return answer_all(bundle, [recording], settings, keep, threads, device, bar)


def run_offline_many(
    bundle: Path,
    outputs: Mapping[str, Outputs],
    settings: OfflineSettings,
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = no_bar,
) -> OfflineReport:
    """Play many recordings to agents in `settings.slots` slots; write each answer when it is complete.

    outputs: by the path of the recording. Their folders are made. An answer is the same to the bit as with one recording
    and as many slots. A recording that cannot be read is in the report. Raises as `run_offline`.
    """
    check_distinct(*outputs, *(name for one in outputs.values() for name in (one.wav, one.text)))
    recordings, failures = list[Recording](), dict[str, str]()
    for path in outputs:
        try:
            recordings.append(recorded(path, settings))
        except AudioError as error:
            failures[path] = str(error)
    for recording in recordings:
        make_folder(Path(outputs[recording.name].wav).parent)
        outputs[recording.name].check()
    if not recordings:
        return OfflineReport(0.0, {"frames": 0.0}, failures)
    return answer_all(bundle, recordings, settings, partial(_write, outputs), threads, device, bar, failures)


def answer_all(
    bundle: Path,
    recordings: Iterable[Recording],
    settings: OfflineSettings,
    keep: Callable[[Recording, Answer], Any],
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = no_bar,
    failures: Mapping[str, str] | None = None,
) -> OfflineReport:
    """Answer recordings over `settings.slots` slots, the longest first; `keep` gets each answer when it is complete.

    failures: of recordings that could not be read before; the report adds those of these recordings. Raises as
    `run_offline`.
    """
    recordings = list(recordings)
    began = time.perf_counter()
    runtime = load(bundle, settings, threads, device)
    loaded = time.perf_counter()
    refused = _refused(runtime, recordings)  # before hours of work for others
    recordings = [one for one in recordings if one.name not in refused]
    samples, failed = 0, {**(failures or {}), **refused}
    with bar(sum(_frames(one.samples, runtime) for one in recordings)) as advance:
        answers = Answers(runtime, recordings, advance)
        for recording, answer in answers:
            if isinstance(answer, AudioError):
                failed[recording.name] = str(answer)
                continue
            keep(recording, answer)
            samples += len(answer.pcm)
    return OfflineReport(samples / SAMPLE_RATE_HZ, {"load": loaded - began, **answers.seconds}, failed)


def _refused(runtime: Runtime, recordings: Iterable[Recording]) -> dict[str, str]:
    """Why recordings have no answer whose own prompts do not fit. Raises PromptError for a prompt that others have, too."""
    prompts, refused = dict[tuple[str | None, str, str | None], list[Recording]](), dict[str, str]()
    for one in recordings:
        prompts.setdefault((one.settings.voice, one.settings.persona, one.settings.greeting), []).append(one)
    for prompt, those in prompts.items():
        try:
            runtime.check_prompt(*prompt)
        except PromptError as error:
            if not all(one.has_own_prompt for one in those):
                raise
            refused |= {one.name: f"{one.name}: {error}" for one in those}
    return refused


def speak(
    bundle: Path,
    settings: OfflineSettings,
    seconds: float,
    threads: int | None = None,
    device: str | None = None,
    bar: FrameBar = no_bar,
) -> Pcm:
    """What the agent says to a silent user, [F * 1920]: at least `seconds`. Arguments and errors as in `run_offline`."""
    frame_size = open_bundle(bundle, verify=False).config.frame_size
    silence, said = np.zeros(math.ceil(seconds * SAMPLE_RATE_HZ / frame_size) * frame_size, np.float32), list[Pcm]()
    recording = Recording("silence", lambda: silence, len(silence), settings)
    answer_all(bundle, [recording], settings, lambda recording, answer: said.append(answer.pcm), threads, device, bar)
    return said[0]


def _write(outputs: Mapping[str, Outputs], recording: Recording, answer: Answer) -> None:
    write_files(outputs[recording.name].contents(answer))


def _frames(samples: int, runtime: Runtime) -> int:
    return -(-samples // runtime.config.frame_size)
