"""The temporal transformer as a torch module: one 80 ms step for B slots, or a chunk of forced steps.

`export.exporter` traces it; `export.calibration`, `bench` and `validate` run it.
"""

import torch
from torch import Tensor, nn

from pplex.export.layers import (
    Linear,
    RingAttention,
    RMSNorm,
    SwiGLU,
    embed,
    exporting,
    first_entries,
    forced_or,
    indices,
    readable,
    ring_index,
    rope,
    sample,
    store_in,
)
from pplex.runtime.config import END_OF_PADDING, ModelConfig, TransformerConfig
from pplex.runtime.graphs import MAX_STEPS


def ring_places(
    position: Tensor, steps: Tensor, entries: Tensor, stack: TransformerConfig, masked: bool = True
) -> tuple[Tensor | None, ...]:
    """A layer's arguments after its rings: the index of the first write, the mask if `masked`, cos, sin, and lengths [B].

    `steps` are 0, 1, ..., T - 1, `entries` 0, 1, ..., C - 1. The last entry stays unused: see `layers.readable`.
    """
    in_use = entries[-1:]  # C - 1
    count = readable(position, steps, in_use)
    mask = first_entries(count, entries) if masked else None
    return ring_index(position, in_use), mask, *rope(position, steps, stack), count[:, -1]


class TemporalLayer(nn.Module):
    """Pre-norm attention and gated feed-forward, each added to the stream."""

    def __init__(self, stack: TransformerConfig, attention: type[RingAttention] = RingAttention):
        super().__init__()
        self.norm1, self.attention = RMSNorm(stack.dim), attention(stack)
        self.norm2, self.gating = RMSNorm(stack.dim), SwiGLU(stack.dim, stack.hidden)

    def forward(
        self, x: Tensor, ring_k: Tensor, ring_v: Tensor, *where: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, ring_k, ring_v = self.attention(self.norm1(x), ring_k, ring_v, *where)
        x = x + y
        return x + self.gating(self.norm2(x)), ring_k, ring_v


class Temporal(nn.Module):
    """Inputs and outputs as in the `temporal` GraphSpec; `rings` are k and v of each layer, [B, H, C, D].

    `masked`: an exported graph has a mask, which TensorRT needs. Without it, ONNX Runtime can use flash attention.
    `attention`: Int8RingAttention for rings in int8.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        masked: bool = False,
        attention: type[RingAttention] = RingAttention,
    ):
        super().__init__()
        stack, self.masked = config.temporal, masked
        self.stack, self.audio_rows, self.padding = stack, config.audio_card + 1, config.text_padding
        self.text_emb = nn.Parameter(torch.empty(config.text_card + 1, stack.dim))
        self.audio_emb = nn.Parameter(torch.empty((config.num_streams - 1) * self.audio_rows, stack.dim))
        self.layers = nn.ModuleList(TemporalLayer(stack, attention) for _ in range(stack.layers))
        self.out_norm = RMSNorm(stack.dim)
        self.text_linear = Linear(stack.dim, config.text_card)
        self.dtype = store_in(self, dtype)

    def forward(
        self,
        codes: Tensor,
        embedding: Tensor,
        position: Tensor,
        forced_text: Tensor,
        replacement: Tensor,
        noise: Tensor,
        noise_offset: Tensor,
        noise_stride: Tensor,
        text_temperature: Tensor,
        text_top_k: Tensor,
        *rings: Tensor,
    ) -> tuple[Tensor, ...]:
        steps, entries = indices(codes, 1, MAX_STEPS), indices(rings[0], 2, self.stack.capacity)
        x = (self.embed_streams(codes) + embedding).to(self.dtype)  # [B, T, dim]
        where = ring_places(position, steps, entries, self.stack, self.masked or not exporting())
        present: list[Tensor] = []
        for layer, ring_k, ring_v in zip(self.layers, rings[::2], rings[1::2], strict=True):
            x, ring_k, ring_v = layer(x, ring_k, ring_v, *where)
            present += [ring_k, ring_v]
        hidden = self.out_norm(x[:, -1].float())  # [B, dim] float32
        logits = self.text_linear(hidden.to(self.dtype)).float()
        own = (noise, noise_offset[:, :1], noise_stride[:, :1])
        draw = sample(logits, own, text_temperature, text_top_k)
        token = forced_or(self.replaced(draw, replacement), forced_text)
        return hidden, token, draw, logits, *present

    def replaced(self, draw: Tensor, replacement: Tensor) -> Tensor:
        """`replacement` [B] in place of a drawn word's token; padding stays, and so does a draw without a replacement."""
        is_word = (draw != self.padding) & (draw != END_OF_PADDING)
        return torch.where(is_word, forced_or(draw, replacement), draw)

    def embed_streams(self, codes: Tensor) -> Tensor:
        """Sum of the embeddings of all streams: [B, T, 17] -> [B, T, dim] float32."""
        audio = codes[..., 1:]
        offset = torch.arange(audio.shape[-1], device=audio.device) * self.audio_rows
        rows = torch.where(audio >= 0, audio + offset, -1)
        return embed(self.audio_emb, rows).float().sum(2) + embed(self.text_emb, codes[..., 0]).float()
