"""What could make int4 drift less at equal bytes: rotations, calibrations of several lengths, layers in int8.

    python benchmarks/low_bits.py CHECKPOINT [--held HELD_OUT.npz] [--only rotation] --out FILE.json

Rounds the weights in torch, with float32 activations, and measures the drift on conversations that no calibration has.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from low_bits_exponents import EXPONENTS
from low_bits_model import INT4, Modules, Outputs, Recipe, drifts, exact_modules, outputs, rounded_modules
from low_bits_rotation import Rotation
from low_bits_sequential import rounded_in_turn

from pplex.engines.assignment import upgrades
from pplex.export.calibration import Calibration, calibrate
from pplex.export.checkpoint import Checkpoint, open_checkpoint
from pplex.export.conversations import (
    CalibrationSet,
    ForcedHistory,
    default_conversations,
    token_history,
    unheard_pieces,
)
from pplex.export.sensitivity import measure_sensitivity
from pplex.export.voices import find_voices
from pplex.runtime.config import ModelConfig
from pplex.runtime.forms import Forms, role_of
from pplex.runtime.parameters import parameters, weights_nbytes
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import BUILT, FP32, MIXED
from pplex.runtime.text import Tokenizer

CONVERSATIONS, USUAL, HISTORIES, FRAMES, PAIRS = 32, 16, 4, 96, 5
SETS = ((0, 16), (16, 32), (0, 8), (8, 16), (16, 24), (24, 32))  # of conversations
INT8 = "int8/32"


@dataclass
class Trial:
    """One checkpoint, its conversations for calibration and for the figures, and the exact model's outputs."""

    checkpoint: Checkpoint
    held: Path | None
    out: Path
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    @cached_property
    def conversations(self) -> CalibrationSet:
        voices = find_voices(self.checkpoint.folder, self.config).voices
        return default_conversations(self.checkpoint, Tokenizer(self.checkpoint.tokenizer), voices, CONVERSATIONS)

    @cached_property
    def histories(self) -> list[ForcedHistory]:
        if self.held is not None:
            found = list(np.load(self.held)["columns"].astype(np.int64))
        else:
            pieces = unheard_pieces(self.config, 2 * HISTORIES)
            found = [token_history(self.checkpoint, pieces[2 * i : 2 * i + 2], FRAMES) for i in range(HISTORIES)]
        limit = self.config.temporal.capacity - 1
        codes = [torch.from_numpy(one[:limit]) for one in found]
        return [ForcedHistory(one, torch.zeros(len(one), self.config.temporal.dim)) for one in codes]

    @cached_property
    def exact(self) -> Outputs:
        return outputs(exact_modules(self.checkpoint, self.config), self.config, self.histories)

    def calibration(self, items: slice = slice(0, USUAL)) -> Calibration:
        return self.calibrated(self.checkpoint, self.conversations.items[items])

    def calibrated(self, checkpoint: Checkpoint, items: Sequence[ForcedHistory]) -> Calibration:
        return calibrate(checkpoint, self.config, CalibrationSet(items, {}), lambda nbytes: None)

    @cached_property
    def usual(self) -> Calibration:
        return self.calibration()

    def add(self, name: str, make: Callable[[], Modules], forms: Forms | None = None, same_basis: bool = True) -> None:
        """Measure a model and write all rows until now."""
        start = time.process_time()
        modules = make()
        seconds = time.process_time() - start
        row = drifts(outputs(modules, self.config, self.histories), self.exact, same_basis)
        self.rows[name] = {"mb": self.megabytes(forms), **row, "cpu_s": seconds, "steps": len(self.exact.hidden)}
        self.out.write_text(json.dumps(self.rows, indent=1) + "\n")
        print(
            f"{name:44} text {row['text']:.3e} audio {row['audio']:.3e} ({seconds:.0f} s)", file=sys.stderr, flush=True
        )

    def megabytes(self, forms: Forms | None) -> float:
        precision = INT4 if forms is None else dict.fromkeys(LANGUAGE_GRAPHS, MIXED.name)
        nbytes = weights_nbytes(self.config, {**FP32, **precision}, forms=forms or {})
        return sum(nbytes[graph] for graph in LANGUAGE_GRAPHS) / 1e6

    def rounded(self, recipe: Recipe) -> Callable[[], Modules]:
        return partial(rounded_modules, self.checkpoint, self.config, recipe)


def methods(trial: Trial) -> None:
    for name, recipe in _recipes(trial.usual).items():
        trial.add(name, trial.rounded(recipe))


