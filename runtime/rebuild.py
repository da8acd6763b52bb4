"""A conversation's memory: rebuilt behind a new prompt, or taken back. Called by `runtime.session`.

    live slot     prompt | ........ history ........ | now        the temporal transformer's entries
    spare slot    new prompt | end of the history | now           primed, then forced, in chunks between frames
    live slot     new prompt | end of the history | now | ...     at the border of two frames

The token ring, the codec and the noise stay: the caller hears no gap. What was forgotten was said before the kept history.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from pplex.runtime.arrays import Array, Rows, Tokens
from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.delays import DelayRing
from pplex.runtime.errors import PplexError, PromptError, SlotError, SteeringError
from pplex.runtime.frame_log import FrameLog
from pplex.runtime.priming import PRIMING_STEPS, EncodedVoice, Primer, VoiceName
from pplex.runtime.stages import Stages
from pplex.runtime.text import Tokenizer

QUIET_FRAMES = 4  # a history begins after so many frames in which nobody made a sound, if there are any
LEAST_KEPT = 8  # frames of a history
LEAST_WINDOW = 64  # steps
SPARE_FACTOR = 2  # a rebuild must be at least so many times faster than the conversation

Persona = str | tuple[int, ...]


@dataclass(frozen=True)
class Agent:
    """The prompt of a session: voice, persona (text, or its tokens), and facts that the agent shall know."""

    voice: VoiceName | EncodedVoice = None
    persona: Persona = ""
    facts: str = ""

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """The text tokens of persona and facts. Raises PromptError; SteeringError for facts beside a persona in tokens."""
        if isinstance(self.persona, str):
            return tokenizer.encode_persona(
                " ".join(part for part in (self.persona.strip(), self.facts.strip()) if part)
            )
        if self.facts:
            raise SteeringError("Facts can be added to a persona in text only. Give the persona, too: persona=...")
        return list(self.persona)


class Memory:
    """The log, the prompts and the rebuilds of all slots.

    A rebuild needs a slot that no session uses: `take_spare` reserves one, and `give_spare` frees it.
    """

    def __init__(
        self,
        stages: Stages,
        ring: DelayRing,
        primer: Primer,
        tokenizer: Tokenizer,
        take_spare: Callable[[], int | None],
        give_spare: Callable[[int], None],
        window: int | None,
    ):
        """`window`: the most steps that a conversation's entries may take; None: it is not rebuilt by itself."""
        self.config = config = primer.config
        longest = config.temporal.capacity - 2
        if window is not None and not LEAST_WINDOW <= window <= longest:
            raise SteeringError(
                f"The memory window is {window} steps; it must be {LEAST_WINDOW} to {longest}, the bundle's capacity less 2."
            )
        self._stages, self._ring, self._primer, self._tokenizer = stages, ring, primer, tokenizer
        self._take_spare, self._give_spare = take_spare, give_spare
        self.log = FrameLog(stages.slots, config.num_streams, config.temporal.capacity)
        self._in_use, self._frame_s = config.temporal.capacity - 1, config.frame_size / SAMPLE_RATE_HZ
        self.window, self.limit = window, window or longest
        self._agents = [Agent()] * stages.slots
        self._prompt_steps = np.zeros(stages.slots, np.int64)
        self._slots = stages.slots
        self._busy = np.zeros(stages.slots, np.bool_)  # slots that are being rebuilt
        self._epochs = np.zeros(stages.slots, np.int64)  # sessions that a slot has had
        self._lost = np.zeros(stages.slots, np.bool_)  # slots that the window cannot rebuild
        self.rebuilt = 0  # rebuilds that the window asked for, until now
        self._waiting: deque[tuple[int, Generator[None, None, int]]] = deque()  # rebuilds that the window asks for

    # The prompt.

    def open(self, row: int, agent: Agent) -> Generator[None, None, None]:
        """Prime a new slot. Raises PromptError, AudioError."""
        self._agents[row] = yield from self._prime(row, agent)
        self._prompt_steps[row] = self._ring.step[row] - 1

    def check(self, agent: Agent) -> None:
        """Raise PromptError if `open` would, for a voice of the bundle or none."""
        steps = self._primer.check(agent.voice, agent.tokens(self._tokenizer))
        if steps is not None:
            self._check_room(steps)

    def _prime(self, row: int, agent: Agent) -> Generator[None, None, Agent]:
        """Prime a slot; returns the agent with its voice encoded: the file of a recording may be gone later."""
        voice = yield from self._primer.prime(row, agent.voice, agent.tokens(self._tokenizer))
        self._check_room(int(self._ring.step[row]) - 1)
        return replace(agent, voice=voice)

    def _check_room(self, prompt_steps: int) -> None:
        if self.window and self._kept(prompt_steps) < LEAST_KEPT:
            raise PromptError(
                f"The prompt takes {prompt_steps} of the memory window's {self.window} steps, which leaves too little for "
                "the conversation. Shorten the persona, or choose a longer memory window."
            )

    def close(self, row: int) -> None:
        """Forget a slot's conversation."""
        for waiting in [each for each in self._waiting if each[0] == row]:
            self._waiting.remove(waiting)
            waiting[1].close()
        self._agents[row], self._busy[row], self._lost[row] = Agent(), False, False
        self._epochs[row] += 1
        self.log.reset(row)

    # Rebuilds.

    def rebuild(
        self,
        row: int,
        change: Mapping[str, Any],
        keep_s: float | None = None,
        waits: bool = False,
        back: int = 0,
        patient: bool = False,
    ) -> Generator[None, None, int]:
        """Rebuild a slot's memory behind its prompt, changed by fields of Agent; yields between chunks.

        keep_s: seconds of the newest history that stay, by default as much as half the window. The slot's session may step
        meanwhile: what it says then stays, too. waits: yield while another rebuild has the spare slot. back: forget
        this number of frames, and all that the session steps meanwhile. patient: do not refuse a slow engine.
        Returns the number of forgotten newest frames. Raises PromptError and AudioError for the prompt, SteeringError if the
        history does not fit, if the slot is being rebuilt, if no slot is free or if the engine is too slow, SlotError if the
        session was closed; then nothing has changed.
        """
        agent, epoch = replace(self._agents[row], **change), self._epochs[row]
        agent.tokens(self._tokenizer)
        self._check_idle(row)
        self._busy[row] = True
        work = self._rebuild(row, agent, keep_s, waits, back, patient)
        try:
            while True:
                next(work)
                yield
                if self._epochs[row] != epoch:
                    raise SlotError("The session was closed while it was rebuilt.")
        except StopIteration as end:
            return int(end.value)
        finally:
            work.close()
            if self._epochs[row] == epoch:
                self._busy[row] = False

    def _check_idle(self, row: int) -> None:
        if self._busy[row]:
            raise SteeringError("This session is being rebuilt. Wait until that is done.")

    def _rebuild(
        self, row: int, agent: Agent, keep_s: float | None, waits: bool, back: int, patient: bool
    ) -> Generator[None, None, int]:
        end = (
            int(self.log.count[row]) - back if back else None
        )  # of the history that stays; None: now, whenever that is
        while (spare := self._take_spare()) is None:
            if not waits or not self._busy[np.arange(len(self._busy)) != row].any():
                raise SteeringError("A rebuild needs a free slot. Close a session, or load the bundle with more slots.")
            yield
        try:
            agent = yield from self._prime(spare, agent)
            prompt_steps = int(self._ring.step[spare]) - 1
            yield from self._replay(row, spare, self._start(row, prompt_steps, keep_s, end), end, patient)
            forgotten = int(self.log.count[row]) - end if end is not None else 0
            if forgotten:
                self._go_back(row, forgotten)
            steps = int(self._ring.step[spare])
            self._stages.kv_cache.copy(spare, row, steps)
            self._ring.renumber(row, steps + 1)
            self._agents[row], self._prompt_steps[row] = agent, prompt_steps
            return forgotten
        finally:
            self._stages.reset(spare, int(self._ring.step[spare]))
            self._ring.reset(spare)
            self._give_spare(spare)

    def _start(self, row: int, prompt_steps: int, keep_s: float | None, end: int | None) -> int:
        """The first frame of the history to keep: after silence, if there is any in its first third."""
        kept = self._kept(prompt_steps)
        if keep_s is not None:
            most = max(0, self.limit - prompt_steps - self._ahead())
            kept = self._frames(keep_s)
            if not 0 <= kept <= most:
                raise SteeringError(
                    f"{keep_s:g} s cannot be kept: the prompt leaves room for 0 to {most * self._frame_s:g} s."
                )
        end = int(self.log.count[row]) if end is None else end
        start = max(self.log.first(row), end - kept)
        quiet = self.log.quiet(row, start, start + kept // 3) if start else np.zeros(0, np.bool_)
        if len(quiet) < QUIET_FRAMES:
            return start
        found = np.flatnonzero(sliding_window_view(quiet, QUIET_FRAMES).all(axis=-1))
        return start + (int(found[0]) if len(found) else 0)

    def _frames(self, seconds: float) -> int:
        """The number of frames, rounded; -1 for a number that is none."""
        return round(seconds / self._frame_s) if math.isfinite(seconds) else -1

    def _replay(self, row: int, spare: int, start: int, end: int | None, patient: bool) -> Generator[None, None, None]:
        """Force the history of slot `row` from frame `start` to `end` into slot `spare`, until it has caught up."""
        done, began = start, int(self.log.count[row])
        while (left := (int(self.log.count[row]) if end is None else end) - done) >= PRIMING_STEPS:
            self._force(spare, self.log.frames(row, done, done + PRIMING_STEPS))
            done += PRIMING_STEPS
            yield
            new = int(self.log.count[row]) - began
            if not patient and SPARE_FACTOR * new > done - start > SPARE_FACTOR * PRIMING_STEPS:
                raise SteeringError(
                    f"This engine replayed {done - start} frames while the conversation added {new}. It is too slow to "
                    "rebuild a session during a call."
                )
        self._force(spare, self.log.frames(row, done, done + left), last=True)

    def _force(self, row: int, frames: Tokens, last: bool = False) -> None:
        """Run frames [n, 17] through a slot; `last`: and the step after them, whose tokens are known as well."""
        position = int(self._ring.step[row]) - 1
        codes = [self._ring.force(row, frame) for frame in frames]
        if last:
            codes.append(self._ring.begin(np.array([row]))[0][0])
        while codes:  # a step that overwrites an old entry runs alone: steps before it still read the entry
            chunk = max(1, self._in_use - position)
            inputs, codes = np.stack(codes[:chunk]), codes[chunk:]
            embedding = np.zeros((len(inputs), self.config.temporal.dim), np.float32)
            self._stages.run_forced(row, position, inputs, embedding)
            position += len(inputs)

    # The memory window.

    def add(self, rows: Rows, frames: Tokens, quiet: npt.NDArray[np.bool_] | bool) -> None:
        """Note the frames [n, 17] that a step of slots `rows` completed, and rebuild conversations that need it."""
        self.log.add(rows, frames, quiet)
        if self.window is not None:
            self._watch(rows)

    def check_speed(self) -> None:
        """Raise SteeringError if the engine could not rebuild a session as fast as the memory window needs it.

        No slot may be in use.
        """
        if self.window is None:
            return
        frames = np.tile(self._ring.initial, (PRIMING_STEPS, 1))
        row = self._slots - 1
        for _ in range(2):  # libraries initialise in a first call
            began = time.perf_counter()
            self._force(row, frames)
            seconds = time.perf_counter() - began
            self._stages.reset(row, PRIMING_STEPS)
            self._ring.reset(row)
        if seconds * SPARE_FACTOR > PRIMING_STEPS * self._frame_s:
            raise SteeringError(
                f"This engine replays {PRIMING_STEPS / seconds:.0f} steps a second; a memory window needs "
                f"{SPARE_FACTOR / self._frame_s:.0f}. Use a smaller precision or a faster machine, or leave the window out."
            )

    def _ahead(self) -> int:
        """How many steps before the limit a rebuild begins: all slots may need one at the same time."""
        if self.window is None:
            return min(PRIMING_STEPS, self.limit // 8)
        return min(self._slots * self._chunks, self.window // 4) + 4

    @property
    def _chunks(self) -> int:
        """The most chunks of a rebuild: of its prompt and its history."""
        return self.limit // PRIMING_STEPS + 3

    def _kept(self, prompt_steps: int) -> int:
        """Frames of history that a rebuild keeps by default: after it, as many new ones fit."""
        return max(0, self.limit - prompt_steps - self._ahead()) // 2

    def _watch(self, rows: Rows) -> None:
        """Order rebuilds for conversations that near the window's end."""
        assert self.window is not None
        steps = self._ring.step[rows] - 1
        for row in rows[steps >= self.window - self._ahead()].tolist():
            if not self._busy[row] and not self._lost[row] and all(row != waiting for waiting, _ in self._waiting):
                self._waiting.append((row, self.rebuild(row, {}, waits=True, patient=True)))
        for row in rows[steps >= self.window].tolist():  # nobody called `work` in time
            for _ in range(len(self._waiting) * self._chunks):
                if any(row == waiting for waiting, _ in self._waiting):
                    self.work()

    def work(self) -> bool:
        """Run one chunk of a rebuild that the window asks for. Returns whether more wait."""
        if self._waiting:
            row, rebuild = self._waiting[0]
            try:
                next(rebuild)
            except StopIteration:
                self._waiting.popleft()
                self.rebuilt += 1
            except PplexError:  # as long as nothing is amiss, the prompt fits again
                self._waiting.popleft()
                self._lost[row] = True
        return bool(self._waiting)

    # Back.

    def rewind(self, row: int, seconds: float, waits: bool = False) -> Generator[None, None, int]:
        """Forget the newest `seconds` of a slot; returns the number of frames. Yields and `waits` as in `rebuild`.

        The sound goes on: the codec keeps its state, and so does the noise. Raises SteeringError.
        """
        late, frames = self._ring.late, self._frames(seconds)
        most = int(self.log.count[row]) - 1 - self.log.first(row)
        if not late <= frames <= most:
            raise SteeringError(
                f"{seconds:g} s cannot be taken back: this session can go back {late * self._frame_s:g} to "
                f"{most * self._frame_s:g} s."
            )
        self._check_idle(row)
        steps = int(self._ring.step[row]) - 1
        if steps < self._in_use and steps - frames > self._prompt_steps[row] + late:
            self._go_back(row, frames)
            self._stages.kv_cache.truncate(row, steps - frames)
            return frames
        # Older entries are overwritten, or from before the last rebuild: compute them again.
        return (yield from self.rebuild(row, {}, waits=waits, back=frames, patient=True))

    def _go_back(self, row: int, frames: int) -> None:
        """Undo the newest frames in the token ring and in the log."""
        end = int(self.log.count[row]) - frames + self._ring.late  # after the frame that was sampled last
        length = self._ring.columns + self._ring.late
        kept = self.log.frames(row, max(end - length, self.log.first(row)), end)
        earlier = np.zeros((length - len(kept), kept.shape[1]), np.int64)
        self._ring.go_back(row, frames, np.concatenate([earlier, kept]))
        self.log.drop(row, frames)

    # Saved and restored.

    def save(self, row: int) -> tuple[dict[str, Any], dict[str, Array]]:
        """A slot's prompt, and its log, as facts for JSON and arrays. Its entries are saved elsewhere."""
        agent, log = self._agents[row], self.log.save(row)
        voice = agent.voice
        facts = {
            "voice": voice.key if isinstance(voice, EncodedVoice) else voice,
            "persona": agent.persona,
            "facts": agent.facts,
            "prompt_steps": int(self._prompt_steps[row]),
            "frames": log["count"],
        }
        codes = {"voice_codes": voice.codes} if isinstance(voice, EncodedVoice) else {}
        return facts, {"log_tokens": log["tokens"], "log_quiet": log["quiet"], **codes}

    def restore(self, row: int, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        voice, persona = facts["voice"], facts["persona"]
        if "voice_codes" in arrays:
            voice = EncodedVoice(voice, arrays["voice_codes"])
        self._agents[row] = Agent(voice, persona if isinstance(persona, str) else tuple(persona), facts["facts"])
        self._prompt_steps[row] = facts["prompt_steps"]
        self.log.restore(row, {"tokens": arrays["log_tokens"], "quiet": arrays["log_quiet"], "count": facts["frames"]})
