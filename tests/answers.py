"""The answers of a server, compared with those of a runtime of our own."""

import numpy as np

from pplex.runtime.session import Runtime


def expected(
    runtime: Runtime, frames: np.ndarray, voice: str | None, persona: str, seed: int
) -> tuple[np.ndarray, str]:
    """The agent's reply to frames [n, 1920] without a server: frames [n, 1920] and text."""
    with runtime.open(voice, persona, seed) as session:
        replies = [session.step(frame) for frame in frames]
    return np.stack([reply.pcm for reply in replies]), "".join(reply.text for reply in replies)


def is_close(heard: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether both are equal up to the rounding of the wire."""
    return heard.shape == wanted.shape and bool(np.abs(heard - wanted).max() < 1e-4)
