"""Packs weights in blocks for our kernel: the layout of kernels/src/layout.h. Called by `runtime.kernel_graph`.

ONNX Runtime's operator MatMulNBits stores column after column; our kernel reads groups of 16 columns block by block.
"""

from collections.abc import Iterator

import numpy as np

from pplex.runtime.arrays import Array

COLUMNS = 16  # of a group
_PART = 32  # weights of a column that stand together
_SLICE = 512  # columns packed at a time: the temporary arrays stay small


def packed(values: Array, scales: Array, bits: int) -> Iterator[Array]:
    """Pieces of the packed matrix, each [groups, blocks, bytes of a block] uint8.

    values [N, blocks, block * bits / 8] uint8: weights of 8 bits plus 128, or two of 4 bits a byte, plus 8, the first in the
    low half. scales [N, blocks] float16.
    """
    for start in range(0, len(values), _SLICE):
        yield _packed_slice(values[start : start + _SLICE], scales[start : start + _SLICE], bits)


def packed_shape(outputs: int, blocks: int, block: int, bits: int) -> tuple[int, int, int]:
    """The shape of a packed matrix: groups, blocks, bytes of a block."""
    return -(-outputs // COLUMNS), blocks, COLUMNS * (block * bits // 8 + 2)


def _packed_slice(values: Array, scales: Array, bits: int) -> Array:
    columns, blocks, stored = values.shape
    groups, _, nbytes = packed_shape(columns, blocks, stored * 8 // bits, bits)
    filled = np.zeros((groups * COLUMNS, blocks, stored), np.uint8)
    filled[:columns] = values
    result = np.empty((groups, blocks, nbytes), np.uint8)
    lines = _lines_of_4(filled) if bits == 4 else _lines_of_8(filled)
    result[..., : COLUMNS * stored] = lines.reshape(groups, blocks, -1)
    padded = np.zeros((groups * COLUMNS, blocks), np.float16)
    padded[:columns] = scales
    by_block = np.ascontiguousarray(padded.reshape(groups, COLUMNS, blocks).transpose(0, 2, 1))
    result[..., COLUMNS * stored :] = by_block.view(np.uint8)
    return result


def _lines_of_4(values: Array) -> Array:
    """4 lines of each part, with 4 low and 4 high halves for each column: [groups, blocks, parts, 4, columns, 4]."""
    columns, blocks, half = values.shape
    parts = 2 * half // _PART
    # Bytes of k = 16h + 4j + 0, 1 and + 2, 3.
    stored = values.reshape(columns // COLUMNS, COLUMNS, blocks, parts, 2, 4, 2)
    low, high = stored[:, :, :, :, 0], stored[:, :, :, :, 1]  # [groups, columns, blocks, parts, j, 2]
    lines = np.empty((len(stored), blocks, parts, 4, COLUMNS, 4), np.uint8)
    lines[..., 0::2] = (low & 15 | high << 4).transpose(0, 2, 3, 4, 1, 5)
    lines[..., 1::2] = (low >> 4 | high & 240).transpose(0, 2, 3, 4, 1, 5)
    return lines


def _lines_of_8(values: Array) -> Array:
    """8 lines of each part, with 4 weights for each column: [groups, blocks, parts, 8, columns, 4]."""
    columns, blocks, block = values.shape
    stored = values.reshape(columns // COLUMNS, COLUMNS, blocks, block // _PART, 8, 4)
    return np.ascontiguousarray(stored.transpose(0, 2, 3, 4, 1, 5))
