"""Sessions in slots, and the path of an 80 ms frame through them: `Runtime.step`.

Called by `bench`, `runtime`, `server` and `validate`.
"""

import os
import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pplex.runtime.arrays import Array, Pcm, Tokens
from pplex.runtime.backend import Backend, open_to_run
from pplex.runtime.bundle import TOKENIZER_FILE, Bundle
from pplex.runtime.config import CODEBOOKS
from pplex.runtime.control import Control
from pplex.runtime.errors import AudioError, PromptError, SlotError
from pplex.runtime.gpus import ONNXRUNTIME
from pplex.runtime.graphs import batch_sizes
from pplex.runtime.noise import FrameNoise
from pplex.runtime.orders import Orders
from pplex.runtime.priming import Primer, VoiceName
from pplex.runtime.rebuild import Agent, Memory
from pplex.runtime.samples import check_frame, check_samples
from pplex.runtime.sampling import DEFAULT_SAMPLING, GREEDY, Sampling
from pplex.runtime.snapshot import Snapshot, graphs_digest
from pplex.runtime.stages import Stages
from pplex.runtime.text import TextStream, Tokenizer
from pplex.runtime.token_path import TokenPath


@dataclass(frozen=True)
class Reply:
    """The agent's frame: pcm [1920] float32, text ("" or a piece), tokens [17] (text, agent, user)."""

    pcm: Pcm
    text: str
    tokens: Tokens


