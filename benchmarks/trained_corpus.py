"""Turns made-up dialogues into columns of tokens, as the runtime primes and shifts them. Called by trained.py."""

from collections.abc import Sequence

import numpy as np
import torch
from trained_codes import Numbers
from trained_dialogues import VOICES, Dialogue, voice_speech
from trained_language import Corpus

from pplex.export.mimi import MimiEncoder
from pplex.export.synth_codec import stream_codec
from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.config import CODEBOOKS, SINE_CODES, ModelConfig
from pplex.runtime.prompt import make_prompt
from pplex.runtime.text import Tokenizer

VOICE_FRAMES = 25  # of a voice prompt
VOICELESS = 0.15  # share of the dialogues without a voice
SLOTS = 64  # conversations that are encoded side by side


def encode(config: ModelConfig, encoder: MimiEncoder, pcm: Pcm) -> Tokens:
    """Codes [n, F, 8] of pcm [n, F, 1920], frame by frame."""
    with torch.inference_mode():
        codes: Tokens = stream_codec("mimi_encode", config, encoder, torch.from_numpy(pcm)[:, :, None]).numpy()
    return codes


def voice_codes(config: ModelConfig, encoder: MimiEncoder) -> dict[str, Tokens]:
    """The frames [V, 17] of every voice prompt."""
    pcm = np.stack([voice_speech(name, VOICE_FRAMES) for name in VOICES])
    text = np.full((VOICE_FRAMES, 1), config.text_padding)
    user = np.tile(SINE_CODES, (VOICE_FRAMES, 1))
    codes = encode(config, encoder, pcm)
    return {name: np.concatenate([text, agent, user], 1) for name, agent in zip(VOICES, codes, strict=True)}


def make_corpus(
    config: ModelConfig,
    encoder: MimiEncoder,
    tokenizer: Tokenizer,
    numbers: Numbers,
    spoken: Sequence[Dialogue],
    columns: int,
    seed: int,
) -> Corpus:
    """The dialogues as columns [N, columns, 17] of compact tokens."""
    random, voices = np.random.default_rng(seed), voice_codes(config, encoder)
    rows, first = list[Tokens](), list[int]()
    for start in range(0, len(spoken), SLOTS):
        some = spoken[start : start + SLOTS]
        codes = encode(config, encoder, np.concatenate([[d.agent for d in some], [d.user for d in some]]))
        for dialogue, agent, user in zip(some, codes[: len(some)], codes[len(some) :], strict=True):
            voice = None if random.random() < VOICELESS else voices[dialogue.voice]
            prompt = prompt_frames(config, voice, tokenizer.encode_persona(dialogue.persona))
            frames = np.concatenate([prompt, np.concatenate([dialogue.text[:, None], agent, user], 1)])
            whole = shifted(config, frames)[:columns]
            rows.append(np.pad(whole, ((0, columns - len(whole)), (0, 0)), constant_values=-1))
            first.append(len(prompt) + 1)
    return Corpus(numbers.compacted(np.stack(rows)), np.array(first))


def prompt_frames(config: ModelConfig, voice: Tokens | None, persona: Sequence[int]) -> Tokens:
    """The frames [P, 17] before a conversation: a voice [V, 17] if there is one, silence, the persona, silence."""
    frames = make_prompt(config, None, persona).tokens
    return frames if voice is None else np.concatenate([voice, frames[:1], frames])


def shifted(config: ModelConfig, frames: Tokens) -> Tokens:
    """Columns [F + 1, 17] of frames [F, 17]: column c of a stream holds frame c - 1 - delay, at first its initial token."""
    initial = np.array(config.initial_tokens)
    before = np.tile(initial, (1 + config.max_delay, 1))
    padded = np.concatenate([before, frames])
    columns: Array = np.arange(len(frames) + 1)[:, None] + config.max_delay - np.array(config.delays)
    return np.take_along_axis(padded, columns, 0)


def entropies(corpus: Corpus, live: int) -> dict[str, list[float]]:
    """Entropy in bits of each codebook, of the agent and of the user, and the live codes that occur."""
    found: dict[str, list[float]] = {}
    for who, stream in (("agent", 1), ("user", 1 + CODEBOOKS)):
        counts = [
            np.bincount(column[(column >= 0) & (column < live)], minlength=live)
            for column in (corpus.columns[..., k].ravel() for k in range(stream, stream + CODEBOOKS))
        ]
        shares = [count[count > 0] / count.sum() for count in counts]
        found[f"{who}_bits"] = [float(-(share * np.log2(share)).sum()) for share in shares]
        found[f"{who}_codes"] = [float((count > 0).sum()) for count in counts]
    return found
