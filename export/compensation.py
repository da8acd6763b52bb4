"""Rounds a weight to integers so that the errors of its rows cancel in the output: called by `export.exporter`.

The error of the output y = x W is x E, for the rounding errors E [K, N]. Its mean square is sum(E H E) with H = E[x x^T]
(see `export.moments`). Rows are rounded in turn. Before a row is rounded, it takes over what the errors until now would do
along the common directions V, as far as later rows will not do it better. This is GPTQ (Frantar et al. 2022). There H is a
full matrix, which must be inverted. Here H = V V^T + diag(d), so a row costs R multiplications a column instead of K, and
K may be 11,264. With z = sum(V_k E_k) over the rows until now, and c of `Moments.takes`:

    target_i = w_i + c_i z
"""

import torch
from torch import Tensor

from pplex.export.moments import Moments, importance
from pplex.export.quantize import SCALE_DTYPE, Quantized, best_scale, to_int
from pplex.export.threads import in_threads

_COLUMNS = 2048  # that a thread works on at a time


def compensated(weight: Tensor, bits: int, block: int, moments: Moments, signed: bool = False) -> Quantized:
    """Signed integers of `bits` bits in blocks of `block` weights, whose errors cancel along the moments' directions.

    Without directions, and for whole columns (`block` 0), it is `to_int`. For `signed` see there.
    """
    if not (block and moments.directions.shape[1]):
        return to_int(weight, bits, block, importance(moments.square), signed)
    values = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0] // block, weight.shape[1], dtype=SCALE_DTYPE)
    takes, weights_of = moments.takes, importance(moments.square)

    def fill(start: int) -> None:
        tile = slice(start, start + _COLUMNS)
        columns = weight[:, tile].contiguous()
        carried = torch.zeros(moments.directions.shape[1], columns.shape[1])  # z
        for number, rows in enumerate(columns.split(block)):
            at = slice(number * block, (number + 1) * block)
            target = torch.addmm(rows, takes[at], carried)
            stored = best_scale(target[None], weights_of[at, None][None], bits, signed)
            scale[number, tile] = stored[0]
            between = takes[at] @ moments.directions[at].T  # [b, b] what row i takes over of the error of row j
            values[at, tile] = _rounded(rows, target, between, stored[0].float(), bits)
            error = rows - values[at, tile] * stored.float()
            carried.addmm_(moments.directions[at].T, error)

    in_threads(fill, range(0, weight.shape[1], _COLUMNS))
    return Quantized(values, scale, block)


def _rounded(rows: Tensor, target: Tensor, between: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The integers [b, N] of a block's rows [b, N], rounded in turn; `target` without the errors in the block."""
    top = (1 << (bits - 1)) - 1
    inverse, target, result = scale.reciprocal(), target.clone(), torch.empty_like(target)
    for row in range(len(target)):
        torch.mul(target[row], inverse, out=result[row])
        result[row].round_().clamp_(-top - 1, top)
        if row + 1 < len(target):
            target[row + 1 :].addr_(between[row + 1 :, row], rows[row] - result[row] * scale)
    return result