class Session(Orders):
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

    # Saved; its orders are in Orders.

    def snapshot(self) -> Snapshot:
        """Everything that the next frame depends on: `runtime.open(snapshot=...)` continues from it, bit for bit."""
        facts, arrays = self.control().save(self.row)
        facts |= {"seed": self.seed, "sampling": asdict(self.sampling), "frame": self.frame, "text": self.text.save()}
        return Snapshot(
            graphs_digest(self.runtime.bundle), facts, {**arrays, "prompt_end": np.asarray(self.prompt_end)}
        )

    def control(self) -> Control:
        self.runtime.check(self)
        return self.runtime.control

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
        memory_window: int | None = None,
        spare: bool = False,
    ):
        """Load the engines of `bundle`.

        batches: engine batch sizes to use; powers of two by default, from 2 for compiled engines. The largest must be at
        least `slots`. With only one batch size, `batches=[slots]`, a session's output is the same to the bit, whatever other
        sessions do.
        prefix_bytes: memory for primed prompts. A voice and persona that were used before are copied from there.
        device: "cpu" or "cuda" for ONNX graphs; None for a GPU if one is found. A compiled engine has its own.
        logits: keep the logits, for validation.
        memory_window: rebuild a session by itself before it has this number of steps, 12.5 a second and the prompt's: its
        persona then never leaves the model's memory. Call `work` between frames.
        spare: keep memory of one more slot for rebuilds, so that they need no free slot. A memory window implies it.
        Raises SlotError, SteeringError for a window that is too short, too long, or too fast for this engine, and
        EngineError if the bundle cannot run here.
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
        spares = int(spare or memory_window is not None)
        self.stages = Stages(bundle, self.batches[-1], threads, device, logits, spares)
        self.tokens = TokenPath(self.stages, self.config)
        self.ring = self.tokens.ring
        self._sessions: list[Session | None] = [None] * slots
        self._spares = list(range(self.batches[-1], self.batches[-1] + spares))
        self._lent = set[int]()  # free slots of sessions that a rebuild uses
        self.primer = Primer(bundle, self.stages, self.ring, prefix_bytes)
        lender = self._take_spare, self._give_spare
        self.memory = Memory(self.stages, self.ring, self.primer, self.tokenizer, *lender, memory_window)
        self.control = Control(self.stages, self.tokens, self.memory, self.tokenizer)
        self.stages.warm_up(self.batches)
        self.memory.check_speed()

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
        self.control.begin(rows)
        self.tokens.begin(rows, batch)

        stages.run_frame(batch)

        self.tokens.hear(rows, stages.user_codes[rows])
        tokens = self.control.finish(rows)  # [n, 17]
        self.control.remember(rows, tokens, has_audio=True)
        _count(pcm)
        said = zip(pcm, tokens, tokens[:, 0].tolist(), strict=True)
        return {s: Reply(stages.pcm_out[s.row, 0].copy(), s.text.push(text), frame) for s, frame, text in said}

    def step_codes(
        self,
        codes: Mapping[Session, Tokens],
        recorded: Mapping[Session, FrameNoise] | None = None,
        forced: Mapping[Session, Tokens] | None = None,
    ) -> dict[Session, Tokens]:
        """`step` without the codec: the user's codes [8] in, the tokens of all streams [17] out.

        forced: tokens [9] of text and agent for the next frame to be sampled, -1 for a free one.
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
        self.control.begin(rows, {session.row: tokens for session, tokens in (forced or {}).items()})
        self.tokens.begin(rows, batch)
        with self.tokens.replayed({session.row: frame for session, frame in recorded.items()}):
            self.stages.run_language(batch)
        frames = self.control.finish(rows)
        self.control.remember(rows, frames, has_audio=False)
        _count(codes)
        return {session: frames[i] for i, session in enumerate(codes)}

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

    def check(self, *sessions: Session) -> None:
        """Raise SlotError unless all sessions are open and of this runtime, EngineError in another thread than its own."""
        self.stages.check_thread()
        for session in sessions:
            if not session.is_open or session.runtime is not self:
                raise SlotError("This session is closed, or belongs to another runtime. Open one: runtime.open(...)")

    def _rows(self, sessions: Mapping[Session, Any]) -> Array:
        self.check(*sessions)
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
        greeting: str | None = None,
        snapshot: Snapshot | None = None,
    ) -> Session:
        """Open a session in the lowest free slot and prime it.

        voice: one of the bundle's names, an audio file of the voice to imitate, or None. persona: text, or its tokens.
        seed: of the sampling noise; random if None. recorded: noise for the first draw instead of the session's own.
        greeting: what the agent says first. snapshot: continue a saved session, which has all other settings.
        Raises SlotError if every slot is taken, PromptError for an invalid voice or persona, AudioError for an unreadable
        voice file, NoiseError for invalid recorded noise, SteeringError for a greeting that cannot be said, SnapshotError
        for a snapshot of another bundle.
        """
        if snapshot is not None:
            return self._restore(snapshot)
        opening = self.begin(voice, persona, seed, sampling, recorded, greeting)
        try:
            while True:
                next(opening)
        except StopIteration as end:
            session: Session = end.value
            return session

    def check_prompt(
        self, voice: VoiceName = None, persona: str | Sequence[int] = "", greeting: str | None = None
    ) -> None:
        """Raise PromptError or SteeringError if `open` would, for a voice of the bundle or none.

        Safe while other threads use the runtime.
        """
        self.control.check(_agent(voice, persona), greeting)

    def begin(
        self,
        voice: VoiceName = None,
        persona: str | Sequence[int] = "",
        seed: int | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        recorded: FrameNoise | None = None,
        greeting: str | None = None,
        forced: Tokens | None = None,
    ) -> Generator[None, None, Session]:
        """`open` as a generator: it yields between chunks of the priming (prefill), and returns the session.

        Other sessions can step between two chunks. A generator that is closed early frees its slot. forced: tokens [9] of
        the first frame, as in `step_codes`.
        """
        self.stages.check_thread()
        agent = _agent(voice, persona)
        seed = secrets.randbits(63) if seed is None else _checked_seed(seed)
        session = self._new_session(seed, sampling)
        row, rows = session.row, np.array([session.row])
        try:
            if not sampling.is_greedy:
                self.tokens.noise.open(row, session.seed)
            yield from self.memory.open(row, agent)
            if greeting is not None:
                self.control.say(row, greeting)
            self.control.begin(rows, {} if forced is None else {row: forced})
            session.prompt_end = self.tokens.lead(row, recorded)
            self.control.steering.finish(rows)
        except BaseException:
            session.close()
            raise
        return session

    def _new_session(self, seed: int, sampling: Sampling) -> Session:
        """A session in the lowest free slot."""
        free = (row for row, session in enumerate(self._sessions) if session is None and row not in self._lent)
        row = next(free, None)
        if row is None:
            raise SlotError(f"All {self.slots} slots are taken. Close a session, or load the bundle with more slots.")
        session = self._sessions[row] = Session(self, row, seed, sampling)
        self._set_sampling(row, sampling)
        return session

    def close(self, session: Session) -> None:
        """Free a session's slot and clear its state."""
        if session.runtime is not self:
            raise SlotError("This session belongs to another runtime, which must close it: session.close()")
        if session.is_open:
            session.is_open = False
            self.control.reset(session.row)
            self.stages.reset(session.row, int(self.ring.step[session.row]))
            self.ring.reset(session.row)
            self._set_sampling(session.row, GREEDY)
            self.tokens.noise.close(session.row)
            self._sessions[session.row] = None

    def work(self) -> bool:
        """Run one chunk of a rebuild that the memory window asks for. Returns whether more wait. Call it between frames."""
        return self.memory.work()

    def _take_spare(self) -> int | None:
        """A slot for a rebuild, which no session gets meanwhile."""
        if self.stages.slots > self.batches[-1]:  # a runtime with a spare slot keeps its other ones for sessions
            return self._spares.pop() if self._spares else None
        free = [row for row, session in enumerate(self._sessions) if session is None and row not in self._lent]
        if not free:
            return None
        self._lent.add(free[-1])  # the highest: a newcomer should get a low one
        return free[-1]

    def _give_spare(self, row: int) -> None:
        if row in self._lent:
            self._lent.remove(row)
        else:
            self._spares.append(row)

    def _restore(self, snapshot: Snapshot) -> Session:
        """A session in the lowest free slot that continues a snapshot."""
        self.stages.check_thread()
        snapshot.check(self.bundle)
        facts, arrays = snapshot.facts, snapshot.arrays
        session = self._new_session(facts["seed"], Sampling(**facts["sampling"]))
        try:
            self.control.restore(session.row, facts, arrays)
            session.frame, session.prompt_end = facts["frame"], arrays["prompt_end"]
            session.text.restore(facts["text"])
        except BaseException:
            session.close()
            raise
        return session

    def _set_sampling(self, row: int, sampling: Sampling) -> None:
        self.stages.text_temperature[row], self.stages.text_top_k[row] = sampling.text_temperature, sampling.text_top_k
        self.stages.audio_temperature[row], self.stages.audio_top_k[row] = (
            sampling.audio_temperature,
            sampling.audio_top_k,
        )


def _agent(voice: VoiceName, persona: str | Sequence[int]) -> Agent:
    return Agent(voice, persona if isinstance(persona, str) else tuple(int(token) for token in persona))


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
