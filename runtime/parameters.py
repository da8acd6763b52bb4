"""Counts the bytes of a graph's weights in a precision from the model's sizes, without a checkpoint or torch.

Called by builds, plans, `bench` and `doctor`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pplex.runtime.config import CODEBOOKS, MimiConfig, ModelConfig, TransformerConfig
from pplex.runtime.graphs import Conv, downsample, seanet_decoder, seanet_encoder, upsample
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.precision import PRECISIONS, Precision, storage_dtype

# Bits of one weight in formats without a numpy dtype.
_BITS = {"float8_e4m3fn": 8, "int4": 4}

Matrix = tuple[int, int]  # [inputs, outputs]


@dataclass(frozen=True)
class Parameters:
    """A graph's parameters by their storage.

    A quantized precision quantizes `matrices` and `heads`. `plain` counts embeddings and most of the codec, which are stored
    like the activations. `float32` counts the norms and the codec's codebooks.
    """

    matrices: tuple[Matrix, ...]
    heads: tuple[Matrix, ...]
    plain: int
    float32: int

    @property
    def count(self) -> int:
        return sum(math.prod(matrix) for matrix in (*self.matrices, *self.heads)) + self.plain + self.float32

    def nbytes(self, precision: Precision, compiled: bool = False) -> int:
        matrices = sum(_matrix_nbytes(matrix, precision.weights, precision, compiled) for matrix in self.matrices)
        heads = sum(_matrix_nbytes(matrix, precision.heads, precision, compiled) for matrix in self.heads)
        return matrices + heads + storage_dtype(precision.activations).itemsize * self.plain + 4 * self.float32


def step_nbytes(config: ModelConfig, precision: Mapping[str, str]) -> dict[str, int]:
    """Bytes of weights and scales that a step of each language graph reads: all but the embeddings."""
    table = parameters(config)
    return {graph: replace(table[graph], plain=0).nbytes(PRECISIONS[precision[graph]]) for graph in LANGUAGE_GRAPHS}


def weights_nbytes(config: ModelConfig, precision: Mapping[str, str], compiled: bool = False) -> dict[str, int]:
    """Bytes of weights and scales by graph. `precision`: a name in PRECISIONS for each graph. `compiled`: in engines."""
    table = parameters(config)
    return {graph: table[graph].nbytes(PRECISIONS[name], compiled) for graph, name in precision.items()}


def prepared_nbytes(config: ModelConfig, precision: Mapping[str, str], compiled: bool = False) -> dict[str, int]:
    """Bytes of weights as `runtime.prepared` caches them for a processor: scales and embeddings become float32."""
    table = parameters(config)
    wide = {graph: replace(PRECISIONS[name], activations="float32") for graph, name in precision.items()}
    return {graph: table[graph].nbytes(one, compiled) for graph, one in wide.items()}


def build_nbytes(config: ModelConfig, precision: Mapping[str, str], compiled: bool) -> int:
    """Bytes of disk that a build takes: engines are as large as their graphs, and one graph is on disk beside them."""
    weights = weights_nbytes(config, precision, compiled).values()
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


def _matrix_nbytes(matrix: Matrix, weights: str, precision: Precision, compiled: bool) -> int:
    """Bytes of weights, and of scales in the activations' dtype: one for each block, or for each column without blocks."""
    inputs, outputs = matrix
    nbytes = -(-math.prod(matrix) * (_BITS.get(weights) or 8 * storage_dtype(weights).itemsize) // 8)
    if weights == precision.activations:
        return nbytes
    block = precision.block_of(weights, inputs, compiled)
    blocks = inputs // block if block else 1
    return nbytes + blocks * outputs * storage_dtype(precision.activations).itemsize


def _temporal(config: ModelConfig) -> Parameters:
    stack = config.temporal
    rows = config.text_card + 1 + (config.num_streams - 1) * (config.audio_card + 1)
    norms = (2 * stack.layers + 1) * stack.dim
    return Parameters(_layer(stack) * stack.layers, ((stack.dim, config.text_card),), rows * stack.dim, norms)


def _depth(config: ModelConfig) -> Parameters:
    """One set of weights for each step. Step 0 reads the text token, every other step an audio token."""
    stack, steps = config.depth, config.depth_steps
    step = ((config.temporal.dim, stack.dim), *_layer(stack) * stack.layers)
    rows = config.text_card + 1 + (steps - 1) * (config.audio_card + 1)
    heads = ((stack.dim, config.audio_card),) * steps
    return Parameters(step * steps, heads, rows * stack.dim, 2 * stack.layers * stack.dim)


def _layer(stack: TransformerConfig) -> tuple[Matrix, ...]:
    """The two projections of attention, and the two of the gated block."""
    dim, hidden = stack.dim, stack.hidden
    return (dim, 3 * dim), (dim, dim), (dim, 2 * hidden), (hidden, dim)


def _codec(convs: Iterable[Conv], mimi: MimiConfig) -> Parameters:
    stack = mimi.transformer
    layer = 4 * stack.dim**2 + 2 * stack.dim * stack.hidden + 2 * stack.dim  # and two norms with bias
    quantizer = 2 * mimi.dim * mimi.codebook_dim + CODEBOOKS * mimi.codebook_size * mimi.codebook_dim
    plain = sum(map(_conv, convs)) + stack.layers * layer
    return Parameters((), (), plain, stack.layers * 4 * stack.dim + quantizer)


def _conv(conv: Conv) -> int:
    return conv.outputs * (1 if conv.depthwise else conv.inputs) * conv.kernel + conv.bias * conv.outputs
