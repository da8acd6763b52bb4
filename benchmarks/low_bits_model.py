"""A language model with rounded weights, and its drift from the exact one: called by `low_bits`.

Weights are rounded as an export for ONNX Runtime does. Activations, embeddings and norms are in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.awq import Fold, Folding
from pplex.export.calibration import Calibration, history_place
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import ForcedHistory
from pplex.export.exporter import rounded
from pplex.export.layers import even_noise
from pplex.export.moments import Moments
from pplex.export.storage import Storage, storages
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import Forms
from pplex.runtime.pipeline import LANGUAGE_GRAPHS

INT4 = dict.fromkeys(LANGUAGE_GRAPHS, "int4")
_ROWS = 256  # steps in one call of the depth transformer
Modules = dict[str, Any]  # the torch module of each graph; the types of its parts are not declared


@dataclass(frozen=True)
class Recipe:
    """How to round. calibration: None for round to nearest. forms: those of some groups; the others are as in int4."""

    calibration: Calibration | None
    awq: type[Folding] | None = Folding
    compensate: bool = True
    forms: Forms = field(default_factory=dict)

    def moments(self, graph: str, name: str, fold: Fold) -> Moments | None:
        if self.calibration is None:
            return None
        found = self.calibration.moments(graph, name)
        if not self.compensate:
            found = Moments(found.square, found.square.new_empty(len(found.square), 0))
        return found if fold.rows is None else found.divided(fold.rows)


def exact_modules(checkpoint: Checkpoint, config: ModelConfig) -> Modules:
    return {graph: weights.load(graph, checkpoint, config) for graph in LANGUAGE_GRAPHS}


def rounded_modules(checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe) -> Modules:
    modules = exact_modules(checkpoint, config)
    for graph, module in modules.items():
        stored = storages(graph, config, INT4, forms=recipe.forms)
        round_module(graph, module, config, recipe, stored)
    return modules


def round_module(
    graph: str, module: nn.Module, config: ModelConfig, recipe: Recipe, stored: dict[str, Storage]
) -> None:
    """Round the matrices of a graph's module in place."""
    table = dict(module.named_parameters())
    folds: dict[str, Fold] = {}
    if recipe.calibration is not None and recipe.awq is not None:
        folds = recipe.awq(graph, table.__getitem__, recipe.calibration, stored).folds(config)
    round_parameters(graph, table, recipe, stored, folds)


def round_parameters(
    graph: str,
    table: Mapping[str, nn.Parameter],
    recipe: Recipe,
    stored: Mapping[str, Storage],
    folds: Mapping[str, Fold],
) -> None:
    """Fold and round these parameters of a graph in place."""
    for name, parameter in table.items():
        fold = folds.get(name, Fold())
        parameter.data = fold(parameter.data)
        if name in stored:
            moments = recipe.moments(graph, name, fold)
            parameter.data = rounded(parameter.data.contiguous(), stored[name], moments, signed=True).dequantized()


@dataclass(frozen=True)
class Outputs:
    """Hidden states [n, dim], and logarithms of the probabilities of text [n, card] and audio [n, K, card]."""

    hidden: Tensor
    text: Tensor
    audio: Tensor


@torch.inference_mode()
def outputs(modules: Modules, config: ModelConfig, items: Sequence[ForcedHistory]) -> Outputs:
    """Of all steps whose next tokens are known, all tokens forced."""
    hidden = torch.cat([hidden_states(modules["temporal"], config, item)[:-1] for item in items])
    target = torch.cat([item.target for item in items])
    known = (target[:, : 1 + config.depth_steps] >= 0).all(1)
    hidden, target = hidden[known], target[known]
    text = modules["temporal"].text_linear(hidden).log_softmax(-1)
    pairs = zip(hidden.split(_ROWS), target.split(_ROWS), strict=True)
    return Outputs(hidden, text, torch.cat([_audio(modules["depth"], *pair) for pair in pairs]))


def hidden_states(module: Any, config: ModelConfig, item: ForcedHistory) -> Tensor:
    """Of all steps at once, [T, dim]."""
    place = history_place(len(item.codes), config)
    x = module.embed_streams(item.codes[None]) + item.embedding
    for layer in module.layers:
        x = layer(x, *place)[0]
    found: Tensor = module.out_norm(x[0])
    return found


def _audio(module: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    noise, ones = even_noise(len(hidden), tokens.shape[1]), torch.ones(len(hidden))
    logits: Tensor = module(hidden, tokens[:, 0], tokens[:, 1 : 1 + len(module.steps)], *noise, ones, ones.long())[1]
    return logits.log_softmax(-1)


def drifts(got: Outputs, exact: Outputs, same_basis: bool = True) -> dict[str, float]:
    """Means over all steps: divergence in nats with its standard error, and the share of equal choices.

    `largest`: the largest difference of the logarithms of two probabilities.
    """
    result = {}
    if same_basis:
        result["hidden"] = float(torch.cosine_similarity(got.hidden.double(), exact.hidden.double()).mean())
    for stream in ("text", "audio"):
        p, q = getattr(exact, stream), getattr(got, stream)
        each = (p.exp() * (p - q)).sum(-1).double().numpy()
        each = each if each.ndim == 1 else each.mean(1)
        result[stream], result[f"{stream}_error"] = float(each.mean()), float(np.std(each) / len(each) ** 0.5)
        result[f"largest_{stream}"] = float((p - q).abs().max())
        result[f"same_{stream}"] = float((p.argmax(-1) == q.argmax(-1)).float().mean())
    return result
