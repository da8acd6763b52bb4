"""Measures each precision's size, and its drift from float32 on forced conversations, for one checkpoint."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pplex.export.build import BuildOptions, build
from pplex.export.calibration import DEFAULT_CALIBRATION
from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.export.source import CheckpointSource
from pplex.measure.machine import machine
from pplex.measure.tables import aligned
from pplex.runtime.bundle import open_bundle
from pplex.runtime.config import INT8, LIKE_ACTIVATIONS, ModelConfig
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import parse_precision
from pplex.runtime.stages import Stages
from pplex.validate.drift import DriftSummary, drift, engine_blocks, reference_blocks
from pplex.validate.widen import widen_bundle


@dataclass(frozen=True)
class Variant:
    """A way to build: see BuildOptions."""

    precision: str
    calibration: str | None = None
    for_engines: bool = False
    kv_cache: str = LIKE_ACTIVATIONS

    @property
    def options(self) -> BuildOptions:
        return BuildOptions(
            precision=parse_precision(self.precision),
            calibration=self.calibration,
            for_engines=self.for_engines,
            kv_cache=self.kv_cache,
        )


VARIANTS = {
    "fp16": Variant("fp16"),
    "fp16, rings in int8": Variant("fp16", DEFAULT_CALIBRATION, kv_cache=INT8),
    "bf16": Variant("bf16"),
    "fp8": Variant("fp8", DEFAULT_CALIBRATION),
    "int8": Variant("int8"),
    "int8, rings in int8": Variant("int8", DEFAULT_CALIBRATION, kv_cache=INT8),
    "int8 in engines": Variant("int8", for_engines=True),
    "int4, round to nearest": Variant("int4"),
    "int4, calibrated": Variant("int4", DEFAULT_CALIBRATION),
    "int4, calibrated, rings in int8": Variant("int4", DEFAULT_CALIBRATION, kv_cache=INT8),
    "int4, calibrated, in engines": Variant("int4", DEFAULT_CALIBRATION, for_engines=True),
    "int4, depth int8": Variant("temporal=int4,depth=int8", DEFAULT_CALIBRATION),
}


@dataclass(frozen=True)
class PrecisionReport:
    """Drift and megabytes of the language model, for each variant."""

    title: str
    drifts: dict[str, DriftSummary]
    megabytes: dict[str, float]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        head = ("", "MB", "hidden cos", "least", "text KL", "audio KL", "same text", "same audio")
        rows = [(name, f"{self.megabytes[name]:.1f}", *_cells(drift)) for name, drift in self.drifts.items()]
        facts = [f"{key}: {value}" for key, value in self.machine.items()]
        return "\n".join([self.title, aligned([head, *rows], right=range(1, len(head))), *facts])


def bench_precision(
    checkpoint: Path,
    frames: int,
    names: Sequence[str] = tuple(VARIANTS),
    progress: Callable[[str], None] = lambda name: None,
) -> PrecisionReport:
    """Build the checkpoint in the precisions `names` and force `frames` steps of synthetic speech through each.

    The default calibration uses other speech, words and personas. Raises CheckpointError.
    """
    opened = open_checkpoint(checkpoint)
    config = opened.config
    codes = token_history(opened, unheard_pieces(config, 2), frames)[: config.temporal.capacity - 1]
    with tempfile.TemporaryDirectory() as scratch:

        def drift_of(name: str) -> DriftSummary:
            progress(name)
            source = CheckpointSource(checkpoint, None, None)
            built = build(source, Path(scratch) / "bundle", VARIANTS[name].options)
            bundle = open_bundle(built, verify=False)
            stages = Stages(widen_bundle(bundle), slots=1, logits=True)
            expected = reference_blocks(opened, config, codes)
            return DriftSummary.of(drift(engine_blocks(stages, codes), expected, codes))

        drifts = {name: drift_of(name) for name in names}
    megabytes = {name: _language_mb(config, VARIANTS[name]) for name in names}
    return PrecisionReport(
        f"precisions of {checkpoint.name}, {len(codes) - 1} forced steps",
        drifts,
        megabytes,
        machine(None, "onnxruntime", "torch"),
    )


def _language_mb(config: ModelConfig, variant: Variant) -> float:
    nbytes = weights_nbytes(config, parse_precision(variant.precision), variant.for_engines)
    return sum(nbytes[graph] for graph in LANGUAGE_GRAPHS) / 1e6


def _cells(drift: DriftSummary) -> tuple[str, ...]:
    return (
        f"{drift.hidden_cosine:.6f}", f"{drift.least_cosine:.4f}", f"{drift.text_kl:.2e}", f"{drift.audio_kl:.2e}",
        f"{drift.same_text:.1%}", f"{drift.same_audio:.1%}",
    )  # fmt: skip
