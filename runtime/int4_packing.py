"""Packs int4 weights for our kernel: the layout of kernels/src/layout.h. Called by `runtime.int4_graph`.

ONNX Runtime's operator MatMulNBits stores column after column; our kernel reads groups of 16 columns block by block.
"""

from collections.abc import Iterator

import numpy as np

from pplex.runtime.arrays import Array

COLUMNS = 16  # of a group
_PART = 32  # weights of a column that stand together, in 4 lines of 4 low and 4 high halves of bytes
_SLICE = 512  # columns packed at a time: the temporary arrays stay small


def packed(values: Array, scales: Array) -> Iterator[Array]:
    """Pieces of the packed matrix, each [groups, blocks, 16 * (block / 2 + 2)] uint8.

    values [N, blocks, block / 2] uint8: two weights a byte, plus 8, the first in the low half. scales [N, blocks] float16.
    """
    for start in range(0, len(values), _SLICE):
        yield _packed_slice(values[start : start + _SLICE], scales[start : start + _SLICE])


def packed_shape(outputs: int, blocks: int, block: int) -> tuple[int, int, int]:
    """The shape of a packed matrix: groups, blocks, bytes of a block."""
    return -(-outputs // COLUMNS), blocks, COLUMNS * (block // 2 + 2)


def _packed_slice(values: Array, scales: Array) -> Array:
    columns, blocks, half = values.shape
    groups, _, nbytes = packed_shape(columns, blocks, 2 * half)
    parts = 2 * half // _PART
    filled = np.zeros((groups * COLUMNS, blocks, half), np.uint8)
    filled[:columns] = values
    stored = filled.reshape(groups, COLUMNS, blocks, parts, 2, 4, 2)  # bytes of k = 16h + 4j + 0, 1 and + 2, 3
    low, high = stored[:, :, :, :, 0], stored[:, :, :, :, 1]  # [groups, columns, blocks, parts, j, 2]
    lines = np.empty((groups, blocks, parts, 4, COLUMNS, 4), np.uint8)
    lines[..., 0::2] = (low & 15 | high << 4).transpose(0, 2, 3, 4, 1, 5)
    lines[..., 1::2] = (low >> 4 | high & 240).transpose(0, 2, 3, 4, 1, 5)
    result = np.empty((groups, blocks, nbytes), np.uint8)
    result[..., : COLUMNS * half] = lines.reshape(groups, blocks, -1)
    padded = np.zeros((groups * COLUMNS, blocks), np.float16)
    padded[:columns] = scales
    by_block = np.ascontiguousarray(padded.reshape(groups, COLUMNS, blocks).transpose(0, 2, 1))
    result[..., COLUMNS * half :] = by_block.view(np.uint8)
    return result
