"""Notices by loudness when the user begins and stops to speak, for `--realtime-vad`. No I/O; its clock is the frames.

Called by `server.realtime_protocol`. The model needs none of this: it decides for itself when to speak.
"""

from collections import deque

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.server.openai_events import event, new_id
from pplex.server.wire import FRAME_S, FRAME_SIZE

LOUD_RMS = 0.01  # 40 dB below full scale
BEGIN_FRAMES = 3  # loud ones in a row
END_FRAMES = round(0.5 / FRAME_S)  # quiet ones in a row
LATE_FRAMES = 5  # of a client that sends long chunks, or of a slow network
FRAME_MS = round(FRAME_S * 1000)


class UserSpeech:
    """Counts loud and quiet frames of the user's audio."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)  # samples of a frame that is not whole
        self._heard = deque[bool]()  # whether each frame was loud, from the hearing thread to the event loop
        self._frames = self._run = 0  # run: frames in a row that contradict `_is_speaking`
        self._missing = 0  # frames that should have come by now
        self._is_speaking = False
        self._item_id = ""

    def hear(self, pcm: Pcm) -> None:
        """Hearing thread: more samples of the user [n]."""
        samples = np.concatenate((self._rest, pcm))
        whole = len(samples) // FRAME_SIZE * FRAME_SIZE
        frames, self._rest = samples[:whole].reshape(-1, FRAME_SIZE), samples[whole:]
        self._heard.extend((np.mean(np.square(frames), 1) >= LOUD_RMS**2).tolist())

    def step(self) -> list[str]:
        """Event loop, once a frame: the events for what was heard. A user of whom nothing is heard is silent."""
        events = list[str]()
        self._missing += 1
        while self._heard:
            self._missing = max(0, self._missing - 1)
            events += self._take(self._heard.popleft())
        if self._missing > LATE_FRAMES:
            self._missing -= 1
            events += self._take(False)
        return events

    def _take(self, is_loud: bool) -> list[str]:
        self._frames += 1
        self._run = self._run + 1 if is_loud != self._is_speaking else 0
        if self._run < (END_FRAMES if self._is_speaking else BEGIN_FRAMES):
            return []
        at_ms = (self._frames - self._run) * FRAME_MS
        self._run, self._is_speaking = 0, not self._is_speaking
        if not self._is_speaking:
            return [event("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=self._item_id)]
        self._item_id = new_id("item")
        return [event("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=self._item_id)]
