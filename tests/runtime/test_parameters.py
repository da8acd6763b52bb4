"""Parameters counted from the config equal those of the exported modules."""

from dataclasses import replace

import pytest

from pplex.export import weights
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import RELEASED
from pplex.runtime.parameters import Group, Parameters, parameters, weights_nbytes
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import PRECISIONS, parse_precision


@pytest.mark.parametrize("graph", GRAPH_NAMES)
@pytest.mark.parametrize("depth_steps", [8, 16])
def test_counts_equal_those_of_the_modules(tiny_bundle: Bundle, graph: str, depth_steps: int) -> None:
    for sizes in (tiny_bundle.config, RELEASED):
        config = replace(sizes, depth_steps=depth_steps)
        counted = sum(parameter.numel() for parameter in weights.parameters(graph, config).values())
        assert parameters(config)[graph].count == counted


@pytest.mark.parametrize(
    "precision, nbytes",
    [
        ("fp32", 4 * 64 * 96 + 4 * 64 * 7 + 4 * 10 + 4 * 8),
        ("fp16", 2 * 64 * 96 + 2 * 64 * 7 + 2 * 10 + 4 * 8),
        ("fp8", 64 * 96 + 2 * 96 + 2 * 64 * 7 + 2 * 10 + 4 * 8),
        ("int8", 64 * 96 + 2 * 2 * 96 + 64 * 7 + 2 * 2 * 7 + 2 * 10 + 4 * 8),  # two blocks of 32 a column
        ("int4", 64 * 96 // 2 + 2 * 2 * 96 + 64 * 7 + 2 * 2 * 7 + 2 * 10 + 4 * 8),
    ],
)
def test_bytes_by_precision(precision: str, nbytes: int) -> None:
    assert (
        Parameters((Group("matrix", ((64, 96),)), Group("text_linear", ((64, 7),))), plain=10, float32=8).nbytes(
            PRECISIONS[precision]
        )
        == nbytes
    )


def test_codec_and_language_model_have_separate_precisions() -> None:
    mixed = weights_nbytes(RELEASED, parse_precision("temporal=int4"))
    assert mixed["mimi_encode"] == 4 * parameters(RELEASED)["mimi_encode"].count
    assert mixed["depth"] == 4 * parameters(RELEASED)["depth"].count
    assert mixed["temporal"] < 4.5 * parameters(RELEASED)["temporal"].count * 1.2 / 8
