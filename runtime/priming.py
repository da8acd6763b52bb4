"""Priming (prefill): runs a voice and a persona through the temporal transformer in chunks, and caches the result.

Called by `runtime.session`.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.audio import frames, normalize_loudness, read_audio
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.delays import DelayRing, RingRow
from pplex.runtime.errors import PromptError
from pplex.runtime.prompt import NO_PROMPT, Prompt, make_prompt
from pplex.runtime.stages import Stages
from pplex.runtime.voice_file import AnyVoice

VoiceName = str | os.PathLike[str] | None


class EncodedVoice(NamedTuple):
    """A recorded voice after its first use: its key, and its codes [F, 8]."""

    key: str
    codes: Tokens


PrefixKey = tuple[str | int | None, ...]  # voice, then the persona's tokens

PRIMING_STEPS = 64  # forced steps in one call: the work of a few frames. Other sessions can step between two calls
VOICE_SUFFIXES = (".wav", ".flac", ".ogg")


@dataclass(frozen=True)
class _Prefix:
    """A primed slot, ready to be copied: the temporal transformer's ring entries, the row of the token ring, the voice."""

    rings: Mapping[str, Array]
    ring_row: RingRow
    voice: str | EncodedVoice | None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.rings.values())


class Primer:
    """Primes slots of `stages` and `ring`, and caches up to `prefix_bytes` of primed states."""

    def __init__(self, bundle: Bundle, stages: Stages, ring: DelayRing, prefix_bytes: int):
        self.bundle, self.config, self.stages, self.ring = bundle, bundle.config, stages, ring
        self._prefixes: OrderedDict[PrefixKey, _Prefix] = OrderedDict()  # the most recently used is last
        self._prefix_bytes = prefix_bytes

    def prime(
        self, row: int, voice: VoiceName | EncodedVoice, persona: list[int]
    ) -> Generator[None, None, str | EncodedVoice | None]:
        """Run a new slot through its prompt, yielding between chunks; returns the voice, a recording as its codes.

        For a cached voice and persona, the primed state is copied bit for bit. Raises PromptError, AudioError.
        """
        voice_key, recording = (voice.key, None) if isinstance(voice, EncodedVoice) else self._find_voice(voice)
        key: PrefixKey = (voice_key, *persona)
        prefix = self._prefixes.get(key)
        if prefix is not None:
            self._prefixes.move_to_end(key)
            self.stages.restore(row, prefix.rings)
            self.ring.restore(row, prefix.ring_row)
            return prefix.voice
        found: str | EncodedVoice | None = voice if isinstance(voice, EncodedVoice) else voice_key
        if recording is not None:
            spoken = frames(recording, self.config.frame_size)
            make_prompt(self.config, np.zeros((len(spoken), CODEBOOKS), np.int64), persona)  # raises if it does not fit
            assert voice_key is not None
            found = EncodedVoice(voice_key, (yield from self._encode(row, spoken)))
        codes = found.codes if isinstance(found, EncodedVoice) else self._recorded(found)
        prompt = make_prompt(self.config, codes, persona)
        yield from self._run_prompt(row, prompt)
        if prompt.steps:
            self._keep(key, _Prefix(self.stages.save(row, prompt.steps), self.ring.save(row), found))
        return found

    def check(self, voice: VoiceName | EncodedVoice, persona: list[int]) -> int | None:
        """The steps of a prompt; None for a recording, which is not encoded yet. Raises PromptError if `prime` would."""
        if isinstance(voice, EncodedVoice):
            return make_prompt(self.config, voice.codes, persona).steps
        voice_key, recording = self._find_voice(voice)
        return None if recording is not None else make_prompt(self.config, self._recorded(voice_key), persona).steps

    def _recorded(self, voice_key: str | None) -> AnyVoice | None:
        return None if voice_key is None else self.bundle.voices[voice_key]

    def _run_prompt(self, row: int, prompt: Prompt) -> Generator[None, None, None]:
        """Step a slot through a prompt in chunks of forced steps."""
        codes, embedding = self._inputs(row, prompt)
        for start in range(0, prompt.steps, PRIMING_STEPS):
            chunk = slice(start, start + PRIMING_STEPS)
            self.stages.run_forced(row, start, codes[chunk], embedding[chunk])
            yield

    def _inputs(self, row: int, prompt: Prompt) -> tuple[Tokens, npt.NDArray[np.float32]]:
        """The temporal transformer's inputs for a prompt, codes [T, 17] and embedding [T, dim]; advances the token ring."""
        codes = np.full((prompt.steps, self.config.num_streams), -1, np.int64)
        embedding = np.zeros((prompt.steps, self.config.temporal.dim), np.float32)
        if prompt.voice is not None:
            embedding[: prompt.voice_steps] = prompt.voice.embeddings
            for _ in range(prompt.voice_steps):
                self.ring.force(row, self.ring.initial)
            self.ring.tokens[row] = prompt.voice.cache
        for step, frame in enumerate(prompt.tokens, start=prompt.voice_steps):
            codes[step] = self.ring.force(row, frame)
        return codes, embedding

    def _find_voice(self, voice: VoiceName) -> tuple[str | None, Pcm | None]:
        """A voice's key, and its recording [samples] unless it is one of the bundle's."""
        if voice is None:
            return None, None
        if not self.config.takes_prompt:
            raise PromptError(NO_PROMPT)
        name = os.fspath(voice)
        if name.removesuffix(".pt") in self.bundle.voices:
            return name.removesuffix(".pt"), None
        if Path(name).suffix.lower() not in VOICE_SUFFIXES:
            known = f"has {', '.join(self.bundle.voices)}" if self.bundle.voices else "has no voices"
            raise PromptError(
                f"Unknown voice {name!r}. This bundle {known}; or name an audio file ({', '.join(VOICE_SUFFIXES)})."
            )
        recording = normalize_loudness(read_audio(name))
        return hashlib.sha256(recording.tobytes()).hexdigest(), recording

    def _encode(self, row: int, spoken: Pcm) -> Generator[None, None, Tokens]:
        """Codes [F, 8] of frames [F, 1920], from the slot's own encoder, which is reset afterwards."""
        stages, codes = self.stages, list[Tokens]()
        try:
            for frame in spoken:
                stages.active[row], stages.pcm_in[row, 0] = True, frame
                stages.run("mimi_encode", 1, row)
                codes.append(stages.user_codes[row].copy())
                yield
        finally:  # also if the caller stops early
            stages.engines["mimi_encode"].reset(row, self.config.mimi.steps_per_frame * len(codes))
        return np.stack(codes)

    def _keep(self, key: PrefixKey, prefix: _Prefix) -> None:
        """Cache a primed state. Drop the least recently used states until all fit."""
        if prefix.nbytes > self._prefix_bytes:
            return
        self._prefixes[key] = prefix
        while sum(kept.nbytes for kept in self._prefixes.values()) > self._prefix_bytes:
            self._prefixes.popitem(last=False)