def rotation(trial: Trial) -> None:
    """The calibration of a rotated model runs the same conversations, with rotated voices."""
    chosen, config = Rotation.drawn(trial.config), trial.config
    named = {"rotated": chosen.of_streams, "rotated, heads too": chosen, "rotated depth only": chosen.of_depth}
    for name, of in named.items():
        turned = of.applied(trial.checkpoint)
        items = [
            ForcedHistory(one.codes, (one.embedding.double() @ of.temporal).float())
            for one in trial.conversations.items[:USUAL]
        ]
        trial.add(f"{name}, float32", partial(exact_modules, turned, config), same_basis=False)
        for label, recipe in _recipes(trial.calibrated(turned, items)).items():
            trial.add(f"{name}, {label}", partial(rounded_modules, turned, config, recipe), same_basis=False)


def _recipes(calibration: Calibration) -> dict[str, Recipe]:
    return {
        "round to nearest": Recipe(None),
        "no AWQ, no compensation": Recipe(calibration, awq=None, compensate=False),
        "AWQ": Recipe(calibration, compensate=False),
        "compensation": Recipe(calibration, awq=None),
        "AWQ, compensation": Recipe(calibration),
    }


def exponents(trial: Trial) -> None:
    """Other ways to choose the exponent of AWQ, each with several calibrations."""
    for start, stop in SETS:
        found = trial.calibration(slice(start, stop))
        for name, folding in EXPONENTS.items():
            trial.add(f"conversations {start} to {stop}, {name}", trial.rounded(Recipe(found, folding)))


def sequential(trial: Trial) -> None:
    """Each layer's inputs are measured after the layers before it were rounded."""
    for name in ("AWQ, compensation", "compensation"):
        recipe = _recipes(trial.usual)[name]
        items = trial.conversations.items[:USUAL]
        trial.add(f"sequential, {name}", partial(rounded_in_turn, trial.checkpoint, trial.config, recipe, items))


def minutes(trial: Trial) -> None:
    """Calibrations of 1 to 32 conversations: the first ones, and others."""
    for start, counts in ((0, (1, 2, 4, 8, 16, 32)), (16, (1, 2, 4, 8, 16))):
        for count in counts:
            found = trial.calibration(slice(start, start + count))
            trial.add(f"{count} conversations from {start}", trial.rounded(Recipe(found)))


def layers(trial: Trial) -> None:
    """Two layers of the temporal transformer in int8, and the best mix of the same bytes."""
    count = trial.config.temporal.layers
    pairs = [pair for pair in combinations(range(count), 2) if pair != (0, count - 1)]
    others = pairs[:: max(1, len(pairs) // PAIRS)][:PAIRS]
    protected = {pair: _protected(trial.config, pair) for pair in [(0, count - 1), *others]}
    for name, part in (("inputs of depth in int8", ".input"), ("depth in int8", "")):
        raised = _int4(trial.config)
        raised["depth"] |= {group: INT8 for group in raised["depth"] if group.endswith(part)}
        trial.add(name, trial.rounded(Recipe(trial.usual, forms=raised)), raised)
    mix = _mix(trial, trial.megabytes(protected[0, count - 1]))
    trial.add("the mix of the same bytes", trial.rounded(Recipe(trial.usual, forms=mix)), mix)
    for (a, b), forms in protected.items():
        trial.add(f"layers {a} and {b} in int8", trial.rounded(Recipe(trial.usual, forms=forms)), forms)


def _mix(trial: Trial, megabytes: float) -> Forms:
    """The forms that `build --fit` chooses for these megabytes."""
    measured = measure_sensitivity(
        trial.checkpoint, trial.config, trial.usual, trial.conversations, lambda nbytes: None
    )
    found = upgrades(trial.config, measured.of(compiled=False), compiled=False)
    each = [found.forms(count) for count in range(len(found.steps) + 1)]
    return [forms for forms in each if trial.megabytes(forms) <= megabytes][-1]


def _int4(config: ModelConfig) -> dict[str, dict[str, str]]:
    """The forms of int4 by group, written out."""
    table, int4 = parameters(config), BUILT["int4"]
    return {
        graph: {group.name: int4.form(role_of(group.name), False).name for group in table[graph].groups}
        for graph in LANGUAGE_GRAPHS
    }


def _protected(config: ModelConfig, chosen: tuple[int, ...]) -> Forms:
    forms = _int4(config)
    for name in forms["temporal"]:
        if any(name.startswith(f"layers.{i}.") for i in chosen):
            forms["temporal"][name] = INT8
    return forms


PARTS = {
    "methods": methods,
    "rotation": rotation,
    "exponents": exponents,
    "sequential": sequential,
    "minutes": minutes,
    "layers": layers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--held", type=Path, help="token columns of recorded dialogues, instead of synthetic speech")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    trial = Trial(open_checkpoint(given.checkpoint), given.held, given.out)
    for name in given.only or PARTS:
        PARTS[name](trial)


if __name__ == "__main__":
    main()
