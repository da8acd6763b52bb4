"""The tokens of all slots on their way between the token ring and the engines: called by `runtime.session`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from pplex.runtime.arrays import Rows, Tokens
from pplex.runtime.config import CODEBOOKS, ModelConfig
from pplex.runtime.delays import FREE, DelayRing
from pplex.runtime.noise import FrameNoise
from pplex.runtime.pipeline import LANGUAGE_GRAPHS
from pplex.runtime.stages import Stages

TEXT, AGENT, USER = 0, 1, 1 + CODEBOOKS  # the text's stream, and the first one of each speaker


class TokenPath:
    """The token ring and the noise of all slots of `stages`."""

    def __init__(self, stages: Stages, config: ModelConfig):
        self._stages, self._config = stages, config
        self.ring = DelayRing(stages.slots, config.delays, config.initial_tokens)
        self.noise = stages.make_noise()

    def hear(self, rows: Rows, codes: Tokens) -> None:
        """Store the user's codes [n, 8] of this frame."""
        self.ring.hear(rows, USER, codes)

    def force(self, rows: Rows, tokens: Tokens) -> None:
        """Decide tokens [n, 9] of text and agent in the frame that the next step samples. FREE: sampled."""
        self.ring.decide(rows, TEXT, tokens)

    def begin(self, rows: Rows, batch: int) -> None:
        """Set the inputs of a step of slots `rows`: tokens, forced outputs, noise, and the codes that the agent says now.

        The user's codes of this frame may still be missing: `FrameRunner` copies them to the model after `mimi_encode`.
        """
        stages, audio = self._stages, slice(AGENT, AGENT + self._config.depth_steps)
        stages.codes[rows, 0], forced = self.ring.begin(rows)
        stages.forced_text[rows], stages.forced_audio[rows] = forced[:, 0], forced[:, audio]
        stages.position[:batch] = self.ring.step[:batch] - 1
        stages.agent_codes[rows] = self.ring.completing(rows)[:, AGENT:USER]
        self.noise.draw(rows)

    def finish(self, rows: Rows) -> Tokens:
        """Store the sampled tokens; returns the frame [n, 17] that this step completes."""
        stages = self._stages
        sampled = np.concatenate([stages.text_token[rows, None], stages.audio_tokens[rows]], axis=1)
        return self.ring.commit(rows, sampled)

    @contextmanager
    def replayed(self, recorded: Mapping[int, FrameNoise]) -> Iterator[None]:
        """Slots of `recorded` use that noise inside the block, instead of their own."""
        self.noise.replay(recorded, self._config)
        try:
            yield
        finally:
            self.noise.end_replay()

    def lead(self, row: int, recorded: FrameNoise | None = None) -> Tokens:
        """Draw a slot's first tokens, which depend on its prompt alone: see DelayRing.

        Returns the frame [17] that this step completes, the prompt's last one. The original code returns it as its first
        reply. Here nobody hears it, but it is decoded, because the sound of later frames continues it.
        `recorded`: noise to use instead of the slot's own. Raises NoiseError.
        """
        if recorded is not None:
            recorded.check(self._config)
        stages, rows = self._stages, np.array([row])
        self.begin(rows, row + 1)
        with self.replayed({} if recorded is None else {row: recorded}):
            for graph in LANGUAGE_GRAPHS:
                stages.run(graph, 1, row)
        frame = self.finish(rows)
        if self.ring.step[row] > self.ring.late + 1:
            stages.agent_codes[rows], stages.active[row] = frame[:, AGENT:USER], True
            stages.run("mimi_decode", 1, row)
        else:
            # No frame is complete: these rows hold initial tokens, which the decoder refuses. It reads them while this slot
            # waits and others step.
            stages.agent_codes[rows], stages.forced_audio[rows] = 0, FREE
        return frame[0]
