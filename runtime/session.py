"""Sessions in slots, and the path of an 80 ms frame through them: `Runtime.step`.

Called by `bench`, `runtime`, `server` and `validate`.
"""

import os
import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.backend import Backend, open_to_run
from pplex.runtime.bundle import TOKENIZER_FILE, Bundle
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.errors import AudioError, PromptError, SlotError
from pplex.runtime.gpus import ONNXRUNTIME
from pplex.runtime.graphs import batch_sizes
from pplex.runtime.noise import FrameNoise
from pplex.runtime.priming import Primer, VoiceName
from pplex.runtime.samples import check_frame, check_samples
from pplex.runtime.sampling import DEFAULT_SAMPLING, GREEDY, Sampling
from pplex.runtime.stages import Stages
from pplex.runtime.text import TextStream, Tokenizer
from pplex.runtime.token_path import TokenPath


@dataclass(frozen=True)
class Reply:
    """The agent's frame: pcm [1920] float32, text ("" or a piece), tokens [17] (text, agent, user)."""

    pcm: Pcm
    text: str
    tokens: Tokens


class Session:
    """One conversation: a slot of a Runtime and a small record on the host. `Runtime.open` makes it."""

    def __init__(self, runtime: "Runtime", row: int, seed: int, sampling: Sampling):
        self.runtime, self.row, self.seed, self.sampling = runtime, row, seed, sampling
        self.frame = 0  # frames stepped so far
        self.prompt_end: Tokens | None = None  # the last frame [17] before the first one
        self.text = TextStream(runtime.tokenizer)
        self.is_open = True

    def step(self, pcm: Pcm) -> Reply:
        """Take a frame of the user, [1920] float32 at 24 kHz; return the agent's frame. Raises AudioError, SlotError."""
        return self.runtime.step({self: pcm})[self]

    def step_codes(self, codes: Tokens, frame_noise: FrameNoise | None = None) -> Tokens:
        """Step one frame without the codec: the user's codes [8] in, all streams' tokens [17] out.

        `frame_noise`: recorded noise to use instead of the session's own.
        """
        return self.runtime.step_codes({self: codes}, {self: frame_noise} if frame_noise else {})[self]

    def close(self) -> None:
        """Free the slot. A closed session cannot be stepped. A second call does nothing."""
        self.runtime.close(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime:
    """A loaded bundle that steps up to `slots` conversations together. Not for use by several threads at once.

    ONNX graphs on a GPU: only the thread that loads the bundle may open and step sessions, because ONNX Runtime keeps its
    captured CUDA graphs by thread. Other threads get an EngineError.
    """

    def __init__(
        self,
        bundle: Bundle,
        slots: int = 8,
        threads: int | None = None,
        batches: Sequence[int] | None = None,
        prefix_bytes: int = 1 << 30,
        device: str | Backend | None = None,
        logits: bool = False,
    ):
        """Load the engines of `bundle`.

        batches: engine batch sizes to use; powers of two by default, from 2 for compiled engines. The largest must be at
        least `slots`. With only one batch size, `batches=[slots]`, a session's output is the same to the bit, whatever other
        sessions do.
        prefix_bytes: memory for primed prompts. A voice and persona that were used before are copied from there.
        device: "cpu" or "cuda" for ONNX graphs; None for a GPU if one is found. A compiled engine has its own.
        logits: keep the logits, for validation.
        Raises SlotError, and EngineError if the bundle cannot run here.
        """
        if slots < 1 or (batches is not None and min(batches, default=0) < 1):
            raise SlotError(f"{slots} slots in batches of {batches or 'any size'}: a runtime needs at least 1.")
        self.bundle, self.config, self.slots = bundle, bundle.config, slots
        compiled = any(engine["kind"] != ONNXRUNTIME for engine in bundle.manifest["engines"].values())
        self.batches = sorted(batches or batch_sizes(slots, compiled))
        if self.batches[-1] < slots:
            raise SlotError(
                f"{slots} slots need a batch size of at least {slots}; the largest given is {self.batches[-1]}."
            )
        self.tokenizer = Tokenizer(bundle.path(TOKENIZER_FILE))
        self.logits = logits
        self.stages = Stages(bundle, self.batches[-1], threads, device, logits)
        self.tokens = TokenPath(self.stages, self.config)
        self.ring = self.tokens.ring
        self._sessions: list[Session | None] = [None] * slots
        self.primer = Primer(bundle, self.stages, self.ring, prefix_bytes)
        self.stages.warm_up(self.batches)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], slots: int = 8, **options: Any) -> "Runtime":
        """Open, check and load the bundle in `folder`; `options` as in the constructor.

        Raises BundleError, EngineError, AccessError.
        """
        return cls(open_to_run(Path(folder), options.get("device")), slots, **options)

    # One frame.

    def step(self, pcm: Mapping[Session, Pcm]) -> dict[Session, Reply]:
        """Step one frame [1920] of each given session, with one call per graph. If a frame is refused, no session steps.

        Raises AudioError for a wrong shape and for samples that are not finite or far above full scale (unscaled
        integers), SlotError for a closed session.
        """
        rows = self._rows(pcm)
        if not pcm:
            return {}
        stages, batch = self.stages, self._batch()
        self._take(pcm, batch)
        stages.active[:batch] = False
        stages.active[rows] = True
        self.tokens.begin(rows, batch)

        stages.run_frame(batch)

        self.tokens.hear(rows, stages.user_codes[rows])
        tokens = self.tokens.finish(rows)  # [n, 17]
        _count(pcm)
        said = zip(pcm, tokens, tokens[:, 0].tolist(), strict=True)
        return {s: Reply(stages.pcm_out[s.row, 0].copy(), s.text.push(text), frame) for s, frame, text in said}

    def step_codes(
        self, codes: Mapping[Session, Tokens], recorded: Mapping[Session, FrameNoise] | None = None
    ) -> dict[Session, Tokens]:
        """`step` without the codec: the user's codes [8] in, the tokens of all streams [17] out.

        Raises AudioError for invalid codes, NoiseError for invalid recorded noise, SlotError for a closed session.
        """
        rows = self._rows(codes)
        if not codes:
            return {}
        recorded = recorded or {}
        for frame_noise in recorded.values():
            frame_noise.check(self.config)
        checked = np.stack([_checked_codes(frame, self.config.audio_card) for frame in codes.values()])
        batch = self._batch()
        self.tokens.hear(rows, checked)
        self.tokens.begin(rows, batch)
        with self.tokens.replayed({session.row: frame for session, frame in recorded.items()}):
            self.stages.run_language(batch)
        tokens = self.tokens.finish(rows)
        _count(codes)
        return {session: tokens[i] for i, session in enumerate(codes)}

    def _take(self, pcm: Mapping[Session, Pcm], batch: int) -> None:
        """Copy the user's frames into their slots' rows. If one is refused, all rows become zeros."""
        heard = self.stages.pcm_in[:batch, 0]  # [batch, 1920]
        try:
            with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite, and is then refused
                for session, frame in pcm.items():
                    heard[session.row] = check_frame(frame, self.config.frame_size)
            check_samples(heard)
        except AudioError:
            heard[...] = 0
            raise

    def _rows(self, sessions: Mapping[Session, Any]) -> Array:
        self.stages.check_thread()
        for session in sessions:
            if not session.is_open or session.runtime is not self:
                raise SlotError("This session is closed, or belongs to another runtime. Open one: runtime.open(...)")
        return np.fromiter((session.row for session in sessions), np.intp, len(sessions))

    def _batch(self) -> int:
        """The smallest batch size that includes the highest slot in use."""
        highest = max(row for row, session in enumerate(self._sessions) if session is not None)
        return next(batch for batch in self.batches if batch > highest)

    # Sessions.

    def open(
        self,
        voice: VoiceName = None,
        persona: str | Sequence[int] = "",
        seed: int | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        recorded: FrameNoise | None = None,
    ) -> Session:
        """Open a session in the lowest free slot and prime it.

        voice: one of the bundle's names, an audio file of the voice to imitate, or None. persona: text, or its tokens.
        seed: of the sampling noise; random if None. recorded: noise for the first draw instead of the session's own.
        Raises SlotError if every slot is taken, PromptError for an invalid voice or persona, AudioError for an unreadable
        voice file, NoiseError for invalid recorded noise.
        """
        opening = self.begin(voice, persona, seed, sampling, recorded)
        try:
            while True:
                next(opening)
        except StopIteration as end:
            session: Session = end.value
            return session

    def check_prompt(self, voice: VoiceName = None, persona: str | Sequence[int] = "") -> None:
        """Raise PromptError if `open` would, for a voice of the bundle or none. Safe while other threads use the runtime."""
        self.primer.check(voice, self._persona_tokens(persona))

    def _persona_tokens(self, persona: str | Sequence[int]) -> list[int]:
        return self.tokenizer.encode_persona(persona) if isinstance(persona, str) else [int(token) for token in persona]

    def begin(
        self,
        voice: VoiceName = None,
        persona: str | Sequence[int] = "",
        seed: int | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        recorded: FrameNoise | None = None,
    ) -> Generator[None, None, Session]:
        """`open` as a generator: it yields between chunks of the priming (prefill), and returns the session.

        Other sessions can step between two chunks. A generator that is closed early frees its slot.
        """
        self.stages.check_thread()
        row = next((row for row, session in enumerate(self._sessions) if session is None), None)
        if row is None:
            raise SlotError(f"All {self.slots} slots are taken. Close a session, or load the bundle with more slots.")
        tokens = self._persona_tokens(persona)
        session = Session(self, row, secrets.randbits(63) if seed is None else _checked_seed(seed), sampling)
        self._sessions[row] = session
        try:
            self._set_sampling(row, sampling)
            if not sampling.is_greedy:
                self.tokens.noise.open(row, session.seed)
            yield from self.primer.prime(row, voice, tokens)
            session.prompt_end = self.tokens.lead(row, recorded)
        except BaseException:
            session.close()
            raise
        return session

    def close(self, session: Session) -> None:
        """Free a session's slot and clear its state."""
        if session.runtime is not self:
            raise SlotError("This session belongs to another runtime, which must close it: session.close()")
        if session.is_open:
            session.is_open = False
            self.stages.reset(session.row, int(self.ring.step[session.row]))
            self.ring.reset(session.row)
            self._set_sampling(session.row, GREEDY)
            self.tokens.noise.close(session.row)
            self._sessions[session.row] = None

    def _set_sampling(self, row: int, sampling: Sampling) -> None:
        self.stages.text_temperature[row], self.stages.text_top_k[row] = sampling.text_temperature, sampling.text_top_k
        self.stages.audio_temperature[row], self.stages.audio_top_k[row] = (
            sampling.audio_temperature,
            sampling.audio_top_k,
        )


def _count(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.frame += 1


def _checked_seed(seed: int) -> int:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 64:
        raise PromptError(f"The seed is {seed}, but must be a whole number, 0 to 2^64 - 1.")
    return int(seed)


def _checked_codes(frame: Tokens, card: int) -> Tokens:
    codes = np.asarray(frame)
    if codes.shape != (CODEBOOKS,) or codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= card:
        raise AudioError(f"A frame is {CODEBOOKS} whole codes from 0 to {card - 1}; this one is {frame!r}.")
    return codes.astype(np.int64)
