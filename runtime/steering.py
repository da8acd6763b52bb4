"""Orders to sessions, for all slots together: say a text, hold, release. Called by `runtime.session`.

Slots without an order cost a few operations on whole arrays: a frame asks only the speakers in `_speakers`.
"""

from typing import Any

import numpy as np

from pplex.runtime.arrays import Rows
from pplex.runtime.config import CODEBOOKS, END_OF_PADDING, SILENCE_CODES, ModelConfig
from pplex.runtime.delays import FREE
from pplex.runtime.saying import Saying, Speaker, Target
from pplex.runtime.stages import Stages
from pplex.runtime.token_path import AGENT, TokenPath


class Steering:
    """The speakers of all slots that have an order.

    An order takes effect in the next frame whose text is not sampled yet: `next_frame`. A session's first frame is 0.
    """

    def __init__(self, stages: Stages, path: TokenPath, config: ModelConfig):
        self._stages, self._path, self._padding = stages, path, config.text_padding
        self.next_frame = np.zeros(stages.slots, np.int64)
        self.silent = np.zeros(stages.slots, np.int64)  # frames without a word until now
        self._speakers: dict[int, Speaker] = {}
        self._targets: dict[int, Target] = {}  # of the frame that is being stepped

    # Orders.

    def say(self, row: int, saying: Saying, interrupt: bool = False) -> None:
        """Queue a text. `interrupt`: drop the texts that are said or wait. Raises SteeringError if the queue is full."""
        if interrupt:
            self.cut(row)
        self._speaker(row).add(saying)

    def hold(self, row: int) -> int:
        """Be silent until `release`, and stop the text that is being said; returns the first silent frame."""
        speaker, frame = self._speaker(row), int(self.next_frame[row])
        speaker.cut(frame, queued=False)
        speaker.holds = True
        return frame

    def release(self, row: int) -> int:
        """End a hold; returns the first frame that is free."""
        if row in self._speakers:
            self._speakers[row].holds = False
            self._forget_idle(row)
        return int(self.next_frame[row])

    def texts(self, row: int) -> list[Saying]:
        """The texts of a slot that are said or wait."""
        return list(self._speakers[row].queue) if row in self._speakers else []

    def cut(self, row: int) -> None:
        """Drop every text of a slot."""
        if row in self._speakers:
            self._speakers[row].cut(int(self.next_frame[row]), queued=True)
            self._forget_idle(row)

    def go_back(self, row: int) -> None:
        """After a rewind: drop every text. A hold stays, also for the newest frame, whose delayed codes are drawn again."""
        self.cut(row)
        self.silent[row] = 0
        if row in self._speakers and self._speakers[row].holds:
            self._path.ring.hear(np.array([row]), AGENT, np.array([SILENCE_CODES]))

    def reset(self, row: int) -> None:
        """Drop all orders of a slot, which gets another session."""
        self.release(row)
        self.cut(row)
        self.next_frame[row] = self.silent[row] = 0

    def _speaker(self, row: int) -> Speaker:
        if row not in self._speakers:
            self._speakers[row] = Speaker(self._padding, END_OF_PADDING)
        return self._speakers[row]

    def _forget_idle(self, row: int) -> None:
        if self._speakers[row].is_idle:
            del self._speakers[row]
            self._stages.replacement[row] = FREE

    # One frame.

    def begin(self, rows: Rows) -> None:
        """Before a step of slots `rows`: force and replace what their orders need."""
        self._targets.clear()
        steered = [row for row in rows.tolist() if row in self._speakers] if self._speakers else []
        if not steered:
            return
        forced = np.full((len(steered), 1 + CODEBOOKS), FREE, np.int64)
        for i, row in enumerate(steered):
            speaker = self._speakers[row]
            target = self._targets[row] = speaker.target(int(self.silent[row]))
            self._stages.replacement[row], forced[i, 0] = target.replacement, target.text
            if speaker.holds:
                forced[i, 1:] = SILENCE_CODES
        self._path.force(np.array(steered), forced)

    def finish(self, rows: Rows) -> None:
        """After the step: note what was said."""
        text = self._stages.text_token[rows]
        padded = (text == self._padding) | (text == END_OF_PADDING)
        self.silent[rows] = np.where(padded, self.silent[rows] + 1, 0)
        for row, target in self._targets.items():
            draw, token = int(self._stages.draw[row]), int(self._stages.text_token[row])
            self._speakers[row].take(target, draw, token, int(self.next_frame[row]))
            self._forget_idle(row)
        self.next_frame[rows] += 1

    # Saved and restored.

    def save(self, row: int) -> dict[str, Any]:
        """A slot's orders and counts as plain values, for JSON."""
        orders = self._speakers[row].save() if row in self._speakers else None
        return {"next_frame": int(self.next_frame[row]), "silent": int(self.silent[row]), "orders": orders}

    def restore(self, row: int, saved: dict[str, Any]) -> None:
        """Write back what `save` gave, into any slot."""
        self.next_frame[row], self.silent[row] = saved["next_frame"], saved["silent"]
        if saved["orders"] is not None:
            self._speaker(row).restore(saved["orders"])
