"""Frames from a client that the model has not heard yet. Their number and their pace are limited.

The hearing thread fills it, the scheduler reads it, the event loop clears it. Callers pass the time.
"""

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from pplex.runtime.arrays import Pcm
from pplex.server.wire import FRAME_S

PACE_S = 0.75 * FRAME_S  # least time between two frames of one conversation
BACKLOG_FRAMES = 4
EARLY_S = 10.0  # the longest audio that is kept from before the conversation began


@dataclass(frozen=True)
class Frame:
    """One frame of the user, [1920] float32. `epoch`: how often the inbox was cleared before the frame arrived."""

    pcm: Pcm
    arrived_s: float  # of its last sample
    epoch: int


class Inbox:
    """One conversation's unheard audio, from samples to frames.

    After a delay in the network, a client sends all its audio at once. Up to `backlog` frames of it are heard, a little
    faster than they were spoken. So latency is normal again within a second, and replies do not come in a burst:

        arrives   |f f f f          |f       |f       |f       80 ms apart, after a gap
        is heard  |f     f     f    |   f    | f      |f       60 ms apart until there is no backlog

    Older frames are dropped, the oldest first. Audio from before `start` is kept, up to 10 s, because the model was not
    listening yet. It is heard at the same pace.
    """

    def __init__(self, frame_size: int, backlog: int = BACKLOG_FRAMES, never_ahead: bool = False):
        """never_ahead: for clients that play each reply when it comes, and would stay late after a burst.

        Then audio from before `start` has the limit of the backlog, too. And all frames that were heard since the client's
        playback was last empty are counted: more than the backlog and one frame ahead of the clock are dropped.
        """
        self.frame_size, self.backlog, self._never_ahead = frame_size, backlog, never_ahead
        self._played_s = -math.inf  # when the client will have played all replies
        self._lock = threading.Lock()
        self._partial: list[Pcm] = []  # samples of a frame that is not yet whole
        self._samples = 0
        self._frames: deque[Frame] = deque()
        self._early = 0  # frames at the head of the queue that arrived before the start
        self._started = False
        self._next_s = 0.0  # earliest time of the next frame
        self.dropped = 0  # frames dropped so far
        self._skipped = 0  # samples that were never pushed: less than a frame in all
        self.epoch = 0  # replies from earlier epochs are discarded

    def room(self) -> int:
        """The number of samples that `push` would keep. If it gets more, it drops the oldest."""
        is_live = self._started or self._never_ahead
        limit = self.backlog if is_live else max(round(EARLY_S / FRAME_S), self.backlog)
        return (limit + 1) * self.frame_size - self._samples

    @property
    def waiting(self) -> int:
        """Samples of a frame that is not yet whole."""
        return self._samples

    def skip(self, samples: int) -> None:
        """Count samples that were dropped before they could be pushed."""
        frames, self._skipped = divmod(self._skipped + samples, self.frame_size)
        self.dropped += frames

    def push(self, pcm: Pcm, now_s: float, epoch: int = 0) -> bool:
        """Add samples [n]; returns whether this completed a frame. Samples of an earlier connection's epoch are dropped."""
        with self._lock:
            if epoch != self.epoch:
                return False
            frames = len(self._frames)
            while len(pcm):
                missing = self.frame_size - self._samples
                head, pcm = pcm[:missing], pcm[missing:]
                self._partial.append(head)
                self._samples += len(head)
                if self._samples == self.frame_size:
                    self._frames.append(Frame(np.concatenate(self._partial), now_s, self.epoch))
                    self._partial, self._samples = [], 0
            whole = len(self._frames) > frames
            self._drop_oldest(now_s)
            return whole

    def _drop_oldest(self, now_s: float) -> None:
        if self._never_ahead:
            ahead = max(0.0, (self._played_s - now_s) / FRAME_S) if self._started else 0.0
            while self._frames and len(self._frames) > min(self.backlog, self.backlog + 1.5 - ahead):
                self._frames.popleft()
                self.dropped += 1
            return
        if not self._started:
            while len(self._frames) * FRAME_S > EARLY_S:
                self._frames.popleft()
                self.dropped += 1
            return
        while len(self._frames) - self._early > self.backlog:
            # Frames from before the start must all be heard. So drop the oldest frame that came after it.
            del self._frames[self._early]
            self.dropped += 1

    def start(self) -> None:
        """Begin the conversation: from now on, frames that are too late are dropped."""
        with self._lock:
            self._early, self._started = 0 if self._never_ahead else len(self._frames), True

    def clear(self) -> None:
        """Discard everything, and accept nothing until `start`, because the client has left."""
        with self._lock:
            self._frames.clear()
            self._partial, self._samples, self._early, self._started = [], 0, 0, False
            self.epoch += 1

    def due_s(self) -> float | None:
        """When the next frame is due, possibly long ago; None without a frame."""
        with self._lock:
            return self._due_s() if self._started and self._frames else None

    def pop(self) -> Frame | None:
        """The next frame; None if `clear` came after `due_s`."""
        with self._lock:
            if not (self._started and self._frames):
                return None
            self._played_s = max(self._played_s, self._due_s()) + FRAME_S
            self._next_s = self._due_s() + PACE_S  # from the due time: a late scheduler must not delay later frames
            self._early = max(0, self._early - 1)
            return self._frames.popleft()

    def _due_s(self) -> float:
        return max(self._frames[0].arrived_s, self._next_s)
