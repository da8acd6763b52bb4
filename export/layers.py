"""Building blocks of the exported graphs: called by `export.temporal`, `export.depth` and `export.mimi`.

The torch code runs eagerly, and each block traces to standard ONNX ops. Run eagerly on a GPU, it can be captured as a CUDA
graph: new tensors are on the device of the inputs, and no operation waits for the host.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplex.runtime.config import MAX_CANDIDATES, TransformerConfig

RingWrite = Callable[[Tensor, Tensor, Tensor], Tensor]  # (ring, update, index) -> the ring with the update in it


def store_in(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Give the weights of `module` the dtype `dtype`, except in parts with `stays_float32`; returns `dtype`."""
    if not getattr(module, "stays_float32", False):
        for name, weight in module.named_parameters(recurse=False):
            # A new parameter, because the exporter traces fake tensors, and their dtype cannot change.
            setattr(module, name, nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False))
        for part in module.children():
            store_in(part, dtype)
    return dtype


def exporting() -> bool:
    """Whether the exporter is tracing a graph. False while torch.compile traces."""
    # In torch 2.11, is_exporting() is also true while torch.compile traces.
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


class Linear(nn.Module):
    """x @ weight, weight [inputs, outputs]: the layout of ONNX's MatMul, so the graph needs no transpose.

    A weight with fewer bits than x is converted in each call.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype:
            return x @ self.weight
        product: Tensor = _Converted.apply(x, self.weight)
        return product


class _Converted(torch.autograd.Function):
    """x @ weight, with the weight converted to x's dtype here and again for the gradient of x, and not kept between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight.to(gradient.dtype).T, None


class RMSNorm(nn.Module):
    """x * weight / sqrt(mean(x^2) + 1e-8), computed in float32 with a float32 weight."""

    stays_float32 = True

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, 1e-8).to(x.dtype)


