"""Conversations with forced tokens: of voice, persona and both speakers. Called by calibration and validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pplex.export import weights
from pplex.export.checkpoint import Checkpoint
from pplex.export.dialogues import PERSONAS, dialogue
from pplex.export.synth_codec import stream_codec
from pplex.export.threads import in_threads
from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.audio import frames, normalize_loudness, read_audio
from pplex.runtime.bundle import Voice
from pplex.runtime.config import ModelConfig
from pplex.runtime.delays import DelayRing
from pplex.runtime.errors import AudioError, CalibrationError
from pplex.runtime.files import files_below
from pplex.runtime.ort import available_threads
from pplex.runtime.prompt import make_prompt
from pplex.runtime.synthetic_speech import speech_like
from pplex.runtime.text import Tokenizer

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
SPEECH_FRAMES = 96  # of each conversation
MAX_CONVERSATIONS = 16
Item = TypeVar("Item")

TEXT_EVERY = 3  # frames: speech has three to four words a second

_PERSONA = "You enjoy having a good conversation."
_SAID = (
    "Good morning, how can I help you today? Let me look that up for you. It will be about ten minutes, and there is "
    "nothing else you need to do. Is there anything else I can do for you?"
)


@dataclass(frozen=True)
class ForcedHistory:
    """The input of T steps of the temporal transformer: codes [T, 17] and embedding [T, dim].

    Each step uses one of the two. In a step of a voice prompt all codes are -1; in other steps the embedding is zero.
    """

    codes: Tensor
    embedding: Tensor

    @property
    def target(self) -> Tensor:
        """The tokens of steps 1 to T - 1, [T - 1, 17]; -1 in steps of a voice prompt."""
        return self.codes[1:]


@dataclass(frozen=True)
class CalibrationSet:
    """The conversations for a calibration, and their origin, which the manifest records."""

    items: Sequence[ForcedHistory]
    source: Mapping[str, str]


def default_conversations(
    checkpoint: Checkpoint, tokenizer: Tokenizer, voices: Mapping[str, Voice], count: int = MAX_CONVERSATIONS
) -> CalibrationSet:
    """`count` conversations of synthetic speech: each has another dialogue, and the checkpoint's voices in turn."""
    pcm = _synthetic(checkpoint.config, SPEECH_FRAMES, range(2 * count))
    return _conversations(checkpoint, tokenizer, voices, pcm, "synthetic speech")


def recorded_conversations(
    checkpoint: Checkpoint, tokenizer: Tokenizer, voices: Mapping[str, Voice], folder: Path
) -> CalibrationSet:
    """Conversations from the recordings in `folder`: half the pieces are the user, half the agent.

    Raises CalibrationError.
    """
    try:
        chosen, paths = recorded_pieces(folder, checkpoint.config.frame_size, 2 * MAX_CONVERSATIONS)
    except AudioError as error:
        raise CalibrationError(f"Cannot calibrate: {error}") from error
    pcm = np.concatenate([chosen, chosen[: len(chosen) % 2]])
    return _conversations(checkpoint, tokenizer, voices, pcm, f"{len(chosen)} pieces of {len(paths)} files")


def recorded_pieces(folder: Path, frame_size: int, count: int) -> tuple[Pcm, list[Path]]:
    """Up to `count` pieces [n, SPEECH_FRAMES, 1920], spread over all recordings in a folder, and the files read.

    Raises AudioError if the folder holds no recording, or a recording cannot be read.
    """
    found = [path for path in files_below(folder) if path.suffix.lower() in AUDIO_SUFFIXES]
    paths = _spread(found, count)  # more files than pieces are not read
    pieces = [piece for path in paths for piece in _pieces(path, frame_size)]
    if not pieces:
        raise AudioError(
            f"{folder} does not exist, or holds no recording ({', '.join(AUDIO_SUFFIXES)}). Name a folder of speech, or "
            "leave the option out for synthetic speech."
        )
    return np.stack(_spread(pieces, count)), paths


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Up to `count` of the items, from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(len(items), count)).astype(int)]


def unheard_pieces(config: ModelConfig, count: int) -> Pcm:
    """Pieces [count, SPEECH_FRAMES, 1920] of synthetic speech that the default calibration does not use."""
    return _synthetic(config, SPEECH_FRAMES, range(1000, 1000 + count))


