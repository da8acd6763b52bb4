"""The codec without streaming: a whole recording in one call, as the reference for frame-by-frame runs.

Called by `validate.parting`, `validate.sections.codec` and `validate.sections.streaming`.
"""

import torch
from torch import Tensor

from pplex.export.checkpoint import Checkpoint
from pplex.export.layers import rope
from pplex.export.mimi import Carry, CodecTransformer, MimiDecoder, MimiEncoder
from pplex.export.weights import load
from pplex.runtime.arrays import Floats, Tokens
from pplex.runtime.config import ModelConfig
from pplex.runtime.graphs import graph_specs


def encode_at_once(checkpoint: Checkpoint, pcm: Floats) -> Tokens:
    """Codes [F, 8] of pcm [F, 1920] in float32. Holds the outputs of all layers for all F frames in memory."""
    encoder = load("mimi_encode", checkpoint)
    assert isinstance(encoder, MimiEncoder)
    return encoder.quantizer.encode(latents_at_once(encoder, checkpoint.config, pcm)).numpy()


@torch.inference_mode()
def latents_at_once(encoder: MimiEncoder, config: ModelConfig, pcm: Floats) -> Tensor:
    """Latents [F, dim] of pcm [F, 1920], before quantization."""
    carry = _silence("mimi_encode", config)
    x = encoder.seanet(torch.from_numpy(pcm).reshape(1, 1, -1), carry)  # [1, dim, 2F]
    return encoder.downsample(_transform(encoder.transformer, x, encoder.steps_per_frame), carry)[0].t()


@torch.inference_mode()
def decode_at_once(checkpoint: Checkpoint, codes: Tokens) -> Floats:
    """PCM [F * 1920] of codes [F, 8] in float32."""
    decoder = load("mimi_decode", checkpoint)
    assert isinstance(decoder, MimiDecoder)
    carry = _silence("mimi_decode", checkpoint.config)
    latents = decoder.quantizer.decode(torch.from_numpy(codes))  # [F, dim]
    x = decoder.upsample(latents.t()[None], carry)  # [1, dim, 2F]
    return decoder.seanet(_transform(decoder.transformer, x, decoder.steps_per_frame), carry)[0, 0].numpy()


def _silence(graph: str, config: ModelConfig) -> Carry:
    """The initial state of the convolutions."""
    past = {
        state.name: torch.zeros([1, *map(int, state.shape[1:])], dtype=getattr(torch, state.dtype))
        for state in graph_specs(config)[graph].state
        if not state.ring
    }
    return Carry(past, torch.ones(1, dtype=torch.bool))


def _transform(transformer: CodecTransformer, x: Tensor, steps_per_frame: int) -> Tensor:
    """All steps of x [1, dim, T] at once: [1, dim, T]. The ring is as long as the recording, and a mask limits it."""
    stack, steps = transformer.stack, x.shape[-1]
    start = torch.zeros(1, dtype=torch.int64)
    mask = _window(steps, steps_per_frame, transformer.window)
    where = (start, mask, *rope(start, torch.arange(steps), stack))
    x = x.transpose(1, 2)
    for layer in transformer.layers:
        ring = torch.zeros(1, stack.heads, steps, stack.head_dim)
        x, _, _ = layer(x, ring, ring, *where)
    return x.transpose(1, 2)


def _window(steps: int, steps_per_frame: int, window: int) -> Tensor:
    """Which steps each step reads: [1, 1, T, T] bool. It reads from `window` steps before the end of its frame on.

    `codec_mask` masks a ring's entries by the same rule, and explains it.
    """
    step = torch.arange(steps)
    end = (step // steps_per_frame + 1) * steps_per_frame  # exclusive
    return ((step <= step[:, None]) & (step >= end[:, None] - window))[None, None]
