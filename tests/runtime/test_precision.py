"""Values of --precision, and the errors for invalid ones."""

import pytest

from pplex.runtime.errors import ConfigError
from pplex.runtime.pipeline import GRAPH_NAMES
from pplex.runtime.precision import FP32, check_precision, parse_precision, storage_dtype


def test_one_name_applies_to_the_language_model() -> None:
    assert parse_precision("int4") == {**FP32, "temporal": "int4", "depth": "int4"}


def test_a_name_for_each_graph() -> None:
    chosen = parse_precision(" depth = int8, mimi_decode=fp16 ")
    assert chosen == {**FP32, "depth": "int8", "mimi_decode": "fp16"} and tuple(chosen) == GRAPH_NAMES


@pytest.mark.parametrize(
    "text", ["", ",", "fp8,fp8", "fp8,int4", "temporal=", "=fp8", "temporal=fp8,temporal=int4", "fp32,"]
)
def test_an_invalid_precision_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"temporal=fp8,depth=int8|unknown precision of temporal: ''"):
        parse_precision(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("fp7", r"unknown precision of temporal: 'fp7' \(known: fp32, .*\); unknown precision of depth: 'fp7'"),
        ("x=fp8", r"^unknown graph: 'x' \(known: mimi_encode, temporal, depth, mimi_decode\)\.$"),
        ("mimi_encode=int4", r"unknown precision of mimi_encode: 'int4' \(known: fp32, fp16"),
    ],
)
def test_every_fault_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_precision(text)


def test_every_graph_needs_a_precision() -> None:
    with pytest.raises(ConfigError, match="depth has no precision"):
        check_precision({graph: "fp32" for graph in GRAPH_NAMES if graph != "depth"})


def test_bfloat16_is_stored_as_its_bits() -> None:
    assert storage_dtype("bfloat16") == "uint16" and storage_dtype("float16") == "float16"
