"""Which numbers the trained codec's live entries have among all 2,048. Called by trained.py and its parts."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pplex.runtime.arrays import Tokens
from pplex.runtime.config import CODEBOOKS, SILENCE_CODES, SINE_CODES

FAR = 4.0  # length of an unused entry, in lengths of the longest live one: no latent is nearest to it


@dataclass(frozen=True)
class Numbers:
    """`codes` [8, live]: the number of each live entry, in no order. Silence and tone have the released numbers."""

    codes: Tokens
    card: int

    @property
    def live(self) -> int:
        return self.codes.shape[1]

    @classmethod
    def chosen(cls, silence: Tokens, tone: Tokens, usage: Tokens, card: int) -> "Numbers":
        """Numbers for the entries; silence and tone [8] are their entries, usage [8, live] says how rare the others are.

        Where silence and tone have one entry, the tone gets the number of the rarest entry.
        """
        random, rows = np.random.default_rng(0), list[Tokens]()
        for k in range(CODEBOOKS):
            row = random.permutation(np.setdiff1d(np.arange(card), [SILENCE_CODES[k], SINE_CODES[k]]))[: usage.shape[1]]
            other = (
                int(tone[k])
                if tone[k] != silence[k]
                else int(np.argsort(usage[k])[usage[k].argsort() != silence[k]][0])
            )
            row[silence[k]], row[other] = SILENCE_CODES[k], SINE_CODES[k]
            rows.append(row)
        return cls(np.stack(rows), card)

    def compacted(self, columns: Tokens) -> Tokens:
        """Columns [..., 17] with live entries in place of codes, and live + 1 for the initial token."""
        compact = columns.copy()
        for stream in range(1, columns.shape[-1]):
            place = np.full(self.card + 1, self.live)
            place[self.codes[(stream - 1) % CODEBOOKS]] = np.arange(self.live)
            place[self.card] = self.live + 1
            compact[..., stream] = np.where(columns[..., stream] < 0, -1, place[columns[..., stream]])
        return compact

    def expanded(self, columns: Tokens) -> Tokens:
        """The reverse of `compacted`."""
        whole = columns.copy()
        for stream in range(1, columns.shape[-1]):
            codes = np.concatenate([self.codes[(stream - 1) % CODEBOOKS], [-1, self.card, -1]])
            whole[..., stream] = codes[columns[..., stream]]
        return whole

    def book(self, k: int, entries: Tensor) -> Tensor:
        """All entries [card, dim] of codebook k: the live ones [live, dim], and one that is far from everything."""
        far = FAR * entries.norm(dim=1).max() / entries.shape[1] ** 0.5
        return self._spread(k, entries, far.expand(entries.shape[1]), self.card)

    def table(self, k: int, rows: Tensor) -> Tensor:
        """An embedding table [card + 1, dim] from a compact one: unused codes have the mean of the live ones."""
        whole = self._spread(k, rows[: self.live], rows[: self.live].mean(0), self.card + 1)
        whole[self.card] = rows[self.live + 1]
        return whole

    def head(self, k: int, rows: Tensor) -> Tensor:
        """An output matrix [card, dim] from a compact one [live + 1, dim], whose last row is that of all unused codes."""
        return self._spread(k, rows[: self.live], rows[self.live], self.card)

    def _spread(self, k: int, live: Tensor, others: Tensor, count: int) -> Tensor:
        whole = others.expand(count, -1).clone()
        whole[torch.from_numpy(self.codes[k])] = live
        return whole
