"""The token ring: the last tokens of every stream, with its delay, for all slots together.

Called by `export.conversations`, `runtime.priming` and `runtime.session`.
"""

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Rows, Tokens

RingRow = tuple[Tokens, npt.NDArray[np.bool_], int]  # one slot's tokens, flags of provided tokens, the next step

FREE = -1  # a target that is sampled, not forced


class DelayRing:
    """Four columns of tokens per slot (with a delay of 1); column t % 4 holds step t.

    A stream with delay 1 has frame f in column f + 1. In step 5, with user's codes h of frame 4:

        step 5    column   3  4  5  6
        delay 0            .  i  t  .    i  the model's input: column t - 1
        delay 1            .  i  t  .    t  the target: column t, forced if it was provided, else sampled
        delay 0, user      .  h  .  .    h  the codes heard now, of frame t - 1: column t - 1 + delay
        delay 1, user      .  i  h  .

    The frame that step t completes is column t - 1 + delay of each stream. Source: the reference's LMGen and Kyutai's.

    PersonaPlex's own loop hears frame t in step t, where the model does not read it yet. The columns are the same, so the
    tokens are the same, too; but here the model reads a frame in the call that brings it, and answers 80 ms earlier.

    Rows are slots, and every method works on all given rows together. A frame needs a dozen small lookups, so the indices of
    the columns above are computed in advance for every row and every t % 4.
    """

    def __init__(self, slots: int, delays: tuple[int, ...], initial_tokens: tuple[int, ...]):
        self.delays = np.array(delays, np.int64)  # [K]
        self.initial = np.array(initial_tokens, np.int64)  # [K]
        self.late = max(1, int(self.delays.max()))  # step t completes frame t - late
        self.columns = int(self.delays.max()) + 3
        self.tokens = np.zeros((slots, len(delays), self.columns), np.int64)
        self.provided = np.zeros(self.tokens.shape, np.bool_)
        self.step = np.zeros(slots, np.int64)  # the next step
        self._flat_tokens, self._flat_provided = self.tokens.reshape(-1), self.provided.reshape(-1)  # views
        self._input, self._target = self._places(-1), self._places(0)
        self._given, self._heard = self._places(self.delays), self._places(self.delays - 1)
        self._complete = self._places(self.delays - self.late)
        for row in range(slots):
            self.reset(row)

    def _places(self, shift: int | Tokens) -> Rows:
        """Index of column t + shift of each stream in the flat ring, [S * C, K]: entry row * C + t % C."""
        slots, streams, columns = self.tokens.shape
        column = (np.arange(columns)[:, None] + shift) % columns  # [C, K], or [C, 1]
        stream = np.arange(slots * streams).reshape(slots, 1, streams)
        return (stream * columns + column).reshape(-1, streams)

    def _now(self, rows: Rows) -> Rows:
        """The entries [n] of `_places` for the next step."""
        return rows * self.columns + self.step[rows] % self.columns

    def reset(self, row: int) -> None:
        """Set up step 0: every stream holds its initial token. The first real step is 1.

        A delayed stream keeps its initial token until its delay is over.
        """
        column = np.arange(self.columns)
        waiting = column <= self.delays[:, None]  # [K, C]
        self.tokens[row] = np.where(waiting, self.initial[:, None], 0)
        self.provided[row] = waiting & (column > 0)
        self.step[row] = 1

    def provide(self, rows: Rows, tokens: Tokens) -> None:
        """Provide the frame [n, K] of the next step: all its targets, now or `delay` steps later, are forced."""
        places = self._given[self._now(rows)]
        self._flat_tokens[places] = tokens
        self._flat_provided[places] = True

    def decide(self, rows: Rows, first_stream: int, tokens: Tokens) -> None:
        """`provide` for streams first_stream, ..., tokens [n, k]; FREE leaves a stream as it is."""
        decided = tokens != FREE
        places = self._given[self._now(rows), first_stream : first_stream + tokens.shape[1]][decided]
        self._flat_tokens[places] = tokens[decided]
        self._flat_provided[places] = True

    def hear(self, rows: Rows, first_stream: int, tokens: Tokens) -> None:
        """Add tokens [n, k] of streams first_stream, ... that the next step reads: frame t - 1, before `commit`.

        `begin` may come first if its caller adds the streams without a delay to the model's input.
        """
        places = self._heard[self._now(rows), first_stream : first_stream + tokens.shape[1]]  # [n, k]
        self._flat_tokens[places] = tokens
        self._flat_provided[places] = True

    def begin(self, rows: Rows) -> tuple[Tokens, Tokens]:
        """The model's input [n, K] and the forced targets [n, K], FREE for a target that is sampled."""
        now = self._now(rows)
        target = self._target[now]
        forced = np.where(self._flat_provided[target], self._flat_tokens[target], FREE)
        return self._flat_tokens[self._input[now]], forced

    def commit(self, rows: Rows, tokens: Tokens) -> Tokens:
        """Store the step's tokens [n, k] of the first k streams unless they were provided; returns the completed frame.

        The frame is valid once the step is above `late`.
        """
        now = self._now(rows)
        target = self._target[now, : tokens.shape[1]]
        kept = self._flat_provided[target]
        self._flat_tokens[target] = np.where(kept, self._flat_tokens[target], tokens)
        self._flat_provided[self._input[now]] = False
        frame = self._flat_tokens[self._complete[now]]
        self.step[rows] += 1
        return frame

    def completing(self, rows: Rows) -> Tokens:
        """The frame [n, K] that the next step completes. The streams with the longest delay are still missing."""
        return self._flat_tokens[self._complete[self._now(rows)]]

    def force(self, row: int, frame: Tokens) -> Tokens:
        """Step one slot with every stream provided, frame [K]; returns the model's input [K]."""
        rows = np.array([row])
        self.provide(rows, frame[None])
        model_input, forced = self.begin(rows)
        self.commit(rows, forced)
        return model_input[0]

    def renumber(self, row: int, step: int) -> None:
        """Let a slot's next step be `step`; its tokens stay."""
        shift = step - int(self.step[row])
        self.tokens[row], self.provided[row] = (
            np.roll(ring[row], shift, axis=1) for ring in (self.tokens, self.provided)
        )
        self.step[row] = step

    def go_back(self, row: int, steps: int, frames: Tokens) -> None:
        """Undo the newest `steps` steps of a slot.

        `frames` [columns + late, K]: the conversation's frames up to the one after the newest step that stays: `late` more
        than that step completed. Frames from before the conversation may be anything: they are not read again.
        """
        step = int(self.step[row]) - steps
        self.provided[row] = False
        for back in range(1, self.columns + 1):  # column step - back
            newest = len(frames) - back - self.delays  # of each stream, the frame in this column
            self.tokens[row, :, (step - back) % self.columns] = frames[newest, np.arange(len(newest))]
        self.step[row] = step

    def save(self, row: int) -> RingRow:
        """A copy of one slot's row."""
        return self.tokens[row].copy(), self.provided[row].copy(), int(self.step[row])

    def restore(self, row: int, saved: RingRow) -> None:
        """Write back what `save` gave, into any slot."""
        self.tokens[row], self.provided[row], self.step[row] = saved
