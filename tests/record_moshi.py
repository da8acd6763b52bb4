"""Records what PyPI's moshi computes, in a golden folder: the judge of Moshi models, as tests/golden/tiny is of PersonaPlex.

The checkpoint is the tiny one with 8 depth sets, without voices, and with Kyutai's flat config.json. The files have the
form of tests/golden/tiny. The package is not one of ours. To record again:
pip install --no-deps --target MOSHI moshi==0.2.13 einops && PYTHONPATH=MOSHI python tests/record_moshi.py tests/golden/moshi
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import layouts
import moshi.models.lm
import moshi.utils.sampling
import numpy as np
import torch
from folders import TINY
from moshi.models import LMGen
from moshi.models.loaders import get_mimi, get_moshi_lm
from safetensors.torch import load_file, save_file
from torch import Tensor

FRAMES = 110  # of a conversation; the ring holds 96 steps
STEPS, KEPT = 120, (0, 1, 2, 40, 94, 95, 96, 97, 98, 119)  # teacher-forced
CODEC_FRAMES = 60
SAMPLED = {"use_sampling": True, "temp_text": 0.7, "top_k_text": 25, "temp": 0.8, "top_k": 20}
CODEBOOKS = 8
CODEC, TOKENIZER = "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"

Noise = list[tuple[Tensor, Tensor]]  # of each draw: the exponentials and their tokens


def make_checkpoint(out: Path) -> dict[str, Any]:
    """Write the checkpoint; returns the language model's arguments and the codec's."""
    given = layouts.read_config(TINY / "checkpoint")
    lm, mimi = {**given["lm"], "dep_q": CODEBOOKS}, given["mimi"]
    out.mkdir(parents=True)
    save_file(layouts.halved(layouts.weights_of(TINY / "checkpoint")), out / "model.safetensors")
    layouts.write_config(out, {**lm, "model_type": "moshi", "mimi": mimi})
    for name in (CODEC, TOKENIZER):  # the same as the tiny checkpoint's
        os.symlink(os.path.relpath(TINY / "checkpoint" / name, out), out / name)
    return {"lm": lm, "mimi": mimi}


def load(checkpoint: Path, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The language model and the codec in float32."""
    codec = {"sample_rate": 24000, "channels": 1, "frame_rate": 12.5, **arguments["mimi"]}
    mimi = get_mimi(checkpoint / CODEC, codec)
    return get_moshi_lm(checkpoint / "model.safetensors", arguments["lm"], "cpu", torch.float32), mimi


@torch.inference_mode()
def record_codec(mimi: Any) -> dict[str, Tensor]:
    """Codes, latents and sound of the tiny golden recording, frame by frame."""
    pcm = load_file(TINY / "expected" / "mimi_stream.safetensors")["pcm_in"][: CODEC_FRAMES * 1920]
    pieces = pcm.view(CODEC_FRAMES, 1, 1, 1920)
    with mimi.streaming(1):
        codes = torch.cat([mimi.encode(piece) for piece in pieces], -1)
    with mimi.streaming(1):
        latent = torch.cat([mimi.encode_to_latent(piece, quantize=False) for piece in pieces], -1)
    return {"pcm_in": pcm, "latent": latent[0], "codes": codes[0].int(), "pcm_out": decoded(mimi, codes[0].T)}


@torch.inference_mode()
def decoded(mimi: Any, codes: Tensor) -> Tensor:
    """Sound of codes [F, 8]: [F * 1920]."""
    with mimi.streaming(1):
        return torch.cat([mimi.decode(frame[None, :, None]) for frame in codes.long()], -1).flatten()


@torch.inference_mode()
def record_forced_steps(model: Any) -> dict[str, Tensor]:
    """Hidden states and logits for a fixed sequence of codes, past the end of the ring."""
    random = torch.Generator().manual_seed(1)
    text = torch.randint(model.text_card, (1, STEPS + 1), generator=random)
    codes = torch.cat([text, torch.randint(model.card, (2 * CODEBOOKS, STEPS + 1), generator=random)])
    codes[:, 3] = -1
    kept: dict[str, list[Tensor]] = {"hidden": [], "text_logits": [], "audio_logits": []}
    with model.streaming(1):
        for step in range(STEPS):
            hidden, text = model.forward_text(codes[None, :, step : step + 1])
            if step in KEPT:
                kept["hidden"].append(hidden[0, 0])
                kept["text_logits"].append(text[0, 0, 0])
                kept["audio_logits"].append(depth_logits(model, hidden, codes[:, step + 1].clamp(min=0)))
    return {"codes": codes.int(), "steps": torch.tensor(KEPT).int(), **{n: torch.stack(t) for n, t in kept.items()}}


