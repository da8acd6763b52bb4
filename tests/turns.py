"""An agent that speaks and is silent, over and over. The tiny random model babbles without a pause."""

PERIOD, SPOKEN = 26, 8  # frames: after each utterance there is a pause of 1.4 s
FIRST = 6  # silent frames before the first utterance

# Runs in the server's process and replaces the agent's voice and words.
PRELUDE = f"""
import dataclasses
import weakref
import numpy as np
from pplex.runtime.session import Runtime
step, said = Runtime.step, weakref.WeakKeyDictionary()
tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(1920) / 24000)).astype(np.float32)
def take_turns(self, heard):
    replies = step(self, heard)
    for session, reply in replies.items():
        said[session] = number = said.get(session, -1) + 1
        place = (number - {FIRST}) % {PERIOD} if number >= {FIRST} else {PERIOD}
        text = {{0: " one", 5: " two"}}.get(place, "")
        pcm = tone if place < {SPOKEN} else 0 * tone
        replies[session] = dataclasses.replace(reply, pcm=pcm, text=text)
    return replies
Runtime.step = take_turns
"""
