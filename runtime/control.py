"""Control of running sessions, slot by slot: orders, memory, saved state. Called by `runtime.session`."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from pplex.runtime.arrays import Array, Rows, Tokens
from pplex.runtime.frame_log import is_quiet
from pplex.runtime.priming import VoiceName
from pplex.runtime.rebuild import Agent, Memory
from pplex.runtime.saying import Saying, When
from pplex.runtime.stages import Stages
from pplex.runtime.steering import Steering
from pplex.runtime.text import Tokenizer
from pplex.runtime.token_path import TokenPath
from pplex.runtime.words import words_of

Saved = tuple[dict[str, Any], dict[str, Array]]  # facts for JSON, and arrays by name


class Control:
    """What sessions are ordered to do, and what they remember.

    step    steering.begin -> the graphs -> steering.finish, memory.add
    """

    def __init__(self, stages: Stages, path: TokenPath, memory: Memory, tokenizer: Tokenizer):
        self._stages, self._path, self._tokenizer = stages, path, tokenizer
        self.memory = memory
        self.steering = Steering(stages, path, memory.config)

    # One frame.

    def begin(self, rows: Rows, forced: Mapping[int, Tokens] | None = None) -> None:
        """Before a step of slots `rows`. forced: by slot, tokens [9] of text and agent for the next frame, -1: free."""
        self.steering.begin(rows)
        if forced:
            self._path.force(np.array(list(forced)), np.stack(list(forced.values())))

    def finish(self, rows: Rows) -> Tokens:
        """After the step: the frames [n, 17] that it completes."""
        frames = self._path.finish(rows)
        self.steering.finish(rows)
        return frames

    def remember(self, rows: Rows, frames: Tokens, has_audio: bool) -> None:
        """Log the completed frames. has_audio: whether the codec has run."""
        end = int(rows.max()) + 1  # views of these rows: a choice of rows would copy the sound
        sound = self._stages.pcm_in[:end, 0], self._stages.pcm_out[:end, 0]
        self.memory.add(rows, frames, is_quiet(*sound)[rows] if has_audio else False)

    # Orders. Errors as in `Session`.

    def say(self, row: int, text: str, when: When = "now", interrupt: bool = False, gap: int = 0) -> Saying:
        saying = Saying(text, words_of(text, self._tokenizer), when, gap)
        self.steering.say(row, saying, interrupt)
        return saying

    def check(self, agent: Agent, greeting: str | None) -> None:
        """Raise PromptError or SteeringError if a session cannot begin like this."""
        self.memory.check(agent)
        if greeting is not None:
            words_of(greeting, self._tokenizer)

    def rebuild(
        self,
        row: int,
        persona: str | Sequence[int] | None = None,
        facts: str | None = None,
        voice: VoiceName = None,
        keep_seconds: float | None = None,
        wait: bool = True,
    ) -> Generator[None, None, None]:
        """Rebuild a slot's memory, as in `Session.rebuild`; yields between chunks."""
        if persona is not None and not isinstance(persona, str):
            persona = tuple(int(token) for token in persona)
        change = {"persona": persona, "facts": facts, "voice": voice}
        given = {name: value for name, value in change.items() if value is not None}
        yield from self.memory.rebuild(row, given, keep_seconds, wait=wait)

    def rewind(self, row: int, seconds: float, wait: bool = True) -> Generator[None, None, int]:
        """Rewind a slot, as in `Session.rewinding`."""
        frames = yield from self.memory.rewind(row, seconds, wait)
        self.steering.go_back(row)
        return frames

    # Slots.

    def reset(self, row: int) -> None:
        """Forget everything of a slot, whose session ends."""
        self.memory.close(row)
        self.steering.reset(row)

    def save(self, row: int) -> Saved:
        """All state of a slot."""
        tokens, provided, step = self._path.ring.save(row)
        noise, noise_arrays = self._path.noise.save(row)
        memory, memory_arrays = self.memory.save(row)
        facts = {"step": step, "noise": noise, "memory": memory, "steering": self.steering.save(row)}
        rings = {f"temporal.{name}": array for name, array in self._stages.save(row, step - 1).items()}
        ring = {"tokens": tokens, "provided": provided}
        return facts, {**rings, **self._stages.save_codec(row), **ring, **noise_arrays, **memory_arrays}

    def restore(self, row: int, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        rings = {state: arrays[f"temporal.{state}"] for state in self._stages.save(row, 0)}
        self._stages.restore(row, rings)
        self._stages.restore_codec(row, arrays)
        self._path.ring.restore(row, (arrays["tokens"], arrays["provided"], facts["step"]))
        self._path.noise.restore(row, facts["noise"], arrays)
        self.memory.restore(row, facts["memory"], arrays)
        self.steering.restore(row, facts["steering"])
