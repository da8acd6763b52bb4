"""Where a model breaks: noise in all matrices of a checkpoint, and low precisions, judged as `validate` does.

    python benchmarks/trained_damage.py CHECKPOINT --wavs SPEECH [--noise 0.01 --noise 0.1] [--precision int4]

The grade's limits come from its table: docs/validation.md, "The grade". Noise runs in the torch modules, a precision in its
bundle.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from trained_checkpoint import Held

from pplex.export.build import BuildOptions, build
from pplex.export.checkpoint import LM_FILE, Checkpoint, open_checkpoint
from pplex.export.conversations import recorded_pieces, token_history
from pplex.export.source import CheckpointSource
from pplex.measure.conversation import PERSONA
from pplex.measure.tables import aligned
from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle, Voice, open_bundle
from pplex.runtime.precision import parse_precision
from pplex.runtime.session import Runtime
from pplex.runtime.stages import Stages
from pplex.validate.drift import Drift, drift, engine_blocks, reference_blocks
from pplex.validate.grade import BOUNDS, grade_of
from pplex.validate.parting import Judge
from pplex.validate.recording import Recorded, make_runs, record
from pplex.validate.reference import as_float32, torch_backend
from pplex.validate.report.schema import Measure, Section
from pplex.validate.sections.conversation import METRICS, conversation_section
from pplex.validate.sections.health import health_section
from pplex.validate.speech.detector import SpeechDetector
from pplex.validate.speech.scenarios import Scenario, make_scenarios, recorded_speech
from pplex.validate.surprise import Surprise, surprise, surprise_measures

NOISE = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)
PRECISIONS = ("int8", "int4")
FRAMES, SLOTS, SEEDS, VOICE = 256, 4, (0,), "NATF2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--wavs", type=Path, required=True, help="recordings of speech")
    parser.add_argument("--noise", type=float, action="append", help="in standard deviations of each matrix")
    parser.add_argument("--precision", action="append")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial.of(given.checkpoint, Path(scratch), given.wavs)
        rows = [trial.noisy(noise) for noise in given.noise or NOISE]
        rows += [trial.rounded(name, Path(scratch)) for name in given.precision or PRECISIONS]
    print(table(rows))


@dataclass(frozen=True)
class Row:
    """A damaged model's figures by name, what it does worse than the reference, and its grade."""

    name: str
    figures: dict[str, float | None]
    worse: tuple[str, ...]
    grade: str


@dataclass(frozen=True)
class Trial:
    """The reference, what it said in every scenario, and the tokens of the forced steps."""

    checkpoint: Checkpoint
    bundle: Bundle
    scenarios: tuple[Scenario, ...]
    said: Recorded
    surprise: Surprise
    codes: Tokens
    detect: SpeechDetector

    @classmethod
    def of(cls, folder: Path, scratch: Path, wavs: Path) -> "Trial":
        checkpoint, detect = open_checkpoint(folder), SpeechDetector()
        bundle = _built(folder, "fp32", scratch)
        scenarios = make_scenarios(recorded_speech(wavs, detect))
        pieces, _ = recorded_pieces(wavs, bundle.config.frame_size, 16)
        said = _played(_reference(bundle, checkpoint), scenarios)
        own = _surprise(checkpoint, bundle, said)
        codes = token_history(checkpoint, pieces, FRAMES)
        return cls(checkpoint, bundle, scenarios, said, own, codes, detect)

    def noisy(self, noise: float) -> Row:
        """The model with noise in every matrix except the embeddings."""
        damaged = _Noisy(self.checkpoint, noise).checkpoint
        found = drift(
            reference_blocks(damaged, self.bundle.config, self.codes),
            reference_blocks(self.checkpoint, self.bundle.config, self.codes),
            self.codes,
        )
        return self._row(f"noise {noise:g}", found, _played(_reference(self.bundle, damaged), self.scenarios))

    def rounded(self, precision: str, scratch: Path) -> Row:
        """The model in a low precision."""
        bundle = _built(self.checkpoint.folder, precision, scratch)
        blocks = engine_blocks(Stages(bundle, 1, 1, logits=True), self.codes)
        found = drift(blocks, reference_blocks(self.checkpoint, bundle.config, self.codes), self.codes)
        return self._row(precision, found, _played(Runtime(bundle, SLOTS, 1, [SLOTS]), self.scenarios))

    def _row(self, name: str, found: Drift, said: Recorded) -> Row:
        ours, theirs = said.recordings, self.said.recordings
        judge = Judge(self.checkpoint, self.bundle.config, self.bundle.specs)
        # In the name of a low precision: then no token must be equal.
        low = dict.fromkeys(self.bundle.precision, "int4")
        sections = [
            Section("drift", "", "", tuple(_drift_measures(found))),
            conversation_section(ours, theirs, low, self.detect, judge),
            health_section(ours, theirs, self.bundle.config.frame_size),
            Section("", "", "", surprise_measures(_surprise(self.checkpoint, self.bundle, said), self.surprise)),
        ]
        values = {measure.name: measure.value for section in sections for measure in section.measures}
        worse = tuple(measure.name for section in sections[1:3] for measure in section.failures)
        grade = grade_of(sections)
        print(name, {key: values.get(key) for key in BOUNDS}, worse, grade and grade.word, flush=True)
        return Row(name, values, worse, grade.word if grade else "none")


