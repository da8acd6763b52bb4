"""Cuts what the model hears of a user into utterances, by loudness. No I/O.

Called by `server.listening`, once a frame. The transcriber's own detector of speech then leaves out what is no speech.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.server.wire import FRAME_S

BEFORE = 3  # frames before the first loud one: a word may begin softly
QUIET = 8  # frames (0.64 s) without a loud one end an utterance
LEAST_LOUD = 2  # frames: less is a click
LONGEST = 187  # frames: 15 s. Longer speech is cut at its quietest frame among the last SOUGHT
SOUGHT = 50
# Root mean squares, of full scale 1.0. The background's level falls at once with the audio, and rises by 2 % a frame.
LEAST_BACKGROUND = 0.0007
RISE = 1.02
BEGINS, GOES_ON = 3.0, 2.0  # times the background


class Utterance(NamedTuple):
    """Some frames of a user, [1920] float32 at 24 kHz each, and the number of frames before them."""

    frames: tuple[Pcm, ...]
    first: int


class Words(NamedTuple):
    """Words of a user, with their leading space, and when they were said on the session's clock."""

    text: str
    start_ms: int
    end_ms: int


class _Heard(NamedTuple):
    """A frame with its level."""

    pcm: Pcm
    level: float
    is_loud: bool


class UtteranceCutter:
    """One conversation's audio, from frames to utterances."""

    def __init__(self) -> None:
        self._background = LEAST_BACKGROUND
        self._count = 0  # of all frames so far
        self._heard: list[_Heard] = []  # the utterance so far, or the frames before one
        self._is_open = False
        self._quiet = 0  # frames since the last loud one

    def skip(self) -> None:
        """Count a frame that nobody wants to have transcribed, and forget the utterance."""
        self._count += 1
        self._close([])

    def hear(self, pcm: Pcm) -> Utterance | None:
        """Take a frame [1920] float32; returns the utterance that it ends."""
        level = float(np.sqrt(np.dot(pcm, pcm) / len(pcm)))
        is_loud = level > self._background * (GOES_ON if self._is_open else BEGINS)
        self._background = max(LEAST_BACKGROUND, min(self._background * RISE, level))
        self._count += 1
        self._heard.append(_Heard(pcm, level, is_loud))
        if not self._is_open:
            self._is_open = is_loud
            self._heard = self._heard[-BEFORE - 1 :]
            return None
        self._quiet = 0 if is_loud else self._quiet + 1
        if self._quiet == QUIET:
            return self._cut(len(self._heard))
        if len(self._heard) == LONGEST:
            quietest = min(range(LONGEST - SOUGHT, LONGEST), key=lambda at: self._heard[at].level)
            return self._cut(quietest)
        return None

    def _cut(self, length: int) -> Utterance | None:
        """End the utterance after `length` frames. Frames after them begin the next one."""
        first, heard = self._count - len(self._heard), self._heard[:length]
        self._close(self._heard[length:])
        return Utterance(tuple(one.pcm for one in heard), first) if _loud(heard) >= LEAST_LOUD else None

    def _close(self, rest: list[_Heard]) -> None:
        self._heard, self._quiet, self._is_open = rest, 0, _loud(rest) > 0


def _loud(heard: Iterable[_Heard]) -> int:
    return sum(one.is_loud for one in heard)


def milliseconds(utterance: Utterance, seconds: float) -> int:
    """A moment of an utterance, on the session's clock; never beyond the utterance's end."""
    frames_s = len(utterance.frames) * FRAME_S
    return round((utterance.first * FRAME_S + min(max(0.0, seconds), frames_s)) * 1000)
