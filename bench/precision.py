"""Measures each precision's size, and its drift from float32 on forced conversations, for one checkpoint."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pplex.export.build import BuildOptions, build
from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import token_history, unheard_pieces
from pplex.export.source import CheckpointSource
from pplex.measure.machine import machine
from pplex.measure.tables import aligned
from pplex.runtime.bundle import open_bundle
from pplex.runtime.config import ModelConfig
from pplex.runtime.parameters import weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import parse_precision
from pplex.runtime.stages import Stages
from pplex.validate.drift import DriftSummary, drift, engine_blocks, reference_blocks
from pplex.validate.widen import widen_bundle

# name -> precision, calibration, and whether the graphs are for engines
VARIANTS = {
    "fp16": ("fp16", None, False),
    "bf16": ("bf16", None, False),
    "fp8": ("fp8", "default", False),
    "int8": ("int8", None, False),
    "int8 in engines": ("int8", None, True),
    "int4, round to nearest": ("int4", None, False),
    "int4, AWQ": ("int4", "default", False),
    "int4, AWQ, in engines": ("int4", "default", True),
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
    checkpoint: Path, frames: int, progress: Callable[[str], None] = lambda name: None
) -> PrecisionReport:
    """Build the checkpoint in every precision and force `frames` steps of synthetic speech through each.

    The default calibration uses other speech. Raises CheckpointError.
    """
    opened = open_checkpoint(checkpoint)
    config = opened.config
    codes = token_history(opened, unheard_pieces(config, 2), frames)[: config.temporal.capacity - 1]
    with tempfile.TemporaryDirectory() as scratch:

        def drift_of(name: str) -> DriftSummary:
            progress(name)
            precision, calibration, for_engines = VARIANTS[name]
            options = BuildOptions(
                precision=parse_precision(precision), calibration=calibration, for_engines=for_engines
            )
            bundle = open_bundle(
                build(CheckpointSource(checkpoint, None, None), Path(scratch) / "bundle", options), verify=False
            )
            stages = Stages(widen_bundle(bundle), slots=1, logits=True)
            expected = reference_blocks(opened, config, codes)
            return DriftSummary.of(drift(engine_blocks(stages, codes), expected, codes))

        drifts = {name: drift_of(name) for name in VARIANTS}
    megabytes = {name: _language_mb(config, *variant) for name, variant in VARIANTS.items()}
    return PrecisionReport(
        f"precisions of {checkpoint.name}, {len(codes) - 1} forced steps",
        drifts,
        megabytes,
        machine(None, "onnxruntime", "torch"),
    )


def _language_mb(config: ModelConfig, precision: str, calibration: str | None, for_engines: bool) -> float:
    nbytes = weights_nbytes(config, parse_precision(precision), for_engines)
    return sum(nbytes[graph] for graph in LANGUAGE_GRAPHS) / 1e6


def _cells(drift: DriftSummary) -> tuple[str, ...]:
    return (
        f"{drift.hidden_cosine:.6f}", f"{drift.least_cosine:.4f}", f"{drift.text_kl:.2e}", f"{drift.audio_kl:.2e}",
        f"{drift.same_text:.1%}", f"{drift.same_audio:.1%}",
    )  # fmt: skip
