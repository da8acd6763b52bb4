"""The depth transformer as a torch module: the codebooks of one frame in order, unrolled into a single graph.

`export.exporter` traces it; `export.calibration`, `bench` and `validate` run it.
"""

import torch
from torch import Tensor, nn

from pplex.export.layers import Linear, RMSNorm, SwiGLU, attention, embed, forced_or, one_by_one, sample, store_in
from pplex.runtime.config import ModelConfig


class DepthStep(nn.Module):
    """The weights of one step: all projections. The norms are shared between steps."""

    def __init__(self, config: ModelConfig, step: int):
        super().__init__()
        stack, card = config.depth, config.text_card if step == 0 else config.audio_card
        self.input = Linear(config.temporal.dim, stack.dim)
        self.emb = nn.Parameter(torch.empty(card + 1, stack.dim))
        self.in_proj = nn.ModuleList(Linear(stack.dim, 3 * stack.dim) for _ in range(stack.layers))
        self.out_proj = nn.ModuleList(Linear(stack.dim, stack.dim) for _ in range(stack.layers))
        self.gating = nn.ModuleList(SwiGLU(stack.dim, stack.hidden) for _ in range(stack.layers))
        self.output = Linear(stack.dim, config.audio_card)


class Depth(nn.Module):
    """Inputs and outputs as in the `depth` GraphSpec; keys and values live inside one call."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        stack = config.depth
        self.stack = stack
        self.norm1 = nn.ModuleList(RMSNorm(stack.dim) for _ in range(stack.layers))
        self.norm2 = nn.ModuleList(RMSNorm(stack.dim) for _ in range(stack.layers))
        self.steps = nn.ModuleList(DepthStep(config, k) for k in range(config.depth_steps))
        self.dtype = store_in(self, dtype)

    def forward(
        self,
        hidden: Tensor,
        text_token: Tensor,
        forced_audio: Tensor,
        noise: Tensor,
        noise_offset: Tensor,
        noise_stride: Tensor,
        audio_temperature: Tensor,
        audio_top_k: Tensor,
    ) -> tuple[Tensor, Tensor]:
        past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.stack.layers)]
        token, tokens, all_logits = text_token, [], []
        own = slice(1, 1 + len(self.steps))  # column 0 is the text's
        keys = (part.chunk(part.shape[1], 1)[own] for part in (noise_offset, noise_stride))  # [B, 1] of each codebook
        for step, offset, stride, forced in zip(self.steps, *keys, one_by_one(forced_audio, 1), strict=True):
            assert isinstance(step, DepthStep)
            x = (step.input(hidden.to(self.dtype)) + embed(step.emb, token))[:, None]  # [B, 1, dim]
            for layer in range(self.stack.layers):
                x = x + self.attend(step, layer, self.norm1[layer](x), past[layer])
                x = x + step.gating[layer](self.norm2[layer](x))
            logits = step.output(x.squeeze(1)).float()
            token = forced_or(sample(logits, (noise, offset, stride), audio_temperature, audio_top_k), forced)
            tokens.append(token)
            all_logits.append(logits)
        return torch.stack(tokens, 1), torch.stack(all_logits, 1)

    def attend(self, step: DepthStep, layer: int, x: Tensor, past: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Attention of the newest step to all steps until now; appends its key and value to `past`."""
        q, k, v = step.in_proj[layer](x).chunk(3, -1)  # [B, 1, dim] each
        past.append((k, v))
        # The reference's ring has one entry for each step. When it is full, it masks the oldest: see layers.readable.
        visible = past[len(past) == self.stack.capacity :]
        keys, values = (torch.cat(parts, 1) for parts in zip(*visible, strict=True))  # [B, k+1, dim]
        return step.out_proj[layer](attention(q, keys, values, self.stack.heads))
