"""The codec as torch modules: encodes and decodes one 80 ms frame for B slots; its streaming state is explicit.

`export.exporter` traces the modules; `export.synth_codec` and `validate` run them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplex.export.layers import Linear, RingAttention, codec_mask, elu, ring_index, rope, store_in
from pplex.runtime.config import CODEBOOKS, MimiConfig, ModelConfig, TransformerConfig
from pplex.runtime.graphs import (
    Conv,
    Seanet,
    Stage,
    codec_ring_length,
    downsample,
    seanet_decoder,
    seanet_encoder,
    upsample,
)


class Carry:
    """The small states of one call: a layer reads its old state from `past` and writes its new state to `present`.

    An inactive slot keeps its old state. Both dictionaries live for one call, so a module stays a function of its inputs.
    """

    def __init__(self, past: dict[str, Tensor], active: Tensor):
        self.past, self.active = past, active
        self.present: dict[str, Tensor] = {}

    def leave(self, key: str, new: Tensor) -> None:
        old = self.past[key]
        self.present[key] = torch.where(self.active.reshape(-1, *[1] * (old.dim() - 1)), new, old)


class CausalConv(nn.Module):
    """A convolution over the carried tail and the new samples: [B, inputs, L] -> [B, outputs, L / stride]."""

    def __init__(self, conv: Conv):
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(torch.empty(conv.outputs, conv.inputs, conv.kernel))
        self.bias = nn.Parameter(torch.empty(conv.outputs)) if conv.bias else None

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        if self.conv.tail_shape is not None:
            x = torch.cat([self.tail(x, carry), x], -1)
            carry.leave(self.conv.key, x[..., self.conv.stride - self.conv.kernel :])
        return F.conv1d(x, self.weight, self.bias, self.conv.stride)

    def tail(self, x: Tensor, carry: Carry) -> Tensor:
        return carry.past[self.conv.key]


class RepeatStartConv(CausalConv):
    """A causal convolution that starts with its first sample repeated, instead of zeros."""

    def tail(self, x: Tensor, carry: Carry) -> Tensor:
        past = carry.past[self.conv.key]
        first = (carry.past["position"] == 0)[:, None, None]
        return torch.where(first, x[..., :1].expand_as(past), past)


class TransposedConv(nn.Module):
    """A streaming transposed convolution: [B, inputs, L] -> [B, outputs, L * stride].

    It returns the samples that later inputs cannot change, and carries the overlap to the next call.
    """

    def __init__(self, conv: Conv):
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(torch.empty(conv.inputs, 1 if conv.depthwise else conv.outputs, conv.kernel))
        self.bias = nn.Parameter(torch.empty(conv.outputs)) if conv.bias else None

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        groups = self.conv.inputs if self.conv.depthwise else 1
        y = F.conv_transpose1d(x, self.weight, None, self.conv.stride, groups=groups)
        overlap = self.conv.kernel - self.conv.stride
        y = torch.cat([y[..., :overlap] + carry.past[self.conv.key], y[..., overlap:]], -1)
        carry.leave(self.conv.key, y[..., -overlap:])
        y = y[..., :-overlap]
        return y if self.bias is None else y + self.bias[:, None]


class ResidualBlock(nn.Module):
    """x + conv(elu(conv(elu(x))))."""

    def __init__(self, convs: tuple[Conv, Conv]):
        super().__init__()
        self.convs = nn.ModuleList(CausalConv(conv) for conv in convs)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(elu(y), carry)
        return x + y


class EncoderStage(nn.Module):
    """Residual block, then the strided convolution."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.residual, self.resample = ResidualBlock(stage.residual), CausalConv(stage.resample)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return self.resample(elu(self.residual(x, carry)), carry)