def token_history(checkpoint: Checkpoint, pieces: Pcm, frames: int) -> Tokens:
    """Tokens [T, 17] of a persona and `frames` frames of speech; T may exceed the ring's capacity.

    The speech repeats `pieces` [n, F, 1920]: one piece for the user, the next for the agent.
    """
    config, tokenizer = checkpoint.config, Tokenizer(checkpoint.tokenizer)
    codes = _encoded(checkpoint, config, pieces)  # [n, F, 8]
    rounds = -(-frames // codes.shape[1])
    said, heard = (codes[np.arange(side, side + 2 * rounds, 2) % len(codes)] for side in (0, 1))
    spoken = np.concatenate(
        [_text(tokenizer, config, rounds * codes.shape[1]), *(_joined(x) for x in (said, heard))], 1
    )
    return _history(config, None, _persona(config, tokenizer, _PERSONA), spoken[:frames]).codes.numpy()


def voice_history(config: ModelConfig, voice: Voice) -> ForcedHistory:
    """The steps of a voice prompt, without a persona. Raises PromptError if it does not fit the ring."""
    return _history(config, voice, (), np.zeros((0, config.num_streams), np.int64))


def without_voice(item: ForcedHistory) -> ForcedHistory:
    """The steps after the voice prompt."""
    after = ~item.embedding.any(1)
    return ForcedHistory(item.codes[after], item.embedding[after])


def conversation_history(
    config: ModelConfig, voice: Voice | None, persona: Sequence[int], frames: Tokens
) -> ForcedHistory:
    """The steps of a prompt and of the frames [F, 17] of the conversation after it, all of them forced.

    One column more than the model reads: the last step's target. Raises PromptError.
    """
    return _history(config, voice, persona, np.concatenate([frames, frames[-1:]]))


def _joined(pieces: Tokens) -> Tokens:
    return pieces.reshape(-1, pieces.shape[-1])


def _synthetic(config: ModelConfig, frames: int, seeds: Iterable[int]) -> Pcm:
    """Synthetic speech [n, F, 1920]."""
    size = config.frame_size
    return np.stack([speech_like(frames, size, seed=seed).reshape(-1, size) for seed in seeds])


def _encoded(checkpoint: Checkpoint, config: ModelConfig, pcm: Pcm) -> Tokens:
    """Codes [n, F, 8] of pcm [n, F, 1920]."""
    encoder = weights.load("mimi_encode", checkpoint)

    def encode(pieces: Pcm) -> Tokens:
        with torch.inference_mode():
            codes: Tokens = stream_codec("mimi_encode", config, encoder, torch.from_numpy(pieces)[:, :, None]).numpy()
        return codes

    return np.concatenate(in_threads(encode, np.array_split(pcm, min(len(pcm), available_threads()))))


def _pieces(path: Path, frame_size: int) -> list[Pcm]:
    """Pieces [SPEECH_FRAMES, 1920] of a recording; the last one is padded with silence."""
    try:
        spoken = frames(normalize_loudness(read_audio(path)), frame_size)
    except AudioError as error:
        reason = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise AudioError(f"{reason}\nRemove it from the folder of recordings, or name another folder.") from error
    spoken = np.concatenate([spoken, np.zeros((-len(spoken) % SPEECH_FRAMES, frame_size), np.float32)])
    return list(spoken.reshape(-1, SPEECH_FRAMES, frame_size))


def _conversations(
    checkpoint: Checkpoint, tokenizer: Tokenizer, voices: Mapping[str, Voice], pcm: Pcm, recordings: str
) -> CalibrationSet:
    """S conversations from pcm [2 S, F, 1920]: the first S pieces are the user, the others the agent."""
    config, count = checkpoint.config, len(pcm) // 2  # independent of the bundle's capacity
    names = [*voices][:count]
    dialogues = [dialogue(config, tokenizer, pcm.shape[1], seed) for seed in range(count)]
    heard = [talk.heard(pcm[count + i], pcm[i]) for i, talk in enumerate(dialogues)]
    codes = _encoded(checkpoint, config, np.concatenate([np.stack(side) for side in zip(*heard, strict=True)]))
    items = [
        _conversation(
            config,
            voices[names[i % len(names)]] if names else None,
            _persona(config, tokenizer, PERSONAS[i % len(PERSONAS)]),
            np.concatenate([talk.text, codes[i], codes[count + i]], 1),
        )
        for i, talk in enumerate(dialogues)
    ]
    return CalibrationSet(items, {"recordings": recordings, "voices": ", ".join(names)})


def _persona(config: ModelConfig, tokenizer: Tokenizer, persona: str) -> list[int]:
    """The persona's tokens, at most a quarter of the ring: a small model must have room for speech."""
    return tokenizer.encode_persona(persona)[: config.temporal.capacity // 4] if config.takes_prompt else []


def _text(tokenizer: Tokenizer, config: ModelConfig, frames: int) -> Tokens:
    """Text tokens of F frames, [F, 1]: the same words repeated, with padding in between as in speech."""
    text = np.full((frames, 1), config.text_padding, np.int64)
    tokens = tokenizer.encode(_SAID)
    places = range(0, frames, TEXT_EVERY)
    text[places, 0] = np.resize(tokens, len(places))
    return text


def _conversation(config: ModelConfig, voice: Voice | None, persona: Sequence[int], spoken: Tokens) -> ForcedHistory:
    """The first steps of a conversation, until the ring is full."""
    whole, kept = _history(config, voice, persona, spoken), config.temporal.capacity - 1
    return ForcedHistory(whole.codes[:kept], whole.embedding[:kept])


def _history(config: ModelConfig, voice: Voice | None, persona: Sequence[int], spoken: Tokens) -> ForcedHistory:
    """A prompt and the frames [F, 17] after it, shifted by the runtime's token ring."""
    prompt, ring = make_prompt(config, voice, persona), DelayRing(1, config.delays, config.initial_tokens)
    silent = np.full((prompt.voice_steps, config.num_streams), -1, np.int64)
    if voice is not None:
        for _ in silent:
            ring.force(0, ring.initial)
        ring.tokens[0] = voice.cache
    codes = np.concatenate([silent, [ring.force(0, frame) for frame in (*prompt.tokens, *spoken)]])
    embedding = np.zeros((len(codes), config.temporal.dim), np.float32)
    if voice is not None:
        embedding[: prompt.voice_steps] = voice.embeddings
    return ForcedHistory(torch.from_numpy(codes), torch.from_numpy(embedding))
