"""The error of rings in 8 bits by their scales, with weights in float32.

    python benchmarks/ring_scales.py CHECKPOINT [--heavy-keys]

Every variant rounds keys and values before they are written, and runs forced steps that the calibration did not have. Prints
1 - cosine of the hidden states, the divergence of text in nats, and the share of values that were cut off.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplex.export import weights
from pplex.export.calibration import calibrate
from pplex.export.checkpoint import open_checkpoint
from pplex.export.conversations import default_conversations, token_history, unheard_pieces
from pplex.export.layers import RingAttention, tensor_scatter
from pplex.export.temporal import Temporal, ring_places
from pplex.export.voices import find_voices
from pplex.runtime.config import ModelConfig
from pplex.runtime.text import Tokenizer
from pplex.validate.drift import log_softmax

FRAMES = 288
Rounding = Callable[[Tensor, Tensor], Tensor]  # (values, scale) -> values
Format = Callable[[Tensor, Tensor], Tensor]  # (x [B, H, T, D], largest of each channel [H, 1, D]) -> x, rounded


def int8(x: Tensor, scale: Tensor) -> Tensor:
    return torch.clamp(torch.round(x / scale * 127), -127, 127) * scale / 127


def e4m3(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale * 448).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale / 448


def fixed(rounding: Rounding, room: float = 1.0, over: tuple[int, ...] = ()) -> Format:
    """One scale for each channel; or for all of the axes `over` of [H, 1, D]."""
    return lambda x, largest: rounding(x, room * (largest.amax(over, keepdim=True) if over else largest))


def by_step(rounding: Rounding) -> Format:
    """A new scale for each step and head."""
    return lambda x, largest: rounding(x, x.abs().amax(-1, keepdim=True).clamp(min=1e-9))


def both(x: Tensor, largest: Tensor) -> Tensor:
    return by_step(int8)(x / largest, largest) * largest


FORMATS: dict[str, Format] = {
    "float16": lambda x, largest: x.half().float(),
    "int8, layer": fixed(int8, over=(0, 2)),
    "int8, head": fixed(int8, over=(2,)),
    **{f"int8, channel, room {room}": fixed(int8, room) for room in (1.0, 1.25, 1.5, 2.0)},
    "int8, step and head": by_step(int8),
    "int8, channel, then step and head": both,
    "E4M3, layer": fixed(e4m3, over=(0, 2)),
    "E4M3, channel": fixed(e4m3),
    "E4M3, step and head": by_step(e4m3),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="ring_scales")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--heavy-keys", action="store_true", help="make a pair of channels of each head 20 times larger"
    )
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.checkpoint)
    config, module = checkpoint.config, weights.load("temporal", checkpoint)
    assert isinstance(module, Temporal)
    conversations = default_conversations(
        checkpoint, Tokenizer(checkpoint.tokenizer), find_voices(checkpoint.folder, config).voices
    )
    largest = {
        name: found[:, None]
        for name, found in calibrate(checkpoint, config, conversations, lambda n: None).rings.items()
    }
    if given.heavy_keys:
        make_keys_heavy(module, largest)
    codes = token_history(checkpoint, unheard_pieces(config, 3), FRAMES)[: config.temporal.capacity - 1]
    with torch.inference_mode():
        exact = hidden_states(module, config, torch.from_numpy(codes[:-1]))
        for name, form in FORMATS.items():
            cut = round_rings(module, form, largest)
            compare(name, module, exact, hidden_states(module, config, torch.from_numpy(codes[:-1])), cut)


def make_keys_heavy(module: Temporal, largest: dict[str, Tensor]) -> None:
    """Multiply a pair of channels of the keys and divide that of the queries, which changes no product."""
    for i, attention in enumerate(attentions(module)):
        by_head = attention.in_proj.weight.data.unflatten(1, (3, attention.heads, attention.head_dim))
        by_head[:, 0, :, :2] /= 20
        by_head[:, 1, :, :2] *= 20
        largest[f"temporal.layers.{i}.attention.k"][..., :2] *= 20


def attentions(module: Temporal) -> list[RingAttention]:
    return [part for part in module.modules() if isinstance(part, RingAttention)]


def round_rings(module: Temporal, form: Format, largest: dict[str, Tensor]) -> list[int]:
    """Make every attention round what it writes. The list gets the values beyond the calibration's, and all values."""
    cut = [0, 0]
    for i, attention in enumerate(attentions(module)):
        attention.write = _writer(form, [largest[f"temporal.layers.{i}.attention.{kv}"] for kv in "kv"], cut)
    return cut


def _writer(form: Format, largest: list[Tensor], cut: list[int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    turn = [0]  # keys and values are written in turn

    def write(ring: Tensor, update: Tensor, index: Tensor) -> Tensor:
        found, turn[0] = largest[turn[0]], 1 - turn[0]
        cut[0] += int((update.abs() > found).sum())
        cut[1] += update.numel()
        return tensor_scatter(ring, form(update, found), index)

    return write


def hidden_states(module: Temporal, config: ModelConfig, codes: Tensor) -> Tensor:
    """Of all steps of codes [T, 17] at once: [T, dim]."""
    steps, stack = len(codes), config.temporal
    ring = torch.zeros(1, stack.heads, steps + 1, stack.head_dim)
    place = ring_places(torch.zeros(1, dtype=torch.int64), torch.arange(steps), torch.arange(steps + 1), stack)
    x = module.embed_streams(codes[None])
    for layer in module.layers:
        x = layer(x, ring, ring, *place)[0]
    hidden: Tensor = module.out_norm(x[0])
    return hidden


def compare(name: str, module: Temporal, exact: Tensor, got: Tensor, cut: list[int]) -> None:
    cosine = torch.nn.functional.cosine_similarity(exact.double(), got.double()).mean()
    p, q = (log_softmax(module.text_linear(hidden).numpy()) for hidden in (exact, got))
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    print(f"{name:36} hidden {1 - cosine:.1e}  text {divergence:.1e}  beyond {cut[0] / cut[1]:.0e}", flush=True)


if __name__ == "__main__":
    main()