class DecoderStage(nn.Module):
    """Transposed convolution, then the residual block."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.residual, self.resample = ResidualBlock(stage.residual), TransposedConv(stage.resample)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return self.residual(self.resample(elu(x), carry), carry)


class SeanetStack(nn.Module):
    """First convolution, stages, ELU, last convolution."""

    def __init__(self, layout: Seanet, stage_type: type[EncoderStage] | type[DecoderStage]):
        super().__init__()
        self.first = CausalConv(layout.first)
        self.stages = nn.ModuleList(stage_type(stage) for stage in layout.stages)
        self.last = CausalConv(layout.last)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        x = self.first(x, carry)
        for stage in self.stages:
            x = stage(x, carry)
        return self.last(elu(x), carry)


class LayerNorm(nn.Module):
    """Layer normalisation with a bias, eps 1e-5, computed in float32."""

    stays_float32 = True

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, 1e-5).to(x.dtype)


class CodecLayer(nn.Module):
    """Pre-norm attention and GELU feed-forward, each scaled per channel and added to the stream."""

    def __init__(self, stack: TransformerConfig):
        super().__init__()
        self.norm1, self.attention = LayerNorm(stack.dim), RingAttention(stack)
        self.norm2 = LayerNorm(stack.dim)
        self.linear1, self.linear2 = Linear(stack.dim, stack.hidden), Linear(stack.hidden, stack.dim)
        self.scale1, self.scale2 = nn.Parameter(torch.empty(stack.dim)), nn.Parameter(torch.empty(stack.dim))

    def forward(self, x: Tensor, ring_k: Tensor, ring_v: Tensor, *where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, ring_k, ring_v = self.attention(self.norm1(x), ring_k, ring_v, *where)
        x = x + self.scale1 * y
        return x + self.scale2 * self.linear2(F.gelu(self.linear1(self.norm2(x)))), ring_k, ring_v


class CodecTransformer(nn.Module):
    """The 25 Hz transformer: [B, dim, T] -> [B, dim, T] with its rings."""

    def __init__(self, mimi: MimiConfig):
        super().__init__()
        self.stack, self.window = mimi.transformer, mimi.window
        stack = self.stack
        self.layers = nn.ModuleList(CodecLayer(stack) for _ in range(stack.layers))

    def forward(self, x: Tensor, position: Tensor, rings: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        in_use, sizes = self.stack.capacity, (x.shape[-1], codec_ring_length(self.stack))
        steps, entries = (torch.arange(n, device=x.device) for n in sizes)
        mask = codec_mask(position, steps, entries, in_use, self.window)
        present: list[Tensor] = []
        where = (ring_index(position, in_use), mask, *rope(position, steps, self.stack))
        x = x.transpose(1, 2)
        for layer, ring_k, ring_v in zip(self.layers, rings[::2], rings[1::2], strict=True):
            x, ring_k, ring_v = layer(x, ring_k, ring_v, *where)
            present += [ring_k, ring_v]
        return x.transpose(1, 2), present


class Quantizer(nn.Module):
    """Split residual vector quantizer: one semantic codebook, and a chain of acoustic ones.

    Each acoustic codebook quantizes the remainder of the one before. Distances are always compared in float32.
    """

    stays_float32 = True

    def __init__(self, mimi: MimiConfig, encode: bool):
        super().__init__()
        shape = (mimi.dim, mimi.codebook_dim) if encode else (mimi.codebook_dim, mimi.dim)
        self.semantic, self.acoustic = Linear(*shape), Linear(*shape)
        self.codebooks = nn.ParameterList(torch.empty(mimi.codebook_size, mimi.codebook_dim) for _ in range(CODEBOOKS))

    def encode(self, latent: Tensor) -> Tensor:
        """[B, dim] -> codes [B, 8]: nearest entry by Euclidean distance, the first one on ties."""
        latent = latent.float()
        first, *others = self.codebooks
        codes = [_nearest(self.semantic(latent), first)]
        residual = self.acoustic(latent)
        for codebook in others:
            codes.append(_nearest(residual, codebook))
            residual = residual - F.embedding(codes[-1], codebook)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, 8] -> [B, dim]."""
        vectors = [F.embedding(codes[:, i], codebook) for i, codebook in enumerate(self.codebooks)]
        return self.semantic(vectors[0]) + self.acoustic(sum(vectors[2:], vectors[1]))


def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    # |x - e|^2 without the term |x|^2, because it is the same for every entry.
    return torch.argmin((codebook * codebook).sum(-1) - 2.0 * (x @ codebook.t()), dim=-1)


class MimiEncoder(nn.Module):
    """Inputs and outputs as in the `mimi_encode` GraphSpec."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        mimi = config.mimi
        layout, down = seanet_encoder(mimi), downsample(mimi)
        self.steps_per_frame = mimi.steps_per_frame
        self.keys = _carried_keys((*layout.convs(), down))
        self.seanet, self.transformer = SeanetStack(layout, EncoderStage), CodecTransformer(mimi)
        self.downsample, self.quantizer = RepeatStartConv(down), Quantizer(mimi, encode=True)
        self.dtype = store_in(self, dtype)

    def forward(self, pcm: Tensor, active: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        latent, present = self.latent(pcm, active, *state)
        return self.quantizer.encode(latent), *present

    def latent(self, pcm: Tensor, active: Tensor, *state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The latent vector before quantization, [B, dim], and the new state."""
        carry, rings = _split(self.keys, active, state)
        x = self.seanet(pcm.to(self.dtype), carry)  # [B, dim, 2]
        position = carry.past["position"]
        x, present = self.transformer(x, position, rings)
        latent = self.downsample(x, carry)[..., 0]  # [B, dim]
        carry.leave("position", position + self.steps_per_frame)
        return latent, [*(carry.present[key] for key in self.keys), *present]


class MimiDecoder(nn.Module):
    """Inputs and outputs as in the `mimi_decode` GraphSpec."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        mimi = config.mimi
        layout, up = seanet_decoder(mimi), upsample(mimi)
        self.steps_per_frame = mimi.steps_per_frame
        self.keys = _carried_keys((up, *layout.convs()))
        self.quantizer, self.upsample = Quantizer(mimi, encode=False), TransposedConv(up)
        self.transformer, self.seanet = CodecTransformer(mimi), SeanetStack(layout, DecoderStage)
        self.dtype = store_in(self, dtype)

    def forward(self, codes: Tensor, active: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        carry, rings = _split(self.keys, active, state)
        x = self.upsample(self.quantizer.decode(codes).to(self.dtype)[..., None], carry)  # [B, dim, 2]
        position = carry.past["position"]
        x, present = self.transformer(x, position, rings)
        pcm = self.seanet(x, carry)  # [B, 1, 1920]
        carry.leave("position", position + self.steps_per_frame)
        return pcm.float(), *(carry.present[key] for key in self.keys), *present


def _carried_keys(convs: tuple[Conv, ...]) -> tuple[str, ...]:
    return ("position", *(conv.key for conv in convs if conv.tail_shape is not None))


def _split(keys: tuple[str, ...], active: Tensor, state: tuple[Tensor, ...]) -> tuple[Carry, tuple[Tensor, ...]]:
    """The state of a call in the GraphSpec's order: carried tensors by key, then the rings."""
    return Carry(dict(zip(keys, state[: len(keys)], strict=True)), active), state[len(keys) :]