class SwiGLU(nn.Module):
    """out(silu(gate) * value). One projection gives gate and value: its two halves."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear_in, self.linear_out = Linear(dim, 2 * hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.linear_in(x).chunk(2, dim=-1)
        return self.linear_out(F.silu(gate) * value)


def tensor_scatter(ring: Tensor, update: Tensor, index: Tensor) -> Tensor:
    """A ring [B, H, C, D] with update [B, H, T, D] at entries index[b], ..., index[b] + T - 1, which must not wrap."""
    if exporting():
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            (ring, update, index),
            attrs={"axis": 2, "mode": "linear"},
            dtype=ring.dtype,
            shape=ring.shape,
            version=24,
        )
    return ring.scatter(2, _steps(update, index)[:, None, :, None].expand_as(update), update)


def tensor_scatter_(ring: Tensor, update: Tensor, index: Tensor) -> Tensor:
    """Like `tensor_scatter`, but in place: writes into `ring` and returns it."""
    steps = _steps(update, index)
    if not torch.compiler.is_compiling():
        return ring.scatter_(2, steps[:, None, :, None].expand_as(update), update)
    # torch.compile turns scatter_ into two copies of the whole ring, and index_put_ into none.
    rows, heads = (torch.arange(n, device=ring.device) for n in update.shape[:2])
    return ring.index_put_((rows[:, None, None], heads[:, None], steps[:, None]), update)


def _steps(update: Tensor, index: Tensor) -> Tensor:
    """The ring entry for each step of update [B, H, T, D]: [B, T]."""
    length = update.shape[2]
    return index[:, None] if length == 1 else index[:, None] + torch.arange(length, device=index.device)


def write_in_place(module: nn.Module) -> None:
    """Make every attention in `module` write into its input rings, which saves copies of them."""
    for part in module.modules():
        if isinstance(part, RingAttention):
            part.write = tensor_scatter_


def indices(x: Tensor, axis: int, longest: int) -> Tensor:
    """0, 1, ..., x.shape[axis] - 1 on the device of x. The axis has `longest` entries at most.

    The graph slices them from a constant. ONNX Runtime does arithmetic on sizes on the processor, and then it cannot
    capture a CUDA graph.
    """
    if not exporting():
        return torch.arange(x.shape[axis], device=x.device)
    size = _symbolic("Shape", (x,), {"start": axis, "end": axis + 1}, torch.int64, (1,))
    return _symbolic("Slice", (torch.arange(longest), _constant(0), size), {}, torch.int64, (x.shape[axis],))


def split_last(x: Tensor, *sizes: int) -> Tensor:
    """Split the last axis of x [B, T, n]: [B, T, *sizes]."""
    if not exporting():
        return x.unflatten(-1, sizes)
    return _symbolic("Reshape", (x, _constant(0, 0, *sizes)), {}, x.dtype, (*x.shape[:2], *sizes))


def merge_last(x: Tensor) -> Tensor:
    """Merge the last two axes of x [B, T, n, m]: [B, T, n * m]."""
    if not exporting():
        return x.flatten(-2)
    return _symbolic("Reshape", (x, _constant(0, 0, -1)), {}, x.dtype, (*x.shape[:2], x.shape[2] * x.shape[3]))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of q [B, T, H * D] to k and v [B, n, H * D]: [B, T, H * D]. The op itself splits the heads."""
    if exporting():
        return _symbolic("Attention", (q, k, v), {"q_num_heads": heads, "kv_num_heads": heads}, q.dtype, q.shape)
    q, k, v = (split_last(x, heads, -1).transpose(1, 2) for x in (q, k, v))
    return merge_last(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


def ring_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Attention of q [B, H, T, D] to rings k and v [B, H, C, D]: [B, H, T, D].

    `lengths` [B]: the entries of each ring that the last query reads, counted from entry 0. A graph without a mask is
    causal: an earlier query reads one entry less than the next.
    """
    if exporting() and lengths is not None:
        causal = {} if mask is not None else {"is_causal": 1}
        return _symbolic("Attention", (q, k, v, mask, None, None, lengths), causal, q.dtype, q.shape)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _symbolic(
    op: str, inputs: tuple[Tensor | None, ...], attributes: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """Add a node to the traced graph exactly as given."""
    return torch.onnx.ops.symbolic(op, inputs, attrs=attributes, dtype=dtype, shape=shape, version=24)


def _constant(*values: int) -> Tensor:
    return _symbolic("Constant", (), {"value_ints": list(values)}, torch.int64, (len(values),))


def one_by_one(x: Tensor, axis: int) -> list[Tensor]:
    """The slices of x along an axis, without that axis. One split is cheaper than a slice for each."""
    return [part.squeeze(axis) for part in x.chunk(x.shape[axis], axis)]


def elu(x: Tensor) -> Tensor:
    """x above 0, exp(x) - 1 below."""
    # Not ONNX's Elu: ONNX Runtime 1.31 has no CUDA kernel for it. On the processor Elu is not faster than this.
    # The maximum is right because exp(x) - 1 is never less than x below 0.
    return torch.maximum(x, torch.exp(x.clamp(max=0)) - 1)


def ring_index(position: Tensor, in_use: int | Tensor) -> Tensor:
    """The ring entry that the step at `position` is written to. `in_use`: entries of the ring that are in use, n or [1]."""
    return position % in_use


def readable(position: Tensor, steps: Tensor, in_use: Tensor) -> Tensor:
    """How many entries, from entry 0 on, the queries at position[b] + steps[0], ... read of a ring: [B, T].

    `steps` are 0, 1, ..., T - 1. A chunk of more than one step must end before the ring is full.

    In the reference, a full ring of C entries hides the oldest one, so a step reads the C - 1 newest steps. A ring with
    C - 1 entries in use holds exactly these, and nothing in it needs to be hidden. C = 4, after step 5:

        entry             0   1   2   3
        the reference     4   5   -   3      step 2 is in the ring, but hidden
        ours              3   4   5          entry 3 is not in use
    """
    return torch.minimum(position[:, None] + steps + 1, in_use)


def first_entries(count: Tensor, entries: Tensor) -> Tensor:
    """The mask of a ring whose queries read `count` [B, T] entries from entry 0 on: [B, 1, T, C] bool."""
    return (entries < count[..., None])[:, None]


def codec_mask(position: Tensor, steps: Tensor, entries: Tensor, in_use: int, window: int) -> Tensor:
    """Which entries of a codec's ring the queries at position[b] + steps[0], ... may read: [B, 1, T, entries] bool.

    `steps` are 0, 1, ..., T - 1, `entries` 0, 1, ..., one for each entry of the ring. The first `in_use`, C, are in use.
    `window`: how many steps before the end of the frame are read; C - 1 in PersonaPlex, C in Moshi.

    PersonaPlex's code writes the T steps of a frame at once. After a write that ends at step E (exclusive), it reads entry
    E % C, the oldest, as step E itself. Step E lies in the future, so it is masked. C = 4, E = 6:

        entry       0   1   2   3
        holds step  4   5   2   3
        read as     4   5   6   3      so the window is 3 steps: C - 1
    """
    query = position[:, None] + steps  # [B, T]
    last = query[:, -1:]  # [B, 1]
    held = last - ring_index(last - entries, in_use)  # [B, entries] the step that each entry holds; below 0: empty
    visible = (held >= 0) & (held > last - window) & (entries < in_use)
    return (visible[:, None] & (held[:, None] <= query[:, :, None]))[:, None]


def rope(position: Tensor, steps: Tensor, stack: TransformerConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, D/2] in float32 of the angles at position[b] + steps[0], ..."""
    pairs = torch.arange(stack.head_dim // 2, dtype=torch.float32, device=position.device)
    frequency = torch.exp(pairs * (-math.log(stack.max_period) * 2 / stack.head_dim))
    angle = (position[:, None] + steps).float()[:, :, None] * frequency
    return torch.cos(angle), torch.sin(angle)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of x [B, H, T, D] by their angles, in float32."""
    if exporting():
        return torch.onnx.ops.rotary_embedding(x.float(), cos, sin, interleaved=True).to(x.dtype)
    # The same as that op. torch.compile cannot look into the op, and torch 2.11 reports wrong strides for it.
    cos, sin = cos[:, None], sin[:, None]  # [B, 1, T, D/2]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class RingAttention(nn.Module):
    """Self-attention over a ring of past keys and values: (x, ring_k, ring_v) -> (y, ring_k, ring_v).

    `write` returns new rings. After `write_in_place` it changes the input rings and returns them.
    """

    def __init__(self, stack: TransformerConfig):
        super().__init__()
        self.heads, self.head_dim = stack.heads, stack.head_dim
        self.write: RingWrite = tensor_scatter
        self.in_proj, self.out_proj = Linear(stack.dim, 3 * stack.dim), Linear(stack.dim, stack.dim)

    def forward(
        self,
        x: Tensor,
        ring_k: Tensor,
        ring_v: Tensor,
        index: Tensor,
        mask: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv = split_last(self.in_proj(x), 3 * self.heads, self.head_dim).transpose(1, 2)  # [B, 3 H, T, D]
        # On a GPU each kernel costs time: it is cheaper to rotate q, k and v together than q and k in turn. A split into
        # parts of two sizes would read the sizes from the host, which a captured graph must not do.
        q, k, _ = rotate(qkv, cos, sin).chunk(3, 1)
        v = qkv[:, 2 * self.heads :]
        y, ring_k, ring_v = self.attend((q, k, v), (ring_k, ring_v), index, mask, lengths)
        return self.out_proj(merge_last(y.transpose(1, 2))), ring_k, ring_v

    def attend(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        rings: tuple[Tensor, Tensor],
        index: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write k and v [B, H, T, D] into the rings, and read these: y [B, H, T, D], and the rings."""
        q, k, v = qkv
        ring_k, ring_v = self.write(rings[0], k, index), self.write(rings[1], v, index)
        return ring_attention(q, ring_k, ring_v, mask, lengths), ring_k, ring_v


TokenNoise = tuple[Tensor, Tensor, Tensor]  # noise of one draw: a table [B, N], offset and stride (see `sample`)


def sample(logits: Tensor, noise: TokenNoise, temperature: Tensor, top_k: Tensor) -> Tensor:
    """Draw a token from softmax(logits / temperature) cut to the top k: [B] int64.

    logits [B, card] float32; temperature, top_k [B]. noise: draws of Exp(1) [B, N], an offset [B, 1] and an odd
    stride [B, 1]. Token i uses entry (offset + stride * i) mod N, see runtime/noise.py. argmax(p / noise) draws exactly
    from p (the exponential race). Only the ratios of p count, so the softmax's denominator is left out.
    """
    table, offset, stride = noise
    candidates = min(MAX_CANDIDATES, logits.shape[-1])
    values, tokens = torch.topk(logits, candidates, dim=-1)
    weight = torch.exp((values - values[:, :1]) / temperature[:, None])
    race = weight / table.gather(1, (tokens * stride + offset) % table.shape[-1])
    race = torch.where(torch.arange(candidates, device=race.device) < top_k[:, None], race, -1.0)
    winner = torch.argmax(race, dim=-1, keepdim=True)
    return tokens.gather(1, winner).squeeze(1)


def forced_or(token: Tensor, forced: Tensor) -> Tensor:
    """`forced` [B] where it is a token, otherwise `token` [B]."""
    return torch.where(forced >= 0, forced, token)


def even_noise(rows: int, streams: int) -> TokenNoise:
    """The noise inputs of a graph for `rows` rows in which every token is forced: the same noise for all."""
    offset, stride = torch.zeros(2, rows, streams, dtype=torch.int64)
    return torch.ones(rows, 1), offset, stride


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of table [card, dim] for tokens [...]; token -1 gives zeros."""
    rows = F.embedding(tokens.clamp(min=0), table)
    return torch.where((tokens >= 0)[..., None], rows, 0.0)
