"""Recordings for tests, of sound that is like speech."""

from pathlib import Path

import soundfile

from pplex.runtime.synthetic_speech import speech_like


def write_speech(path: Path, seconds: float, rate_hz: int = 16_000, seed: int = 0) -> Path:
    """Write `seconds` of sound at `rate_hz`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = round(seconds * rate_hz)
    soundfile.write(path, speech_like(1, max(2, samples), seed)[:samples], rate_hz)
    return path
