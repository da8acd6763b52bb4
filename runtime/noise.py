"""Sampling noise of sessions: a token's noise depends on the seed, the frame, the stream and the token only.

Each slot has a table of Exp(1) draws in the engines' memory. Each draw of a token has an offset and an odd stride: the noise
of candidate i is entry (offset + stride * i) mod N of the table. N is a power of two, so distinct candidates have
distinct entries. The probability of a candidate does not change its noise. Called by `runtime.session`.

    host     an offset and a stride for each stream, in each frame and session
    graph    TopK -> candidates -> entries -> argmax(probability / noise)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Array, Rows, Tokens
from pplex.runtime.config import ModelConfig
from pplex.runtime.errors import NoiseError

Noise32 = npt.NDArray[np.float32]
Upload = Callable[[int, int, int], None]

FRAMES = 64  # frames in one block of a session's noise
PIECES = 16  # pieces of a table; each block renews one piece, so the whole table is new after 82 s
_CHUNK = 2048  # draws that are computed at once


@dataclass(frozen=True)
class FrameNoise:
    """Recorded Exp(1) draws for one frame, text [n] and audio [K, n], and the token of each draw, in the same shapes."""

    text: Noise32
    audio: Noise32
    text_ids: Tokens
    audio_ids: Tokens

    def check(self, config: ModelConfig) -> None:
        """Raise NoiseError unless the draws are positive, for known tokens and for `depth_steps` codebooks or more."""
        text, audio, steps = self.text.shape, self.audio.shape, config.depth_steps
        if [len(text), len(audio)] != [1, 2] or audio[0] < steps:
            raise NoiseError(
                f"Recorded noise must be text [n] and audio [{steps} or more, n]; this is {list(text)} and {list(audio)}."
            )
        if not all((draws > 0).all() and np.isfinite(draws).all() for draws in (self.text, self.audio)):
            raise NoiseError("Recorded noise must be positive and finite: it is drawn from Exp(1).")
        ids = {
            "text_ids": (self.text_ids, text, config.text_card),
            "audio_ids": (self.audio_ids, audio, config.audio_card),
        }
        for name, (tokens, shape, card) in ids.items():
            if tokens.shape != shape or tokens.dtype.kind not in "iu" or not ((tokens >= 0) & (tokens < card)).all():
                raise NoiseError(
                    f"{name} must be {list(shape)} whole numbers from 0 to {card - 1}: the token of every draw. "
                    f"This is {list(tokens.shape)} {tokens.dtype}."
                )


class Noise:
    """The tables [S, N], offsets and strides [S, 17] of all slots, by stream.

    Only teacher-forced checks of all 16 depth steps use the user's streams. A session's noise comes in blocks of FRAMES
    frames. Block 0 fills the table, and each later block renews a piece of it, because a fixed table would always have the
    same error from Exp(1). A block depends only on the seed and its number. The seed also shortens the first block, so
    sessions that begin together renew their tables at different times.

    The noise uses only numpy's raw bits. They are the same in all versions of numpy; its distributions are not.
    """

    def __init__(self, tables: Noise32, offset: Tokens, stride: Tokens, upload: Upload):
        """The engines read these arrays. `upload` gets the slot, start and count of entries that were written."""
        self._tables, self._offset, self._stride, self._upload = tables, offset, stride, upload
        slots, streams = offset.shape
        self._keys = np.zeros((slots, FRAMES, 2, streams), np.int64)  # offsets, then strides
        self._next = np.zeros(slots, np.intp)  # frame of the block
        self._seeds: list[int | None] = [None] * slots
        self._blocks = [0] * slots
        self._replaced: dict[int, Noise32] = {}

    def open(self, row: int, seed: int) -> None:
        """Begin a session's noise in a slot."""
        self._seeds[row], self._blocks[row], self._next[row] = seed, 0, seed % FRAMES
        self._make_block(row)

    def close(self, row: int) -> None:
        """End a slot's noise. Greedy sampling has no noise."""
        self._seeds[row], self._keys[row] = None, 0
        self._offset[row] = self._stride[row] = 0

    def draw(self, rows: Rows) -> None:
        """Write the next frame's offsets and strides for slots `rows`."""
        for row in rows[self._next[rows] == FRAMES].tolist():
            self._next[row] = 0
            if self._seeds[row] is not None:
                self._blocks[row] += 1
                self._make_block(row)
        keys = self._keys[rows, self._next[rows]]  # [n, 2, 17]
        self._offset[rows], self._stride[rows] = keys[:, 0], keys[:, 1]
        self._next[rows] += 1

    def save(self, row: int) -> tuple[dict[str, Any], dict[str, Array]]:
        """A slot's noise as facts for JSON and arrays."""
        facts = {"seed": self._seeds[row], "block": self._blocks[row], "next": int(self._next[row])}
        return facts, {"noise_table": self._tables[row].copy(), "noise_keys": self._keys[row].copy()}

    def restore(self, row: int, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write back what `save` gave, into any slot."""
        self._seeds[row], self._blocks[row], self._next[row] = facts["seed"], facts["block"], facts["next"]
        self._tables[row], self._keys[row] = arrays["noise_table"], arrays["noise_keys"]
        self._upload(row, 0, len(self._tables[row]))

    def _make_block(self, row: int) -> None:
        seed, block, table, keys = self._seeds[row], self._blocks[row], self._tables[row], self._keys[row]
        assert seed is not None
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(block,)))
        piece = len(table) // PIECES
        start, size = (block % PIECES * piece, piece) if block else (0, len(table))
        for first in range(start, start + size, _CHUNK):
            _draw_exponential(bits, table[first : min(first + _CHUNK, start + size)])
        self._upload(row, start, size)
        words = bits.random_raw(keys[:, 0].size).view(np.uint32).reshape(FRAMES, -1, 2)  # [F, 17, 2]
        keys[...] = words.transpose(0, 2, 1) % np.uint32(len(table))
        keys[:, 1] |= 1

    def replay(self, recorded: Mapping[int, FrameNoise], config: ModelConfig) -> None:
        """Give slots recorded draws for this frame; tokens without a draw get 1. `end_replay` brings the tables back."""
        first = np.append(0, config.text_card + config.audio_card * np.arange(config.num_streams - 1))  # of each stream
        for row, frame in recorded.items():
            table = self._tables[row]
            self._replaced[row] = table.copy()
            table[...] = 1
            for start, ids, draws in zip(
                first, (frame.text_ids, *frame.audio_ids), (frame.text, *frame.audio), strict=False
            ):
                table[start + ids] = draws
            self._offset[row], self._stride[row] = first, 1
            self._upload(row, 0, len(table))

    def end_replay(self) -> None:
        """Bring back the tables that `replay` replaced: other frames need their own draws."""
        for row, table in self._replaced.items():
            self._tables[row] = table
            self._upload(row, 0, len(table))
        self._replaced.clear()


def noise_of(table: Noise32, offset: int, stride: int, tokens: Tokens) -> Noise32:
    """The noise that a graph reads from a slot's table [N] for tokens [n], by the offset and stride of a draw."""
    return table[(offset + stride * tokens) % len(table)]


def _draw_exponential(bits: np.random.PCG64, out: Noise32) -> None:
    """Fill `out` with draws from Exp(1), which are never 0.

    [0, 1] is divided into 2^32 equal parts. A random number chooses a part, and the draw is -log of its middle.

    It computes in float64. The logarithms of two processors differ in the last digits, and rounding to float32 removes them.
    """
    uniform = (bits.random_raw(-(-len(out) // 2)).view(np.uint32)[: len(out)] + 0.5) * 2.0**-32
    np.negative(np.log(uniform, out=uniform), out=out, casting="same_kind")
