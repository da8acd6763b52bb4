"""Speech with the time of every word, by espeak-ng's library (Debian: libespeak-ng1). Called by trained_dialogues.py."""

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr

from pplex.runtime.arrays import Pcm
from pplex.runtime.config import SAMPLE_RATE_HZ

LIBRARY = "libespeak-ng.so.1"
SYNCHRONOUS, UTF8 = 2, 1  # espeak_ng/speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8
RATE, PITCH = 1, 3  # parameters
WORD = 1  # type of event
PEAK = 0.4
QUIET = 0.01  # of the peak: leading and trailing samples below it are cut


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Manner:
    """A voice with its variant, words a minute, and pitch from 0 to 99."""

    voice: str
    rate: int
    pitch: int


@dataclass(frozen=True)
class Said:
    """pcm [samples] at 24 kHz, and the second at which each word of the text starts."""

    text: str
    pcm: Pcm
    starts_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE_HZ


@cache
def say(text: str, manner: Manner) -> Said:
    """The text, spoken. Raises OSError without the library, ValueError for an unknown voice or a text without words."""
    library, rate_hz = _library()
    samples, begun = [np.zeros(0, np.int16)], dict[int, int]()  # position of a character -> its first sample

    def take(wav: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if count > 0:
            samples.append(np.ctypeslib.as_array(wav, (count,)).copy())
        index = 0
        while events[index].type:
            if events[index].type == WORD:
                begun.setdefault(events[index].text_position - 1, events[index].sample)
            index += 1
        return 0

    callback = _Callback(take)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(manner.voice.encode()):
        raise ValueError(f"espeak-ng has no voice {manner.voice}.")
    library.espeak_SetParameter(RATE, manner.rate, 0)
    library.espeak_SetParameter(PITCH, manner.pitch, 0)
    data = text.encode() + b"\0"
    library.espeak_Synth(data, len(data), 0, 1, 0, UTF8, None, None)
    return _trimmed(text, np.concatenate(samples), _starts(text, begun), rate_hz)


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    library = ctypes.CDLL(LIBRARY)
    return library, library.espeak_Initialize(SYNCHRONOUS, 0, None, 0)


def _starts(text: str, begun: Mapping[int, int]) -> list[float]:
    """The first sample of each word. espeak-ng may split a word, report it again, or join it with the word before."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    found = [[sample for place, sample in begun.items() if start <= place < end] for start, end in spans]
    known = [index for index, samples in enumerate(found) if samples]
    if not known:
        raise ValueError(f"espeak-ng gives no time for any word of {text!r}.")
    first: list[float] = np.interp(range(len(found)), known, [min(found[index]) for index in known]).tolist()
    return first


def _trimmed(text: str, wav: np.ndarray, words: list[float], rate_hz: int) -> Said:
    loud = np.flatnonzero(np.abs(wav) > QUIET * np.abs(wav).max())
    first, last = loud[0], loud[-1] + 1
    pcm = soxr.resample(wav[first:last].astype(np.float32), rate_hz, SAMPLE_RATE_HZ)
    starts_s = tuple(max(0.0, (word - first) / rate_hz) for word in words)
    return Said(text, np.asarray(PEAK * pcm / np.abs(pcm).max(), np.float32), starts_s)