class _Noisy:
    """A checkpoint whose matrices have normal noise of `noise` standard deviations."""

    def __init__(self, clean: Checkpoint, noise: float):
        generator, held = torch.Generator().manual_seed(0), dict(clean.tensors)
        for key, tensor in sorted(load_file(clean.folder / LM_FILE).items()):
            if tensor.dim() == 2 and "emb" not in key:
                drawn = noise * tensor.float().std() * torch.randn(tensor.shape, generator=generator)
                held[key] = Held(tensor.float() + drawn)
        self.checkpoint = Checkpoint(clean.config, clean.depth_sets, held, clean.layout)


def _built(folder: Path, precision: str, scratch: Path) -> Bundle:
    options = BuildOptions(precision=parse_precision(precision))
    return open_bundle(build(CheckpointSource(folder, None, None), scratch / precision, options), verify=False)


def _reference(bundle: Bundle, checkpoint: Checkpoint) -> Runtime:
    backend = torch_backend(checkpoint, bundle.config)
    return Runtime(as_float32(bundle), SLOTS, batches=[SLOTS], device=backend)


def _played(runtime: Runtime, scenarios: Sequence[Scenario]) -> Recorded:
    return record(runtime, scenarios, make_runs(SEEDS), VOICE, PERSONA)


def _surprise(checkpoint: Checkpoint, bundle: Bundle, said: Recorded) -> Surprise:
    voice = bundle.voices[VOICE]
    assert isinstance(voice, Voice)
    persona = Runtime(bundle, 1).tokenizer.encode_persona(PERSONA)
    return surprise(checkpoint, bundle.config, voice, persona, said.recordings)


def _drift_measures(found: Drift) -> Iterator[Measure]:
    for name, values in (
        ("text_kl", found.text_kl),
        ("audio_kl", found.audio_kl),
        ("text_top1", found.text_same),
        ("audio_top1", found.audio_same),
    ):
        yield Measure(f"drift.{name}", float(values.mean()), "", name)


def table(rows: Sequence[Row]) -> str:
    """The grade's figures and those of turns, a line for each row."""
    names = [*BOUNDS, *(f"conversation.{metric.name}" for metric in METRICS.values())]
    head = ("", *(name.partition(".")[2] for name in names), "worse than the reference", "grade")
    lines = [
        (row.name, *(_shown(row.figures.get(name)) for name in names), ", ".join(row.worse) or "-", row.grade)
        for row in rows
    ]
    return aligned([head, *lines])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
