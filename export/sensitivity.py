"""Measures the drift of text and audio that each form of each matrix causes by its rounding: called by `export.build`.

Two conversations are probed, one with a voice's prompt and one without: such a prompt lowers the drift of what follows by up
to half, and not all conversations begin with one.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplex.engines.assignment import Costs
from pplex.export.calibration import (
    Calibration,
    calibration_nbytes,
    find_conversations,
    stored_calibration,
    weights_mark,
)
from pplex.export.checkpoint import Checkpoint
from pplex.export.conversations import CalibrationSet, without_voice
from pplex.export.form_costs import KINDS, Rounding, added
from pplex.export.probing import counted, probed
from pplex.runtime.bundle import Voice
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import CalibrationError
from pplex.runtime.files import check_readable, is_file, read_text
from pplex.runtime.forms import group_of, offered
from pplex.runtime.parameters import parameters
from pplex.runtime.pipeline import LANGUAGE_GRAPHS

SENSITIVITY_FILE = "sensitivity.json"


@dataclass(frozen=True)
class Sensitivity:
    """The cost of each form of each group, for each kind of graph, and its origin."""

    costs: Mapping[str, Costs]
    source: Mapping[str, Any]

    def of(self, compiled: bool) -> Costs:
        """The costs for engines, or for processors."""
        return self.costs[KINDS[compiled]]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"source": dict(self.source), "costs": self.costs}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, config: ModelConfig, weights_mark: str) -> "Sensitivity":
        """Read a file that `save` wrote. Raises CalibrationError if it is damaged, or is for another model."""
        try:
            check_readable(path)
            read = json.loads(read_text(path))
            source = dict(read["source"])
            costs = {kind: _costs(read["costs"][kind]) for kind in KINDS}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CalibrationError(f"{path} cannot be read ({error}). Delete it, and measure again.") from error
        expected = {graph: {group.name for group in parameters(config)[graph].groups} for graph in LANGUAGE_GRAPHS}
        if any({graph: set(groups) for graph, groups in of.items()} != expected for of in costs.values()):
            raise CalibrationError(f"{path} is for a model with other sizes or depth steps. Measure again.")
        if source.get("weights") != weights_mark:
            raise CalibrationError(f"{path} is for a checkpoint with other weights. Measure again.")
        return cls(costs, source)


def stored_sensitivity(given: str | os.PathLike[str]) -> Path | None:
    """The file of a stored sensitivity, beside a stored calibration; None if it was not measured."""
    calibration = stored_calibration(given)
    path = None if calibration is None else calibration.with_name(SENSITIVITY_FILE)
    return path if path is not None and is_file(path) else None


def find_sensitivity(
    given: str | os.PathLike[str],
    checkpoint: Checkpoint,
    config: ModelConfig,
    calibration: Calibration,
    voices: Mapping[str, Voice],
    progress: Callable[[int], None],
) -> Sensitivity:
    """The sensitivity beside the calibration that BuildOptions names, or a new one. Raises CalibrationError."""
    stored = stored_sensitivity(given)
    if stored is not None:
        return Sensitivity.load(stored, config, weights_mark(checkpoint))
    conversations = find_conversations(given, checkpoint, voices)
    return measure_sensitivity(checkpoint, config, calibration, conversations, progress)


def _costs(read: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Costs:
    return {
        graph: {
            group: {form: (float(text), float(audio)) for form, (text, audio) in of.items()}
            for group, of in groups.items()
        }
        for graph, groups in read.items()
    }


def sensitivity_nbytes(config: ModelConfig) -> int:
    """Total bytes that `measure_sensitivity` reports to its progress, about: the layers are read forward and back."""
    return 2 * calibration_nbytes(config)


def measure_sensitivity(
    checkpoint: Checkpoint,
    config: ModelConfig,
    calibration: Calibration,
    conversations: CalibrationSet,
    progress: Callable[[int], None],
) -> Sensitivity:
    """The cost of each form, on the first two conversations. `progress` gets the bytes of float32 weights read."""
    first, *others = conversations.items
    items = [without_voice(first), *others[:1]]
    counts = [counted(config, item) for item in items]
    rounding = {graph: Rounding(graph, config, calibration) for graph in LANGUAGE_GRAPHS}
    table = parameters(config)
    costs = {
        kind: {
            graph: {
                group.name: dict.fromkeys(offered(kind == KINDS[True]), (0.0, 0.0)) for group in table[graph].groups
            }
            for graph in LANGUAGE_GRAPHS
        }
        for kind in KINDS
    }
    for part in probed(checkpoint, config, items, progress):
        for name, found in rounding[part.graph].costs(part, counts).items():
            for kind, of_forms in found.items():
                group = costs[kind][part.graph][group_of(name)]
                for form, cost in of_forms.items():
                    group[form] = added(group[form], cost)
        del part  # before the next part's matrices are read
    source = {
        **conversations.source,
        "weights": weights_mark(checkpoint),
        "distributions": [vars(count) for count in counts],
    }
    return Sensitivity(costs, source)
