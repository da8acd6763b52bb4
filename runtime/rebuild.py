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
from inspect import GEN_CREATED, getgeneratorstate
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


@dataclass(frozen=True)
class _Past:
    """An earlier point of a conversation, copied: the log goes on while it is computed again."""

    end: int  # the number of frames
    columns: Tokens  # the frames for the token ring, as in `DelayRing.go_back`
    history: Tokens  # the frames to keep


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
        self._waiting: deque[tuple[int, Generator[None, None, None]]] = deque()  # rebuilds that the window asks for

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
        """Raise PromptError if a prompt leaves too little of the memory window."""
        if self.window and self._kept(prompt_steps) < LEAST_KEPT:
            raise PromptError(
                f"The prompt takes {prompt_steps} of the memory window's {self.window} steps, which leaves too "
                "little for the conversation. Shorten the persona, or choose a longer memory window."
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
        patient: bool = False,
        wait: bool = True,
        past: "_Past | None" = None,
    ) -> Generator[None, None, None]:
        """Rebuild a slot's memory behind its prompt, changed by fields of Agent; yields between chunks.

        keep_s: seconds of the newest history that stay, by default as much as half the window. The slot's session may step
        meanwhile: what it says then stays, too. patient: do not refuse a slow engine. wait: yield while the spare slot is in
        use, instead of raising SteeringError. past: go back to it.
        Raises PromptError and AudioError for the prompt, SteeringError if the history does not fit, if the slot is being
        rebuilt, or if the engine is too slow, SlotError if the session was closed; then nothing has changed.
        """
        agent, epoch = replace(self._agents[row], **change), self._epochs[row]
        agent.tokens(self._tokenizer)
        if self._busy[row]:
            raise SteeringError("This session is being rebuilt. Wait until that is done.")
        self._busy[row] = True
        self._waiting = deque(  # this rebuild takes the place of one that the window asks for and that has not begun
            each for each in self._waiting if each[0] != row or getgeneratorstate(each[1]) != GEN_CREATED
        )
        work = self._rebuild(row, agent, keep_s, patient, wait, past)
        try:
            for _ in work:
                yield
                if self._epochs[row] != epoch:
                    raise SlotError("The session was closed while it was rebuilt.")
        finally:
            work.close()
            if self._epochs[row] == epoch:
                self._busy[row] = False

    def _rebuild(
        self, row: int, agent: Agent, keep_s: float | None, patient: bool, wait: bool, past: "_Past | None"
    ) -> Generator[None, None, None]:
        spare = yield from self._reserve(row, wait)
        try:
            agent = yield from self._prime(spare, agent)
            prompt_steps = int(self._ring.step[spare]) - 1
            if past is None:
                start = self._start(row, prompt_steps, int(self.log.count[row]), keep_s)
                yield from self._replay(row, spare, start, patient)
            else:
                yield from self._replay_past(spare, past.history)
                self._go_back(row, past)
            steps = int(self._ring.step[spare])
            self._stages.kv_cache.copy(spare, row, steps)
            self._ring.renumber(row, steps + 1)
            self._agents[row], self._prompt_steps[row] = agent, prompt_steps
        finally:
            self._stages.reset(spare, int(self._ring.step[spare]))
            self._ring.reset(spare)
            self._give_spare(spare)

    def _reserve(self, row: int, wait: bool) -> Generator[None, None, int]:
        """The spare slot, or a free one."""
        left = len(self._waiting) * self._chunks
        while (spare := self._take_spare()) is None:
            if not self._busy[np.arange(len(self._busy)) != row].any():
                raise SteeringError("A rebuild needs a free slot. Close a session, or load the bundle with more slots.")
            if wait:
                yield
            elif left:  # the memory window's own rebuild uses it: finish that
                left -= 1
                self.work()
            else:
                raise SteeringError(
                    "Another session is being rebuilt. Finish that first, or use `rebuilding`, which waits."
                )
        return spare

    def _start(self, row: int, prompt_steps: int, end: int, keep_s: float | None = None) -> int:
        """The first frame of the history until frame `end` to keep: after silence, if there is any in its first third."""
        kept = self._kept(prompt_steps)
        if keep_s is not None:
            most = max(0, self.limit - prompt_steps - self._ahead())
            kept = self._frames(keep_s)
            if not 0 <= kept <= most:
                raise SteeringError(
                    f"{keep_s:g} s cannot be kept: the prompt leaves room for 0 to {most * self._frame_s:g} s."
                )
        start = max(self.log.first(row), end - kept)
        quiet = self.log.quiet(row, start, start + (end - start) // 3) if start else np.zeros(0, np.bool_)
        if len(quiet) < QUIET_FRAMES:
            return start
        found = np.flatnonzero(sliding_window_view(quiet, QUIET_FRAMES).all(axis=-1))
        return start + (int(found[0]) if len(found) else 0)

    def _frames(self, seconds: float) -> int:
        """The number of frames, rounded; -1 for a number that is none."""
        return round(seconds / self._frame_s) if math.isfinite(seconds) else -1

    def _replay(self, row: int, spare: int, start: int, patient: bool) -> Generator[None, None, None]:
        """Force the history of slot `row` from frame `start` into slot `spare`, until it has caught up."""
        done, began = start, int(self.log.count[row])
        while (left := int(self.log.count[row]) - done) >= PRIMING_STEPS:
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

    def _replay_past(self, spare: int, history: Tokens) -> Generator[None, None, None]:
        """Force a history [n, 17] that does not grow into slot `spare`."""
        while len(history) > PRIMING_STEPS:
            self._force(spare, history[:PRIMING_STEPS])
            history = history[PRIMING_STEPS:]
            yield
        self._force(spare, history, last=True)

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
                self._waiting.append((row, self.rebuild(row, {}, patient=True)))
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

    def rewind(self, row: int, seconds: float, wait: bool = True) -> Generator[None, None, int]:
        """Forget the newest `seconds` of a slot; returns the number of frames. Raises SteeringError.

        It yields between chunks if older entries are overwritten, or from before the last rebuild: they are computed again.
        What the session says meanwhile is forgotten, too. The sound goes on: the codec and the noise keep their state.
        """
        past = self._past(row, seconds)
        if self._busy[row]:
            raise SteeringError("This session is being rebuilt. Wait until that is done.")
        steps, frames = int(self._ring.step[row]) - 1, int(self.log.count[row]) - past.end
        if steps < self._in_use and steps - frames > self._prompt_steps[row] + self._ring.late:
            self._go_back(row, past)
            self._stages.kv_cache.truncate(row, steps - frames)
            return frames
        added = int(self.log.count[row])
        for _ in self.rebuild(row, {}, patient=True, wait=wait, past=past):
            yield
            added = int(self.log.count[row])
        return added - past.end

    def _past(self, row: int, seconds: float) -> "_Past":
        """What a slot was `seconds` ago. Raises SteeringError."""
        late, frames = self._ring.late, self._frames(seconds)
        count, first = int(self.log.count[row]), self.log.first(row)
        most = count - 1 - first
        if most < late:
            raise SteeringError(f"{seconds:g} s cannot be taken back: this session has no older frames to go to.")
        if not late <= frames <= most:
            raise SteeringError(
                f"{seconds:g} s cannot be taken back: this session can go back {late * self._frame_s:g} to "
                f"{most * self._frame_s:g} s."
            )
        newest = count - 1 - frames + late  # the frame after the newest one that stays
        kept = self.log.frames(row, max(newest + 1 - self._ring.columns - late, first), newest + 1)
        missing = self._ring.columns + late - len(kept)
        columns = np.concatenate([np.zeros((missing, kept.shape[1]), np.int64), kept])
        end = count - frames
        start = self._start(row, int(self._prompt_steps[row]), end)
        return _Past(end, columns, self.log.frames(row, start, end))

    def _go_back(self, row: int, past: "_Past") -> None:
        """Let the token ring and the log of a slot be as they were."""
        frames = int(self.log.count[row]) - past.end
        self._ring.go_back(row, frames, past.columns)
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
        """Write back what `save` gave, into any slot. Raises PromptError if the memory window could not rebuild it."""
        voice, persona = facts["voice"], facts["persona"]
        if "voice_codes" in arrays:
            voice = EncodedVoice(voice, arrays["voice_codes"])
        agent = Agent(voice, persona if isinstance(persona, str) else tuple(persona), facts["facts"])
        if self.window is not None:  # it will be rebuilt
            self.check(agent)
        self._agents[row] = agent
        self._prompt_steps[row] = facts["prompt_steps"]
        self.log.restore(row, {"tokens": arrays["log_tokens"], "quiet": arrays["log_quiet"], "count": facts["frames"]})
