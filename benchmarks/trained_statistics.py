"""The report on a trained checkpoint, beside an untrained one of the same sizes: losses, weights, activations.

Called by trained.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pplex.export.calibration import calibrate
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import CalibrationSet, ForcedHistory
from pplex.export.weights import sources
from pplex.measure.tables import aligned
from pplex.runtime.arrays import Tokens
from pplex.runtime.config import CODEBOOKS, END_OF_PADDING, ModelConfig
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.validate.drift import log_softmax, reference_blocks

GROUPS = {
    "temporal.attention.in_proj": "temporal: q, k, v",
    "temporal.attention.out_proj": "temporal: attention's output",
    "temporal.gating.linear_in": "temporal: gate and value",
    "temporal.gating.linear_out": "temporal: gated block's output",
    "temporal.text_linear": "temporal: text logits",
    "depth.in_proj": "depth: q, k, v",
    "depth.out_proj": "depth: attention's output",
    "depth.linear_in": "depth: gate and value",
    "depth.linear_out": "depth: gated block's output",
    "depth.input": "depth: hidden state",
    "depth.output": "depth: audio logits",
}
CALIBRATED = 8  # conversations whose activations are measured


@dataclass(frozen=True)
class HeldOut:
    """Columns [N, T + 1, 17] of codes, -1 for none, and the first predicted column [N]."""

    columns: Tokens
    first: Tokens


def losses(checkpoint: Checkpoint, config: ModelConfig, held_out: HeldOut) -> dict[str, float]:
    """Mean negative log-likelihood in nats of the next tokens: text, text without padding, audio, and audio by codebook."""
    text, audio, tokens = list[float](), list[list[float]](), list[int]()
    for columns, first in zip(held_out.columns, held_out.first, strict=True):
        codes, step = columns[columns[:, 0] >= 0], 1
        for block in reference_blocks(checkpoint, config, codes):
            of_text, of_audio = log_softmax(block.text), log_softmax(block.audio)
            for row in range(len(of_text)):
                target = codes[step]
                if step >= first:
                    text.append(-of_text[row, target[0]])
                    audio.append([-of_audio[row, k, target[1 + k]] for k in range(CODEBOOKS)])
                    tokens.append(int(target[0]))
                step += 1
    word = ~np.isin(tokens, (config.text_padding, END_OF_PADDING))
    by_codebook = {f"audio codebook {k}": float(np.mean([row[k] for row in audio])) for k in range(CODEBOOKS)}
    found = {"text": float(np.mean(text)), "text, words only": float(np.array(text)[word].mean())}
    return {**found, "audio": float(np.mean(audio)), **by_codebook}


def losses_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Losses by stream, a column for each model."""
    first = next(iter(columns.values()))
    rows = [(stream, *(f"{column[stream]:.3f}" for column in columns.values())) for stream in first]
    return aligned([("nats a token", *columns), *rows], right=range(1, 1 + len(columns)))


def statistics_table(models: Mapping[str, Checkpoint], config: ModelConfig, held_out: HeldOut) -> str:
    """Weights and activations of each group of matrices, of each model."""
    figures = {name: statistics(checkpoint, config, held_out) for name, checkpoint in models.items()}
    head = ("", *(f"{what}, {name}" for what in ("kurtosis", "top tenth", "channels") for name in models))
    rows = [
        (title, *(f"{figures[name][group][i]:.3g}" for i in range(3) for name in models))
        for group, title in GROUPS.items()
    ]
    return aligned([head, *rows], right=range(1, len(head)))


def statistics(checkpoint: Checkpoint, config: ModelConfig, held_out: HeldOut) -> dict[str, tuple[float, ...]]:
    """Of each group, the means of: excess kurtosis of the weights (0: normal), the share of the energy in the largest tenth
    of the singular values, and the largest root mean square of an input channel divided by the median one.
    """
    found: dict[str, list[tuple[float, ...]]] = {group: [] for group in GROUPS}
    squares = calibrate(checkpoint, config, _conversations(config, held_out), lambda nbytes: None).mean_square
    for graph in LANGUAGE_GRAPHS:
        for name, source in sources(graph, config, checkpoint).items():
            group = next((g for g in GROUPS if _is_in(f"{graph}.{name}", g)), None)
            if group:
                weight, channels = source.read(checkpoint), squares[f"{graph}.{name}"].sqrt()
                ratio = float(channels.max() / channels.median())
                found[group].append((excess_kurtosis(weight), top_energy(weight), ratio))
    return {group: tuple(np.mean(rows, axis=0)) for group, rows in found.items()}


def _is_in(name: str, group: str) -> bool:
    graph, _, part = group.partition(".")
    return name.startswith(f"{graph}.") and f".{part}." in name


def _conversations(config: ModelConfig, held_out: HeldOut) -> CalibrationSet:
    def history(columns: Tokens) -> ForcedHistory:
        codes = torch.from_numpy(columns[columns[:, 0] >= 0])
        return ForcedHistory(codes, torch.zeros(len(codes), config.temporal.dim))

    return CalibrationSet([history(columns) for columns in held_out.columns[:CALIBRATED]], {})


def excess_kurtosis(weight: Tensor) -> float:
    centred = (weight - weight.mean()).double()
    return float((centred**4).mean() / (centred**2).mean() ** 2 - 3)


def top_energy(weight: Tensor) -> float:
    """The share of the squares in the largest tenth of the singular values."""
    squares = torch.linalg.svdvals(weight).double() ** 2
    return float(squares[: max(1, len(squares) // 10)].sum() / squares.sum())
