"""The precisions of a graph: how its activations and weights are stored. Used by all packages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pplex.runtime.errors import ConfigError
from pplex.runtime.forms import Form, Role
from pplex.runtime.pipeline import GRAPH_NAMES, LANGUAGE_GRAPHS

if TYPE_CHECKING:  # the doctor lists precisions even if numpy is broken
    import numpy as np


@dataclass(frozen=True)
class Precision:
    """One name of `--precision`. In every precision, norms, softmax, RoPE and sampling are float32.

    activations: dtype between the layers, and of the rings. weights: dtype of the matrices.
    heads: dtype of the matrices that give the logits. They are 2 % of the bytes, and their errors directly change the
    sampling. So they have 8 bits in int4, and 16 bits in fp8.
    inputs: dtype of the depth steps' inputs, if it is another one. They read the hidden state without a norm between, so AWQ
    has nothing to fold its factors into: docs/precision.md.
    block: number of consecutive weights that share a scale (0: one scale for each column, or none).
    """

    name: str
    activations: str
    weights: str
    heads: str
    block: int = 0
    inputs: str = ""

    def form(self, role: Role, compiled: bool) -> Form:
        """How matrices of this role are stored.

        `compiled`: for an engine. TensorRT-RTX 1.7 multiplies blocks of int4 as they are, but for blocks of int8 it writes
        the whole matrix in float16 before each product. So a compiled graph has one scale for each column of int8.
        """
        dtype = {"head": self.heads, "input": self.inputs or self.weights}.get(role, self.weights)
        return Form(dtype, 0 if compiled and dtype == "int8" else self.block)


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        p.name: p
        for p in (
            Precision("fp32", "float32", "float32", "float32"),
            Precision("fp16", "float16", "float16", "float16"),
            Precision("bf16", "bfloat16", "bfloat16", "bfloat16"),
            Precision("fp8", "float16", "float8_e4m3fn", "float16"),
            Precision("int8", "float16", "int8", "int8", block=32),
            Precision("int4", "float16", "int4", "int8", block=32, inputs="int8"),
        )
    }
)
AUTO = "auto"  # the precision that `build` chooses: see engines/choice.py
# Each group of matrices has its own form (runtime/forms.py): `build --fit` chooses them. A group without one is as in int4.
MIXED = Precision("mixed", "float16", "int4", "int8", block=32, inputs="int8")
BUILT: Mapping[str, Precision] = MappingProxyType({**PRECISIONS, MIXED.name: MIXED})  # those that a bundle can have
CODEC_PRECISIONS = ("fp32", "fp16")  # TensorRT-RTX does not support a transposed convolution in bfloat16
FP32: Mapping[str, str] = MappingProxyType(dict.fromkeys(GRAPH_NAMES, "fp32"))


def parse_precision(text: str) -> dict[str, str]:
    """Parse `--precision` to graph -> name: "int4" for the language model, or "temporal=fp8,depth=int8".

    Graphs that are not named keep fp32; a single name is for the language graphs. Raises ConfigError.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and "=" not in text:
        return _nameable({**FP32, **dict.fromkeys(LANGUAGE_GRAPHS, parts[0])})
    given: dict[str, str] = {}
    for part in parts:
        graph, equals, name = (word.strip() for word in part.partition("="))
        if not (graph and equals and name) or graph in given:
            raise ConfigError(
                f"The precision {text!r} is neither one name ({', '.join(PRECISIONS)}) nor one for some graphs, such as "
                "temporal=fp8,depth=int8."
            )
        given[graph] = name
    return _nameable({**FP32, **given})


def check_precision(precision: Mapping[str, str]) -> dict[str, str]:
    """The same mapping in the graphs' order; raises ConfigError that lists every fault."""
    problems = _unknown("graph", set(precision) - set(GRAPH_NAMES), GRAPH_NAMES)
    problems += [f"{graph} has no precision" for graph in GRAPH_NAMES if graph not in precision]
    for graph in (graph for graph in GRAPH_NAMES if graph in precision):
        possible = tuple(BUILT) if graph in LANGUAGE_GRAPHS else CODEC_PRECISIONS
        problems += _unknown(f"precision of {graph}", {precision[graph]} - set(possible), possible)
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return {graph: precision[graph] for graph in GRAPH_NAMES}


def _nameable(precision: Mapping[str, str]) -> dict[str, str]:
    """The same mapping, checked: all but mixed, whose forms `build` measures. Raises ConfigError."""
    mixed = [graph for graph, name in precision.items() if name == MIXED.name]
    if mixed:
        raise ConfigError(
            f"{MIXED.name} ({' and '.join(mixed)}) is not a precision of one form. To let a build choose the form of each "
            f"matrix: --precision {MIXED.name}, --fit 8GB or --drift-budget text=0.01,audio=0.05."
        )
    return check_precision(precision)


def storage_dtype(name: str) -> "np.dtype[Any]":
    """The numpy dtype of buffers with values of `name`. numpy has no bfloat16, so its 16 bits are stored as integers."""
    import numpy as np

    return np.dtype("uint16" if name == "bfloat16" else name)


def _unknown(what: str, names: Iterable[str], possible: tuple[str, ...]) -> list[str]:
    return [f"unknown {what}: {name!r} (known: {', '.join(possible)})" for name in sorted(names)]
