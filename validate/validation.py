"""The whole validation: compares a bundle with its checkpoint, and makes one report of all sections. Called by `cli`."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import SPEECH_FRAMES, recorded_pieces, token_history, unheard_pieces
from pplex.export.threads import suited_threads
from pplex.export.voices import read_voices
from pplex.measure.conversation import PERSONA
from pplex.measure.machine import machine
from pplex.runtime.arrays import Pcm
from pplex.runtime.backend import graphs_run_on_processor
from pplex.runtime.bundle import TOKENIZER_FILE, Bundle, file_sha256
from pplex.runtime.errors import PromptError, ReportError
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.precision import FP32
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.runtime.voice_file import Voice, default_voice
from pplex.validate.grade import grade_of
from pplex.validate.memory import lacking_memory
from pplex.validate.parting import Judge
from pplex.validate.probes import RewrittenBundle, can_be_probed
from pplex.validate.recording import Recorded, make_runs, record
from pplex.validate.reference import as_float32, torch_backend
from pplex.validate.report.schema import Measure, Report, Section, Tolerance
from pplex.validate.sections.codec import codec_section, codec_streaming_measures
from pplex.validate.sections.conversation import QUESTION as CONVERSATION_QUESTION
from pplex.validate.sections.conversation import conversation_section
from pplex.validate.sections.drift import drift_section
from pplex.validate.sections.graphs import graph_section
from pplex.validate.sections.health import health_section
from pplex.validate.sections.names import LEAST, SECTIONS, check_tolerances
from pplex.validate.sections.speed import speed_section
from pplex.validate.sections.streaming import batch_measures, state_measures
from pplex.validate.speech.detector import SpeechDetector
from pplex.validate.speech.scenarios import make_scenarios, recorded_speech, synthetic_speech
from pplex.validate.surprise import surprise, surprise_measures
from pplex.validate.widen import widen

FRAMES, BEYOND = 3000, 128  # of the token history, and its least length past the ring's end
PIECES = 16  # of the recordings, 7.7 s each
SLOTS = 4  # conversations side by side, or fewer if the engines have fewer slots
SEEDS = (0, 1, 2)  # every scenario is sampled with each seed, and once greedily
SIDES = ("engine", "reference")
VOICE = "NATF2"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt", "torch", "numpy", "silero-vad")
Progress = Callable[[str], None]  # gets the name of each stage


@dataclass(frozen=True)
class ValidateOptions:
    """Options of a validation.

    frames: length of the token history; None for FRAMES, or more to pass the ring's end.
    recordings: a folder of speech; None for synthetic speech.
    sections: names in SECTIONS.
    tolerances: limits by measure, instead of the bundle's own.
    device, threads: as in `Runtime`.
    """

    frames: int | None = None
    recordings: Path | None = None
    sections: tuple[str, ...] = SECTIONS
    tolerances: Mapping[str, float] = field(default_factory=dict)
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Validation:
    """A report and its recordings: WAV files by name, with the user on the left and the agent on the right."""

    report: Report
    sounds: Mapping[str, bytes]


def validate(
    bundle: Bundle,
    checkpoint: Checkpoint,
    options: ValidateOptions = ValidateOptions(),
    progress: Progress = lambda stage: None,
) -> Validation:
    """Compare `bundle` with the float32 torch modules of `checkpoint`.

    Raises ReportError if the bundle was built from another checkpoint, or for an unknown tolerance; AudioError for unusable
    recordings; EngineError if the bundle cannot run here.
    """
    check_tolerances(options.tolerances, options.sections)
    progress("checkpoint")
    _check_origin(bundle, checkpoint)
    return validate_unchecked(bundle, checkpoint, options, progress)


def validate_unchecked(
    bundle: Bundle, checkpoint: Checkpoint, options: ValidateOptions, progress: Progress = lambda stage: None
) -> Validation:
    """Like `validate`, but does not check that the bundle was built from the checkpoint."""
    pieces, recordings = _pieces(checkpoint, options.recordings)
    frames = options.frames or max(FRAMES, bundle.config.temporal.capacity + BEYOND)
    with suited_threads(bundle.config.temporal.dim), runnable_here(bundle, options.device) as runnable:
        run = _ValidationRun(bundle, runnable, checkpoint, pieces, frames, options, progress)
        sections = tuple(run.sections())
    settings = {"frames": frames, "recordings": recordings, "sections": list(options.sections), "seeds": list(SEEDS)}
    report = Report(
        f"pplex-export {version('pplex-export')}",
        _described(bundle, runnable),
        {"name": bundle.manifest["checkpoint"]["repo"] or checkpoint.folder.name, "by": "our torch modules in float32"},
        settings,
        machine(options.threads, *PACKAGES),
        _with_tolerances(sections, options.tolerances),
        grade_of(sections),
    )
    return Validation(report, run.sounds)


class _ValidationRun:
    """One validation; `runnable` is the bundle, or its replacement on this machine."""

    def __init__(
        self,
        bundle: Bundle,
        runnable: Bundle,
        checkpoint: Checkpoint,
        pieces: Pcm,
        frames: int,
        options: ValidateOptions,
        progress: Progress,
    ):
        self.bundle, self.runnable, self.checkpoint = bundle, runnable, checkpoint
        self.options, self.progress = options, progress
        self.heard = pieces.reshape(-1, pieces.shape[-1])  # [F, 1920]
        progress("recordings")
        self.codes = token_history(checkpoint, pieces, frames)
        self.sounds: dict[str, bytes] = {}
        if "conversation" in options.sections:  # faults of the recordings show before the long work
            self.detect, folder = SpeechDetector(), options.recordings
            speech = recorded_speech(folder, self.detect) if folder else synthetic_speech()
            self.scenarios = make_scenarios(speech)

    def sections(self) -> Iterator[Section]:
        """Sections in the order of the report; one set of engines is loaded at a time."""
        wanted, device, threads = {*self.options.sections}, self.options.device, self.options.threads
        slots = min(entry["slots"] or SLOTS for entry in (*self.bundle.manifest["engines"].values(), {"slots": SLOTS}))
        if "graphs" in wanted:
            self.progress("graphs")
            yield graph_section(self.bundle, self.runnable, self.checkpoint, self.codes, self.heard, device, threads)
        state: list[Measure] = []
        if {"drift", "codec", "streaming"} & wanted:
            together = slots if "streaming" in wanted else 1
            yield from self._forced(Stages(self.runnable, together, threads, device, logits=True), wanted, state)
        if {"streaming", "conversation"} & wanted:
            # Only one batch size: then the other slots do not change a single bit of the results.
            yield from self._free(Runtime(self.runnable, slots, threads, [slots], device=device), wanted, state)

    def _forced(self, stages: Stages, wanted: set[str], state: list[Measure]) -> Iterator[Section]:
        """Sections that run single graphs; adds their measures of streaming to `state`."""
        if "drift" in wanted:
            self.progress("drift")
            yield drift_section(self.bundle, self.checkpoint, stages, self.codes)
        if "codec" in wanted:
            self.progress("codec")
            yield codec_section(self.bundle, self.checkpoint, stages, self.heard[: 2 * SPEECH_FRAMES])
        if "streaming" in wanted:
            self.progress("streaming")
            state += state_measures(self.bundle, self.checkpoint, stages, self.codes, self.heard)
            state += codec_streaming_measures(self.bundle, self.checkpoint, stages, self.heard[:SPEECH_FRAMES])

    def _free(self, runtime: Runtime, wanted: set[str], state: list[Measure]) -> Iterator[Section]:
        """Sections that run whole conversations."""
        if "streaming" in wanted:
            question = "Do chunk sizes, slots or other conversations change the result?"
            measures = (*state, *batch_measures(runtime, self.heard))
            yield Section("streaming", "Streaming", question, measures)
        if "conversation" in wanted:
            self.progress("conversation")
            yield from self._conversations(runtime)

    def _conversations(self, runtime: Runtime) -> Iterator[Section]:
        lacking = lacking_memory(sum(weights_nbytes(self.bundle.config, FP32).values()))
        if lacking:
            note = f"Not run: the reference needs all weights in float32; {lacking}."
            yield Section("conversation", "Conversation", CONVERSATION_QUESTION, notes=(note,))
            return
        config, scenarios = self.bundle.config, self.scenarios
        voice, persona = _prompt(runtime)
        ours = record(runtime, scenarios, make_runs(SEEDS), voice, persona)
        self.progress("conversation of the reference")
        backend = torch_backend(self.checkpoint, config)
        reference = Runtime(
            as_float32(self.bundle), runtime.slots, batches=runtime.batches, device=backend, logits=True
        )
        theirs = record(reference, scenarios, make_runs(SEEDS), voice, persona)
        for side, recorded in zip(SIDES, (ours, theirs), strict=True):
            self.sounds |= {_file_name(recording.name, side): recording.to_wav() for recording in recorded.recordings}
        judge = Judge(self.checkpoint, config, self.bundle.specs)
        section = conversation_section(ours.recordings, theirs.recordings, self.bundle.precision, self.detect, judge)
        yield replace(section, measures=(*section.measures, *self._surprise(runtime, ours, theirs, voice, persona)))
        yield health_section(ours.recordings, theirs.recordings, config.frame_size)
        yield speed_section(ours, config.frame_ms, runtime.stages.device.name)

    def _surprise(
        self, runtime: Runtime, ours: Recorded, theirs: Recorded, voice: str | None, persona: str
    ) -> tuple[Measure, ...]:
        """Measures of what both said, if the voice is one of the checkpoint's embeddings."""
        spoken, tokens = None if voice is None else self.bundle.voices[voice], runtime.tokenizer.encode_persona(persona)
        if spoken is not None and not isinstance(spoken, Voice):
            return ()
        found = (
            surprise(self.checkpoint, self.bundle.config, spoken, tokens, side.recordings) for side in (ours, theirs)
        )
        return surprise_measures(*found)


