"""Counts the bytes of a graph's weights in a precision from the model's sizes, without a checkpoint or torch.

Called by builds, plans, `bench` and `doctor`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pplex.runtime.config import CODEBOOKS, MimiConfig, ModelConfig, TransformerConfig
from pplex.runtime.forms import FORMS, NO_FORMS, Form, Forms, role_of
from pplex.runtime.graphs import Conv, downsample, seanet_decoder, seanet_encoder, upsample
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import BUILT, Precision, storage_dtype

# Bits of one weight in formats without a numpy dtype.
_BITS = {"float8_e4m3fn": 8, "int4": 4}
_SCALED = ("float8_e4m3fn", "int8", "int4")

Matrix = tuple[int, int]  # [inputs, outputs]
NO_FORM: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Group:
    """Matrices that a mixed precision stores in one form. Named as by `forms.group_of`."""

    name: str
    matrices: tuple[Matrix, ...]

    def nbytes(self, form: Form, activations: str) -> int:
        return sum(_matrix_nbytes(matrix, form, activations) for matrix in self.matrices)


@dataclass(frozen=True)
class Parameters:
    """A graph's parameters by their storage.

    A quantized precision quantizes the matrices of `groups`. `plain` counts embeddings and most of the codec, which are
    stored like the activations. `float32` counts the norms, the codec's codebooks and
    the scales of rings in int8.
    """

    groups: tuple[Group, ...]
    plain: int
    float32: int

    @property
    def count(self) -> int:
        return sum(math.prod(one) for group in self.groups for one in group.matrices) + self.plain + self.float32

    def nbytes(self, precision: Precision, compiled: bool = False, forms: Mapping[str, str] = NO_FORM) -> int:
        """`forms`: those of a mixed precision, by group."""
        dtype = precision.activations
        given = {name: FORMS[form] for name, form in forms.items()}
        matrices = sum(
            group.nbytes(given.get(group.name) or precision.form(role_of(group.name), compiled), dtype)
            for group in self.groups
        )
        return matrices + storage_dtype(dtype).itemsize * self.plain + 4 * self.float32


def step_nbytes(config: ModelConfig, precision: Mapping[str, str], forms: Forms = NO_FORMS) -> dict[str, int]:
    """Bytes of weights and scales that a step of each language graph reads: all but the embeddings."""
    table = parameters(config)
    return {
        graph: replace(table[graph], plain=0).nbytes(BUILT[precision[graph]], forms=forms.get(graph, NO_FORM))
        for graph in LANGUAGE_GRAPHS
    }


def weights_nbytes(
    config: ModelConfig, precision: Mapping[str, str], compiled: bool = False, forms: Forms = NO_FORMS
) -> dict[str, int]:
    """Bytes of weights and scales by graph. `precision`: a name in BUILT for each graph. `compiled`: in engines."""
    table = parameters(config)
    return {
        graph: table[graph].nbytes(BUILT[name], compiled, forms.get(graph, NO_FORM))
        for graph, name in precision.items()
    }


def prepared_nbytes(
    config: ModelConfig, precision: Mapping[str, str], compiled: bool = False, forms: Forms = NO_FORMS
) -> dict[str, int]:
    """Bytes of weights as `runtime.prepared` caches them for a processor: scales and embeddings become float32."""
    table = parameters(config)
    wide = {graph: replace(BUILT[name], activations="float32") for graph, name in precision.items()}
    return {graph: table[graph].nbytes(one, compiled, forms.get(graph, NO_FORM)) for graph, one in wide.items()}


def build_nbytes(config: ModelConfig, precision: Mapping[str, str], compiled: bool, forms: Forms = NO_FORMS) -> int:
    """Bytes of disk that a build takes: engines are as large as their graphs, and one graph is on disk beside them."""
    weights = weights_nbytes(config, precision, compiled, forms).values()
    return sum(weights) + (max(weights) if compiled else 0)


def parameters(config: ModelConfig) -> dict[str, Parameters]:
    """The parameters of each graph, by its name."""
    mimi = config.mimi
    encoder, decoder = seanet_encoder(mimi), seanet_decoder(mimi)
    return {
        "mimi_encode": _codec((*encoder.convs(), downsample(mimi)), mimi),
        "temporal": _temporal(config),
        "depth": _depth(config),
        "mimi_decode": _codec((upsample(mimi), *decoder.convs()), mimi),
    }


def _matrix_nbytes(matrix: Matrix, form: Form, activations: str) -> int:
    """Bytes of weights, and of scales in the activations' dtype: one for each block, or for each column without blocks."""
    inputs, outputs = matrix
    nbytes = -(-math.prod(matrix) * (_BITS.get(form.dtype) or 8 * storage_dtype(form.dtype).itemsize) // 8)
    if form.dtype not in _SCALED:
        return nbytes
    block = form.block_of(inputs)
    blocks = inputs // block if block else 1
    return nbytes + blocks * outputs * storage_dtype(activations).itemsize


def _temporal(config: ModelConfig) -> Parameters:
    stack = config.temporal
    rows = config.text_card + 1 + (config.num_streams - 1) * (config.audio_card + 1)
    norms = (2 * stack.layers + 1) * stack.dim
    scales = 2 * stack.layers * stack.dim if config.int8_rings else 0
    names = ("attention.in_proj", "attention.out_proj", "gating.linear_in", "gating.linear_out")
    groups = [
        Group(f"layers.{i}.{name}", (matrix,))
        for i in range(stack.layers)
        for name, matrix in zip(names, _layer(stack), strict=True)
    ]
    head = Group("text_linear", ((stack.dim, config.text_card),))
    return Parameters((*groups, head), rows * stack.dim, norms + scales)


def _depth(config: ModelConfig) -> Parameters:
    """One set of weights for each step. Step 0 reads the text token, every other step an audio token."""
    stack, steps = config.depth, config.depth_steps
    names = ("in_proj", "out_proj", "linear_in", "linear_out")
    groups: list[Group] = []
    for k in range(steps):
        groups.append(Group(f"steps.{k}.input", ((config.temporal.dim, stack.dim),)))
        groups += [
            Group(f"steps.{k}.{name}", (matrix,) * stack.layers)
            for name, matrix in zip(names, _layer(stack), strict=True)
        ]
        groups.append(Group(f"steps.{k}.output", ((stack.dim, config.audio_card),)))
    rows = config.text_card + 1 + (steps - 1) * (config.audio_card + 1)
    return Parameters(tuple(groups), rows * stack.dim, 2 * stack.layers * stack.dim)


def _layer(stack: TransformerConfig) -> tuple[Matrix, ...]:
    """The two projections of attention, and the two of the gated block."""
    dim, hidden = stack.dim, stack.hidden
    return (dim, 3 * dim), (dim, dim), (dim, 2 * hidden), (hidden, dim)


def _codec(convs: Iterable[Conv], mimi: MimiConfig) -> Parameters:
    stack = mimi.transformer
    layer = 4 * stack.dim**2 + 2 * stack.dim * stack.hidden + 2 * stack.dim  # and two norms with bias
    quantizer = 2 * mimi.dim * mimi.codebook_dim + CODEBOOKS * mimi.codebook_size * mimi.codebook_dim
    plain = sum(map(_conv, convs)) + stack.layers * layer
    return Parameters((), plain, stack.layers * 4 * stack.dim + quantizer)


def _conv(conv: Conv) -> int:
    return conv.outputs * (1 if conv.depthwise else conv.inputs) * conv.kernel + conv.bias * conv.outputs
