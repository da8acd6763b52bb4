"""Folding factors into weights keeps the function, and reduces the rounding error."""

import pytest
import torch
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.awq import Folding
from pplex.export.calibration import Calibration, calibrate
from pplex.export.checkpoint import VOICES_FILE, Checkpoint, open_checkpoint
from pplex.export.conversations import default_conversations
from pplex.export.quantize import to_int
from pplex.export.storage import storages
from pplex.export.synth import synthesize
from pplex.export.voices import read_voices
from pplex.runtime.graphs import graph_specs
from pplex.runtime.precision import parse_precision
from pplex.runtime.text import Tokenizer

INT4 = parse_precision("int4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = synthesize(tmp_path_factory.mktemp("outliers") / "checkpoint", "tiny", outliers=True)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint) -> Calibration:
    config, tokenizer = checkpoint.config, Tokenizer(checkpoint.tokenizer)
    voices = read_voices(checkpoint.folder / VOICES_FILE, config)
    return calibrate(checkpoint, config, default_conversations(checkpoint, tokenizer, voices), lambda nbytes: None)


def folds_of(graph: str, checkpoint: Checkpoint, calibration: Calibration) -> dict[str, object]:
    table, stored = weights.sources(graph, checkpoint.config, checkpoint), storages(graph, checkpoint.config, INT4)
    return dict(Folding(graph, lambda name: table[name].read(checkpoint), calibration, stored).folds(checkpoint.config))


def outputs(module: nn.Module, graph: str, checkpoint: Checkpoint) -> Tensor:
    """Float outputs of a call with random inputs."""
    random, inputs = torch.Generator().manual_seed(1), []
    for tensor in graph_specs(checkpoint.config)[graph].all_inputs:
        shape = [{"B": 2, "T": 5, "C": 64}.get(str(dim), dim) for dim in tensor.shape]
        if tensor.name == "position":
            inputs.append(torch.zeros(2, dtype=torch.int64))
        elif tensor.dtype == "int64":
            inputs.append(torch.randint(0, 900, shape, generator=random))  # type: ignore[arg-type]
        else:
            inputs.append(torch.rand(shape, generator=random) + 0.1)  # type: ignore[arg-type]
    with torch.inference_mode():
        got = module(*inputs)
    return torch.cat(
        [t.flatten() for t in got[: len(graph_specs(checkpoint.config)[graph].outputs)] if t.is_floating_point()]
    )


@pytest.mark.parametrize("graph", ["temporal", "depth"])
def test_folding_keeps_the_function(checkpoint: Checkpoint, calibration: Calibration, graph: str) -> None:
    module = weights.load(graph, checkpoint)
    expected = outputs(module, graph, checkpoint)
    folds = folds_of(graph, checkpoint, calibration)
    state = module.state_dict()
    assert folds.keys() < state.keys()
    changed = {name: folds[name](value) if name in folds else value for name, value in state.items()}  # type: ignore[operator]
    assert any(not torch.equal(changed[name], state[name]) for name in folds)
    module.load_state_dict(changed)
    torch.testing.assert_close(outputs(module, graph, checkpoint), expected, rtol=1e-4, atol=1e-4)


def test_scaling_heavy_channels_up_reduces_their_error(checkpoint: Checkpoint, calibration: Calibration) -> None:
    name = "layers.1.gating.linear_in.weight"
    weight = weights.sources("temporal", checkpoint.config, checkpoint)[name].read(checkpoint)
    fold = folds_of("temporal", checkpoint, calibration)[name]
    square = calibration.mean_square[f"temporal.{name}"]
    assert square.max() > 20 * square.median()
    rows, columns = fold.rows[:, None], fold.columns  # type: ignore[attr-defined]
    scaled = to_int(weight * rows * columns, 4, 32, square / fold.rows.square())  # type: ignore[attr-defined]
    errors = [
        float(((rounded - weight).square().sum(1) * square).sum())
        for rounded in (to_int(weight, 4, 32).dequantized(), scaled.dequantized() / rows / columns)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_depth_step_parameters_are_all_found(checkpoint: Checkpoint, calibration: Calibration) -> None:
    folded = set(folds_of("depth", checkpoint, calibration))
    inside = {
        name for name in storages("depth", checkpoint.config, INT4) if ".input." not in name and ".output." not in name
    }
    assert inside < folded and all("norm" in name for name in folded - inside)
