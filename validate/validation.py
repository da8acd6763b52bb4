"""The whole validation: a bundle held to the checkpoint it was built from, section by section, to one report."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pplex.bench.measure import machine
from pplex.export.checkpoint import REQUIRED_FILES, Checkpoint
from pplex.export.conversations import SPEECH_FRAMES, recorded_pieces, token_history, unheard_pieces
from pplex.export.threads import suited_threads
from pplex.runtime.audio import Pcm
from pplex.runtime.bundle import Bundle, file_sha256
from pplex.runtime.errors import ReportError
from pplex.runtime.ort import has_cuda_provider
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.validate.codec import codec_section, codec_streaming_measures
from pplex.validate.drift_section import drift_section
from pplex.validate.graph_section import graph_section
from pplex.validate.probes import can_be_probed, link, scratch_beside
from pplex.validate.report import Report, Section, Tolerance
from pplex.validate.streaming import batch_measures, state_measures
from pplex.validate.widen import widen_bundle

SECTIONS = ("graphs", "drift", "codec", "streaming", "conversation")
FRAMES, BEYOND = 3000, 128  # of the token history, and how far past the ring's end it goes at least
PIECES = 16  # of the recordings, 7.7 s each
SLOTS = 4  # conversations side by side
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt", "torch", "numpy")
Told = Callable[[str], None]


@dataclass(frozen=True)
class ValidateOptions:
    """What a validation runs.

    frames: of the token history, FRAMES or past the ring's end if None. recordings: a folder of speech, synthetic speech if
    None. sections: names in SECTIONS. tolerances: limits by a measure's name, instead of the bundle's own. `device` and
    `threads` as in `Runtime`.
    """

    frames: int | None = None
    recordings: Path | None = None
    sections: tuple[str, ...] = SECTIONS
    tolerances: Mapping[str, float] = field(default_factory=dict)
    device: str | None = None
    threads: int | None = None


def validate(
    bundle: Bundle,
    checkpoint: Checkpoint,
    options: ValidateOptions = ValidateOptions(),
    told: Told = lambda stage: None,
) -> Report:
    """Hold `bundle` to the float32 torch modules of `checkpoint`.

    Raises ReportError where the two do not belong together, AudioError for recordings that cannot be used, EngineError
    where the bundle cannot run here.
    """
    told("checkpoint")
    _check_origin(bundle, checkpoint)
    pieces, recordings = _pieces(checkpoint, options.recordings)
    frames = options.frames or max(FRAMES, bundle.config.temporal.capacity + BEYOND)
    with suited_threads(bundle.config.temporal.dim), _runnable(bundle, options.device) as runnable:
        sections = tuple(_sections(bundle, runnable, checkpoint, pieces, frames, options, told))
    settings = {"frames": frames, "recordings": recordings, "sections": list(options.sections)}
    return Report(
        f"pplex-export {version('pplex-export')}",
        _described(bundle, runnable),
        {"checkpoint": checkpoint.folder.name, "by": "our torch modules in float32"},
        settings,
        machine(options.threads, *PACKAGES),
        _with_tolerances(sections, options.tolerances),
    )


def _sections(
    bundle: Bundle,
    runnable: Bundle,
    checkpoint: Checkpoint,
    pieces: Pcm,
    frames: int,
    options: ValidateOptions,
    told: Told,
) -> Iterator[Section]:
    device, threads, wanted = options.device, options.threads, options.sections
    heard = pieces.reshape(-1, pieces.shape[-1])  # [F, 1920]
    told("recordings")
    codes = token_history(checkpoint, pieces, frames)
    if "graphs" in wanted:
        told("graphs")
        yield graph_section(bundle, runnable, checkpoint, codes, heard, device, threads)
    state = []
    if {"drift", "codec", "streaming"} & {*wanted}:
        stages = Stages(runnable, slots=2, threads=threads, device=device, logits=True)
        if "drift" in wanted:
            told("drift")
            yield drift_section(bundle, checkpoint, stages, codes)
        if "codec" in wanted:
            told("codec")
            yield codec_section(bundle, checkpoint, stages, heard[: 2 * SPEECH_FRAMES])
        if "streaming" in wanted:
            told("streaming")
            state = [*state_measures(bundle, stages, codes)]
            state += codec_streaming_measures(bundle, checkpoint, stages, heard[:SPEECH_FRAMES])
        del stages  # its memory is needed for what comes
    if {"streaming", "conversation"} & {*wanted}:
        runtime = Runtime(runnable, SLOTS, threads, device=device)
        if "streaming" in wanted:
            yield Section(
                "streaming",
                "Streaming",
                "Does it matter how the steps are cut, where a conversation sits, or who sits beside it?",
                (*state, *batch_measures(bundle, runtime, heard)),
            )


def _check_origin(bundle: Bundle, checkpoint: Checkpoint) -> None:
    made_of = bundle.manifest["checkpoint"]["files"]
    other = [name for name in REQUIRED_FILES if file_sha256(checkpoint.path(name)) != made_of.get(name)]
    if other:
        raise ReportError(
            f"{bundle.folder} was built from another checkpoint than {checkpoint.folder}: {', '.join(other)} "
            "differ. Name the one it was built from with --reference, or build a bundle of this one."
        )


def _pieces(checkpoint: Checkpoint, folder: Path | None) -> tuple[Pcm, str]:
    """Recordings [n, F, 1920], and in a few words where they are from."""
    if folder is None:
        return unheard_pieces(checkpoint.config, PIECES), "synthetic speech"
    pieces, paths = recorded_pieces(folder, checkpoint.config.frame_size, PIECES)
    return pieces, f"{len(pieces)} pieces of {len(paths)} files in {folder.name}"


@contextmanager
def _runnable(bundle: Bundle, device: str | None) -> Iterator[Bundle]:
    """The bundle, or where it is in bfloat16 and the processor has to do, a copy that rounds to it after every operation."""
    on_processor = device == "cpu" or (device is None and not has_cuda_provider())
    if "bf16" not in bundle.precision.values() or not can_be_probed(bundle) or not on_processor:
        yield bundle
        return
    with scratch_beside(bundle.folder) as folder:
        copy = Path(folder) / bundle.folder.name
        copy.mkdir()
        for path in bundle.folder.iterdir():
            if path.suffix == ".onnx":
                shutil.copyfile(path, copy / path.name)
            elif path.is_file():
                link(path, copy)
        yield widen_bundle(replace(bundle, folder=copy))


def _described(bundle: Bundle, runnable: Bundle) -> dict[str, Any]:
    """Of the bundle as it is; graphs that were run in another way are named."""
    emulated = [graph for graph, name in bundle.precision.items() if runnable.precision[graph] != name]
    described = {
        "name": bundle.folder.name,
        "precision": dict(bundle.precision),
        "engines": {name: entry["kind"] for name, entry in bundle.manifest["engines"].items()},
        "capacity": bundle.config.temporal.capacity,
        "checkpoint": dict(bundle.manifest["checkpoint"]),
        "digest": bundle.manifest["digest"],
    }
    if emulated:
        described["emulated"] = f"{', '.join(emulated)}: in float32, rounded to bfloat16 after every operation"
    return described


def _with_tolerances(sections: tuple[Section, ...], limits: Mapping[str, float]) -> tuple[Section, ...]:
    """The sections with the limits that were asked for. Raises ReportError for a name that no measure has."""
    known = {m.name: m.tolerance for section in sections for m in section.measures}
    wrong = sorted(name for name in limits if known.get(name) is None)
    if wrong:
        having = ", ".join(sorted(name for name, tolerance in known.items() if tolerance is not None))
        raise ReportError(f"There is no tolerance {', '.join(wrong)}. Measures with one are {having}.")
    asked = {name: _asked(known[name], limit) for name, limit in limits.items()}
    return tuple(
        replace(section, measures=tuple(replace(m, tolerance=asked.get(m.name, m.tolerance)) for m in section.measures))
        for section in sections
    )


def _asked(usual: Tolerance | None, limit: float) -> Tolerance:
    assert usual is not None
    return Tolerance(limit, f"asked for, instead of {usual.limit:g}: {usual.reason}", usual.least)
