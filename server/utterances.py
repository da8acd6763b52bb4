"""Cuts what the agent says, which has no turns, into utterances. No I/O; its clock is the frames.

Called by `server.realtime_protocol`.

    frame          |     |text |sound|sound|     |     | ... |     |     |
    utterance            |begins                               ends|
                               no text and no sound for 0.9 s -----'

An utterance that a client asked for begins at once. Its silence before the first word belongs to nothing: agents' programs
would take it for speech, and let their user interrupt it. It ends empty if nothing is said.
"""

from typing import NamedTuple

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.server.wire import FRAME_S

# A frame is sound above three times the quietest frame so far, which is the codec's own noise; within these bounds.
LEAST_SOUND_RMS, MOST_SOUND_RMS = 60 / 32_768, 300 / 32_768
PAUSE_FRAMES = round(0.9 / FRAME_S)  # without text and sound: the end of an utterance
PATIENCE_FRAMES = round(5 / FRAME_S)  # until the agent must have begun to say what it was asked for


class Cut(NamedTuple):
    """What one frame does: it is the first of an utterance, belongs to one, or is the last."""

    begins: bool = False
    belongs: bool = False
    ends: bool = False


class SoundGate:
    """Tells the agent's sound from its silence, which is not digital silence."""

    def __init__(self) -> None:
        self._quietest = np.inf

    def is_open(self, pcm: Pcm) -> bool:
        """Whether a frame [1920] is sound."""
        rms = float(np.sqrt(np.mean(np.square(pcm))))
        self._quietest = min(self._quietest, rms)
        return rms >= min(max(3 * self._quietest, LEAST_SOUND_RMS), MOST_SOUND_RMS)


class Utterances:
    """At most one utterance is open."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_empty = True  # nothing was said in the open utterance yet
        self._is_dropping = False  # what the agent still says of a cancelled utterance
        self._quiet = PAUSE_FRAMES  # frames without text and sound
        self._waited = 0  # frames of an empty utterance

    def ask(self) -> None:
        """Open an utterance before the agent speaks."""
        self.is_open, self.is_empty, self._waited = True, True, 0

    def cancel(self) -> None:
        """Close the open utterance. What the agent says until its next pause belongs to none."""
        self.is_open, self._is_dropping = False, self._quiet < PAUSE_FRAMES

    def take(self, is_voiced: bool) -> Cut:
        """Place the next frame. is_voiced: it has text or sound."""
        self._quiet = 0 if is_voiced else self._quiet + 1
        self._is_dropping &= self._quiet < PAUSE_FRAMES
        if self._is_dropping or not (is_voiced or self.is_open):
            return Cut()
        begins = not self.is_open
        if begins:
            self.ask()
        self.is_empty &= not is_voiced
        self._waited += 1
        self.is_open = self._waited < PATIENCE_FRAMES if self.is_empty else self._quiet < PAUSE_FRAMES
        return Cut(begins, not self.is_empty, not self.is_open)
