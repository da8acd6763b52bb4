"""An agent whose frames can be distinguished by ear: each frame has its own tone. Finds the tones in a recording."""

from itertools import groupby

import numpy as np

LOWEST_HZ, STEP_HZ, TONES = 300, 100, 60  # the highest is below half of 16 kHz
FRAME_S = 0.08
HOP_S, WINDOW_S = 0.01, 0.02
QUIET = 0.02  # for a tone of 0.2; below it counts as silence

# Runs in the server's process and replaces the agent's voice. Each tone fits a frame, so no frame starts with a click.
PRELUDE = f"""
import dataclasses
import weakref
import numpy as np
from pplex.runtime.session import Runtime
step, said = Runtime.step, weakref.WeakKeyDictionary()
def sing(self, heard):
    replies = step(self, heard)
    for session, reply in replies.items():
        said[session] = number = said.get(session, -1) + 1
        hz = {LOWEST_HZ} + {STEP_HZ} * (number % {TONES})
        tone = 0.3 * np.sin(2 * np.pi * hz * np.arange(len(reply.pcm)) / 24000)
        replies[session] = dataclasses.replace(reply, pcm=tone.astype(np.float32))
    return replies
Runtime.step = sing
"""


def tones_in(pcm: np.ndarray, rate_hz: float) -> list[tuple[int, float]]:
    """The numbers of the tones in samples [n], in order, with the seconds of each; silence is left out."""
    window, hop = round(WINDOW_S * rate_hz), round(HOP_S * rate_hz)
    if len(pcm) < window:
        return []
    blocks = np.lib.stride_tricks.sliding_window_view(pcm, window)[::hop]
    blocks = blocks[np.sqrt(np.mean(np.square(blocks), 1)) > QUIET]
    size = 8 * window  # padded: a finer spectrum
    peaks = np.argmax(np.abs(np.fft.rfft(blocks * np.hanning(window), size)), 1) * rate_hz / size
    numbers = np.rint((peaks - LOWEST_HZ) / STEP_HZ).astype(int)
    return [(int(number), len(list(run)) * HOP_S) for number, run in groupby(numbers)]


def assert_all_heard(pcm: np.ndarray, rate_hz: float, at_least: int) -> int:
    """The number of agent frames in `pcm`, which must be complete and in order from the first one on."""
    tones = tones_in(pcm, rate_hz)
    found = [(number, round(seconds, 2)) for number, seconds in tones]
    assert len(tones) >= at_least, found
    assert [number for number, _ in tones] == [i % TONES for i in range(len(tones))], found
    assert all(abs(seconds - FRAME_S) <= 0.03 for _, seconds in tones[:-1]), found  # the last one may be cut off
    return len(tones)
