"""The token ring: what each stream holds at each step, its delay included, for every slot at once."""

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Rows, Tokens

RingRow = tuple[Tokens, npt.NDArray[np.bool_], int]  # one slot's tokens, what of it is provided, the step to come

FREE = -1  # a target that is sampled, not forced


class DelayRing:
    """Four columns of tokens per slot (with a delay of 1); column t % 4 holds step t.

    A stream with delay 1 speaks of frame f in column f + 1. What is provided for step t lands in column t + delay:

        step 5    column   3  4  5  6
        delay 0            .  i  P  .    i  the model's input: column t - 1
        delay 1            .  i  t  P    t  the target: column t, forced if provided (now or at step t - 1), else sampled
                                         P  what is provided now

    The frame that step t completes is column t - 1 + delay of each stream. Source: the reference's LMGen.

    The model reads column t - 1 and what is provided now lands in column t or later: so a step can begin before it is
    known what to provide, as long as that is known when it is committed.

    Rows are slots; every method takes the rows it works on and does all of them together. Each frame takes a dozen small
    lookups, so the places of the columns above are worked out beforehand, for every row and every t % 4.
    """

    def __init__(self, slots: int, delays: tuple[int, ...], initial_tokens: tuple[int, ...]):
        self.delays = np.array(delays, np.int64)  # [K]
        self.initial = np.array(initial_tokens, np.int64)  # [K]
        self.max_delay = int(self.delays.max())
        self.columns = self.max_delay + 3
        self.tokens = np.zeros((slots, len(delays), self.columns), np.int64)
        self.provided = np.zeros(self.tokens.shape, np.bool_)
        self.step = np.zeros(slots, np.int64)  # the step to come
        self._flat_tokens, self._flat_provided = self.tokens.reshape(-1), self.provided.reshape(-1)  # views
        self._input, self._target = self._places(-1), self._places(0)
        self._given, self._complete = self._places(self.delays), self._places(self.delays - self.max_delay)
        for row in range(slots):
            self.reset(row)

    def _places(self, shift: int | Tokens) -> Rows:
        """Where column t + shift of each stream is in the flat ring, [S * C, K]: entry row * C + t % C."""
        slots, streams, columns = self.tokens.shape
        column = (np.arange(columns)[:, None] + shift) % columns  # [C, K], or [C, 1]
        stream = np.arange(slots * streams).reshape(slots, 1, streams)
        return (stream * columns + column).reshape(-1, streams)

    def _now(self, rows: Rows) -> Rows:
        """The entries [n] of `_places` for the step to come."""
        return rows * self.columns + self.step[rows] % self.columns

    def reset(self, row: int) -> None:
        """Set-up, which is step 0: every stream holds its initial token, and the first real step is 1.

        Delayed streams have no frame to speak of until their delay is over, and are given their initial token till then.
        """
        column = np.arange(self.columns)
        waiting = column <= self.delays[:, None]  # [K, C]
        self.tokens[row] = np.where(waiting, self.initial[:, None], 0)
        self.provided[row] = waiting & (column > 0)
        self.step[row] = 1

    def provide(self, rows: Rows, first_stream: int, tokens: Tokens) -> None:
        """Give tokens [n, k] for streams first_stream, ..., first_stream + k - 1 at the step to come."""
        places = self._given[self._now(rows), first_stream : first_stream + tokens.shape[1]]  # [n, k]
        self._flat_tokens[places] = tokens
        self._flat_provided[places] = True

    def begin(self, rows: Rows) -> tuple[Tokens, Tokens]:
        """The model's input [n, K] and the forced targets [n, K], FREE where the target is to be sampled."""
        now = self._now(rows)
        target = self._target[now]
        forced = np.where(self._flat_provided[target], self._flat_tokens[target], FREE)
        return self._flat_tokens[self._input[now]], forced

    def commit(self, rows: Rows, tokens: Tokens) -> Tokens:
        """Store the step's tokens [n, k] of the first k streams where none was provided; returns what `completing` gives.

        From then on it is whole. It means something once the step was above `max_delay`; priming takes more steps than that.
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
        """The frame [n, K] that the step to come completes; the streams of the longest delay have theirs once it is done."""
        return self._flat_tokens[self._complete[self._now(rows)]]

    def force(self, row: int, frame: Tokens) -> Tokens:
        """One step of one slot in which every stream is provided, frame [K]; returns the model's input [K]."""
        rows = np.array([row])
        self.provide(rows, 0, frame[None])
        model_input, forced = self.begin(rows)
        self.commit(rows, forced)
        return model_input[0]

    def save(self, row: int) -> RingRow:
        """A copy of one slot's row."""
        return self.tokens[row].copy(), self.provided[row].copy(), int(self.step[row])

    def restore(self, row: int, saved: RingRow) -> None:
        """Write back what `save` gave, into any slot."""
        self.tokens[row], self.provided[row], self.step[row] = saved
