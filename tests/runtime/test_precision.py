"""What --precision takes, and what is said of what it does not."""

import pytest

from pplex.runtime.errors import ConfigError
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import FP32, check_precision, parse_precision, storage_dtype


def test_one_name_is_the_language_models() -> None:
    assert parse_precision("int4") == {**FP32, "temporal": "int4", "depth": "int4"}


def test_a_name_for_each_graph() -> None:
    chosen = parse_precision(" depth = int8, mimi_decode=fp16 ")
    assert chosen == {**FP32, "depth": "int8", "mimi_decode": "fp16"} and tuple(chosen) == GRAPH_NAMES


@pytest.mark.parametrize(
    "text", ["", ",", "fp8,fp8", "fp8,int4", "temporal=", "=fp8", "temporal=fp8,temporal=int4", "fp32,"]
)
def test_what_is_no_precision_is_told_how_one_looks(text: str) -> None:
    with pytest.raises(ConfigError, match=r"temporal=fp8,depth=int8|no precision of temporal: ''"):
        parse_precision(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("fp7", r"no precision of temporal: 'fp7', only fp32, .*; there is no precision of depth: 'fp7'"),
        ("x=fp8", r"^there is no graph 'x', only mimi_encode, temporal, depth, mimi_decode\.$"),
        ("mimi_encode=int4", r"no precision of mimi_encode: 'int4', only fp32, fp16"),
    ],
)
def test_all_that_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_precision(text)


def test_every_graph_needs_one() -> None:
    with pytest.raises(ConfigError, match="depth has no precision"):
        check_precision({graph: "fp32" for graph in GRAPH_NAMES if graph != "depth"})


def test_bfloat16_is_kept_as_its_bits() -> None:
    assert storage_dtype("bfloat16") == "uint16" and storage_dtype("float16") == "float16"
