"""Rounds the temporal transformer layer by layer, each after the layers before it were rounded: called by `low_bits`.

The statistics of a layer's inputs, and those of the depth transformer, then include the errors of earlier layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from low_bits_model import INT4, Modules, Recipe, exact_modules, round_module, round_parameters
from torch import Tensor

from pplex.export.awq import Fold, layers
from pplex.export.calibration import Calibration, history_place
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import ForcedHistory
from pplex.export.layers import even_noise
from pplex.export.recording import Record
from pplex.export.storage import Storage, storages
from pplex.runtime.config import ModelConfig

_ROWS, _KEPT_ROWS = 256, 1024


def rounded_in_turn(
    checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe, items: Sequence[ForcedHistory]
) -> Modules:
    """The modules rounded by a recipe; of its calibration only what no layer records is used."""
    assert recipe.calibration is not None
    modules, found = exact_modules(checkpoint, config), recipe.calibration
    temporal, stored = modules["temporal"], storages("temporal", config, INT4)
    places = [history_place(len(item.codes), config) for item in items]
    streams = [temporal.embed_streams(item.codes[None]) + item.embedding for item in items]
    for i, layer in enumerate(temporal.layers):
        prefix = f"layers.{i}."
        record = Record()
        with record.watching(layer, f"temporal.{prefix}"):
            record.each(partial(_run, layer), list(zip(streams, places, strict=True)))
        found = _with(found, record)
        _round(temporal, prefix, config, replace(recipe, calibration=found), stored, i)
        streams = [_run(layer, pair) for pair in zip(streams, places, strict=True)]
    hidden = [temporal.out_norm(x[0]) for x in streams]
    record = Record()
    record.each(partial(record.add, "temporal.text_linear.weight"), hidden)
    record.sum_up()
    found = _with(found, record)
    _round(temporal, "text_linear.", config, replace(recipe, calibration=found), stored, None)
    found = _with(found, _depth(modules["depth"], hidden, items))
    round_module("depth", modules["depth"], config, replace(recipe, calibration=found), storages("depth", config, INT4))
    return modules


def _run(layer: Any, item: tuple[Tensor, tuple[Tensor | None, ...]]) -> Tensor:
    found: Tensor = layer(item[0], *item[1])[0]
    return found


def _round(
    temporal: Any,
    prefix: str,
    config: ModelConfig,
    recipe: Recipe,
    stored: Mapping[str, Storage],
    index: int | None,
) -> None:
    """Round the matrices whose names start with `prefix`: those of the layer `index`, or outside of layers."""
    table, folds = dict(temporal.named_parameters()), dict[str, Fold]()
    if recipe.awq is not None and recipe.calibration is not None and index is not None:
        folding = recipe.awq("temporal", table.__getitem__, recipe.calibration, stored)
        folds = folding.layer(layers("temporal", config)[index])
    own = {name: parameter for name, parameter in table.items() if name.startswith(prefix)}
    round_parameters("temporal", own, recipe, stored, folds)


def _depth(module: Any, hidden: Sequence[Tensor], items: Sequence[ForcedHistory]) -> Record:
    target = torch.cat([item.target for item in items])
    known = (target >= 0).all(1)
    rows, target = torch.cat([x[:-1] for x in hidden])[known], target[known]
    record = Record()

    def run(item: tuple[Tensor, Tensor]) -> None:
        states, tokens = item
        noise, ones = even_noise(len(states), tokens.shape[1]), torch.ones(len(states))
        module(states, tokens[:, 0], tokens[:, 1 : 1 + len(module.steps)], *noise, ones, ones.long())

    with record.watching(module, "depth.", every=-(-len(rows) // _KEPT_ROWS)):
        record.each(run, zip(rows.split(_ROWS), target.split(_ROWS), strict=True))
    return record


def _with(calibration: Calibration, record: Record) -> Calibration:
    """The calibration, with what was recorded in place of its own."""
    return replace(
        calibration,
        largest={**calibration.largest, **record.largest},
        mean_square={**calibration.mean_square, **record.mean_square},
        directions={**calibration.directions, **record.directions},
    )