def depth_logits(model: Any, hidden: Tensor, target: Tensor) -> Tensor:
    """The depth transformer's logits [8, card], with the target's tokens fed to it."""
    with model.depformer.streaming(1):
        steps = [model.forward_depformer(k, target[k].view(1, 1, 1), hidden) for k in range(CODEBOOKS)]
    return torch.stack([logits[0, 0, 0] for logits in steps])


@contextmanager
def recorded_draws() -> Iterator[Noise]:
    """Record every draw: its exponentials, in descending order of probability, and their tokens."""
    draws: Noise = []
    original = moshi.utils.sampling.sample_top_k

    def sample_top_k(probs: Tensor, k: int) -> Tensor:
        kept, tokens = torch.topk(probs, min(k, probs.shape[-1]), dim=-1)
        noise = torch.empty_like(kept).exponential_()
        draws.append((noise.flatten(), tokens.flatten().int()))
        return tokens.gather(-1, (kept / noise).argmax(-1, keepdim=True))

    moshi.utils.sampling.sample_top_k = sample_top_k
    try:
        yield draws
    finally:
        moshi.utils.sampling.sample_top_k = original


@torch.inference_mode()
def record_conversation(model: Any, mimi: Any, settings: dict[str, Any]) -> dict[str, Tensor]:
    """A conversation from the first frame on.

    In its first call the package ignores the user's codes, because every stream has its initial token, and returns nothing.
    So the recording has initial tokens for this call's frame, and the user's codes are those from the second call on.
    """
    torch.manual_seed(3)
    user = torch.randint(model.card, (CODEBOOKS, FRAMES), generator=torch.Generator().manual_seed(2))
    first = torch.tensor([model.text_card] + [model.card] * 2 * CODEBOOKS)
    frames, generator = [first], LMGen(model, **settings)
    with recorded_draws() as draws, generator.streaming(1):
        assert generator.step(user[None, :, :1]) is None
        for call in range(FRAMES - 1):
            said = generator.step(user[None, :, call : call + 1])
            frames.append(torch.cat([said[0, :, 0], user[:, call]]))  # delays cancel: it is the frame that was heard
    tokens = torch.stack(frames)
    found = {"prompt_text_tokens": torch.zeros(0).int(), "prompt_steps": torch.ones(1).int(), "user_codes": user.int()}
    found |= {"tokens": tokens.int(), "pcm_out": decoded(mimi, tokens[1:, 1 : 1 + CODEBOOKS])}
    return found | (noise_of(draws) if settings["use_sampling"] else {})


def noise_of(draws: Noise) -> dict[str, Tensor]:
    """The noise of each frame: text [F, 25], audio [F, 8, 20], and their tokens."""
    rows = [draws[start : start + 1 + CODEBOOKS] for start in range(0, len(draws), 1 + CODEBOOKS)]
    found = {}
    for part, kind in enumerate(("noise", "ids")):
        found[f"text_{kind}"] = torch.stack([row[0][part] for row in rows])
        found[f"audio_{kind}"] = torch.stack([torch.stack([draw[part] for draw in row[1:]]) for row in rows])
    return found


def record(out: Path) -> None:
    arguments = make_checkpoint(out / "checkpoint")
    model, mimi = load(out / "checkpoint", arguments)
    (out / "expected").mkdir()
    greedy = {**SAMPLED, "use_sampling": False}
    found = {
        "mimi_stream": record_codec(mimi),
        "lm_teacher_forced": record_forced_steps(model),
        "conversation_greedy": record_conversation(model, mimi, greedy),
        "conversation_sampled": record_conversation(model, mimi, SAMPLED),
    }
    for name, tensors in found.items():
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, out / "expected" / f"{name}.safetensors"
        )
        print(name, json.dumps({key: list(np.shape(tensor)) for key, tensor in tensors.items()}))


if __name__ == "__main__":
    record(Path(sys.argv[1]))