def _prompt(runtime: Runtime) -> tuple[str | None, str]:
    """Voice and persona of the conversations; each is left out if it does not fit in the context."""
    voice = default_voice(runtime.bundle.voices, VOICE)
    for persona in (PERSONA, ""):
        try:
            runtime.check_prompt(voice, persona)
            return voice, persona
        except PromptError:
            continue
    return None, ""


def _file_name(recording: str, side: str) -> str:
    return f"{recording}-{side}.wav".replace(", ", "-").replace(" ", "-")


def _check_origin(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raise ReportError unless the bundle has the checkpoint's sizes, tokenizer and voices, which the reference uses."""
    made_of = bundle.manifest["checkpoint"]["files"]
    found = {name: file_sha256(path) for name, path in checkpoint.layout.files.items()}
    other = [name for name in {**made_of, **found} if found.get(name) != made_of.get(name)]
    if other:
        raise ReportError(
            f"{bundle.folder} was built from another checkpoint than {checkpoint.folder}: {', '.join(other)} "
            "differ. Name its own checkpoint with --reference, or build a bundle from this one."
        )
    _check_lora(bundle, checkpoint)
    if changed := [*_changed(bundle, checkpoint)]:
        raise ReportError(
            f"{bundle.folder} does not have its checkpoint's {', '.join(changed)}. Rebuild it: pplex-export build"
        )


def _check_lora(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raise ReportError unless bundle and checkpoint have the same adapter, or none."""
    built, given = bundle.manifest["checkpoint"]["lora"], checkpoint.lora
    if built is None and given is not None:
        raise ReportError(f"{bundle.folder} was built without an adapter. Leave --lora out.")
    if built is not None and given is None:
        raise ReportError(f"{bundle.folder} was built with the adapter {built['file']}. Name it: --lora FILE")
    if built and given and (file_sha256(given.path), given.scaling) != (built["sha256"], built["scaling"]):
        raise ReportError(
            f"{bundle.folder} was built with another adapter than {given.path} with scaling {given.scaling:g}: with "
            f"{built['file']} (SHA-256 {built['sha256'][:16]}) and scaling {built['scaling']:g}. Name that one."
        )


def _changed(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[str]:
    """Parts that a build copies from the checkpoint and that differ.

    Builds may change the depth steps and the rings, and `pplex-export voices` removes and adds voices.
    """
    ours, theirs = bundle.config, checkpoint.config
    stack = replace(ours.temporal, capacity=theirs.temporal.capacity)
    if replace(ours, depth_steps=theirs.depth_steps, temporal=stack, kv_cache=theirs.kv_cache) != theirs:
        yield "sizes"
    if file_sha256(bundle.path(TOKENIZER_FILE)) != file_sha256(checkpoint.tokenizer):
        yield "tokenizer"
    spoken = read_voices(checkpoint.folder, theirs)
    copied = {
        name: voice for name, voice in bundle.voices.items() if isinstance(voice, Voice)
    }  # others were added later
    if not all(
        name in spoken
        and np.array_equal(voice.embeddings, spoken[name].embeddings)
        and np.array_equal(voice.cache, spoken[name].cache)
        for name, voice in copied.items()
    ):
        yield "voices"


def reference_of(bundle: Bundle, named: str | None) -> tuple[str, str | None]:
    """The `named` checkpoint (a folder or repository), or the manifest's; and the manifest's commit if it is the same.

    Raises ReportError if neither names one.
    """
    origin = bundle.manifest["checkpoint"]
    source = named or origin["repo"]
    if source is None:
        raise ReportError(
            f"{bundle.folder} was built from a folder, and its manifest does not name that folder. "
            "Name it: --reference CHECKPOINT"
        )
    return source, origin["revision"] if source == origin["repo"] else None


def _pieces(checkpoint: Checkpoint, folder: Path | None) -> tuple[Pcm, str]:
    """Recordings [n, F, 1920], and a short text about their source."""
    if folder is None:
        return unheard_pieces(checkpoint.config, PIECES), "synthetic speech"
    pieces, paths = recorded_pieces(folder, checkpoint.config.frame_size, PIECES)
    return pieces, f"{len(pieces)} pieces of {len(paths)} files in {folder.name}"


@contextmanager
def runnable_here(bundle: Bundle, device: str | None) -> Iterator[Bundle]:
    """The bundle. For bfloat16 graphs on the processor: a copy in float32 that rounds to bfloat16 after every operation."""
    narrow = [graph for graph, name in bundle.precision.items() if name == "bf16"]
    if not narrow or not can_be_probed(bundle) or not graphs_run_on_processor(device):
        yield bundle
        return
    with tempfile.TemporaryDirectory() as scratch:
        rewritten = {graph: Path(scratch) / f"{graph}.onnx" for graph in narrow}
        for graph, path in rewritten.items():
            shutil.copyfile(bundle.graph_path(graph), path)
            widen(path)
        wide = {**bundle.precision, **dict.fromkeys(narrow, "fp32")}
        yield RewrittenBundle.of(replace(bundle, precision=wide), rewritten)


def _described(bundle: Bundle, runnable: Bundle) -> dict[str, Any]:
    """Facts of the bundle, with the names of graphs that were emulated."""
    emulated = [graph for graph, name in bundle.precision.items() if runnable.precision[graph] != name]
    described = {
        "name": bundle.folder.name,
        "precision": dict(bundle.precision),
        "engines": {name: entry["kind"] for name, entry in bundle.manifest["engines"].items()},
        "capacity": bundle.config.temporal.capacity,
        "checkpoint": _checkpoint_name(bundle.manifest["checkpoint"]),
        "digest": bundle.manifest["digest"],
    }
    if emulated:
        described["emulated"] = f"{', '.join(emulated)}: in float32, rounded to bfloat16 after every operation"
    return described


def _checkpoint_name(origin: Mapping[str, Any]) -> str:
    """The repository and commit. For a folder: the hash of the weights, so that reports can be compared."""
    if origin["repo"]:
        return f"{origin['repo']} at {origin['revision']}"
    name, digest = next(iter(origin["files"].items()))  # the language model's
    return f"{name} with SHA-256 {digest[:16]}"


def _with_tolerances(sections: tuple[Section, ...], limits: Mapping[str, float]) -> tuple[Section, ...]:
    """The sections with the limits of --tolerance, also for measures without a limit in this precision."""

    def limited(measure: Measure) -> Measure:
        if measure.name not in limits or measure.value is None:
            return measure
        limit, usual = limits[measure.name], measure.tolerance
        reason = f"set by --tolerance, instead of {usual.limit:g}: {usual.reason}" if usual else "set by --tolerance"
        return replace(measure, tolerance=Tolerance(limit, reason, measure.name in LEAST))

    return tuple(replace(section, measures=tuple(map(limited, section.measures))) for section in sections)
