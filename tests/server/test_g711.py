"""G.711 against the ITU's tables, libsndfile and Python's audioop."""

import io
import warnings
from types import ModuleType

import numpy as np
import pytest
import soundfile

from pplex.server.g711 import A_LAW, G711, MU_LAW

LAWS = pytest.mark.parametrize(("law", "name"), [(MU_LAW, "ULAW"), (A_LAW, "ALAW")], ids=["mu", "A"])
EVERY_CODE = bytes(range(256))
EVERY_SAMPLE = np.arange(-(1 << 15), 1 << 15).astype("<i2")

# Decision values of ITU-T G.711 from 0 to the overload point, in units of the 13-bit (A) and 14-bit (mu) scale.
A_BORDERS = np.r_[0:64:2, 64:128:4, 128:256:8, 256:512:16, 512:1024:32, 1024:2048:64, 2048:4097:128]
MU_BORDERS = np.r_[0, 1:31:2, 31:95:4, 95:223:8, 223:479:16, 479:991:32, 991:2015:64, 2015:4063:128, 4063:8160:256]


def encoded(law: G711, samples: np.ndarray) -> np.ndarray:
    return np.frombuffer(law.encode(samples.astype(np.float32) / 32_768), np.uint8)


def decoded(law: G711, codes: bytes) -> np.ndarray:
    return law.decode(codes) * 32_768


@pytest.mark.parametrize(
    ("law", "borders", "unit", "loudest"), [(MU_LAW, MU_BORDERS, 4, 0x80), (A_LAW, A_BORDERS, 8, 0xAA)], ids=["mu", "A"]
)
def test_steps_and_levels_are_those_of_the_standard(law: G711, borders: np.ndarray, unit: int, loudest: int) -> None:
    assert len(borders) == 129
    levels = (borders[:-1] + borders[1:]) / 2 * unit  # a level lies in the middle of its step
    if law is MU_LAW:
        levels[0] = 0  # the one step that spans 0
    steps = np.searchsorted(borders[:-1] * unit, np.arange(1 << 15), side="right") - 1
    np.testing.assert_array_equal(decoded(law, encoded(law, np.arange(1 << 15)).tobytes()), levels[steps])
    below_zero = np.arange(-(1 << 15), 0)
    np.testing.assert_array_equal(decoded(law, encoded(law, below_zero).tobytes()), -levels[steps][::-1])
    assert encoded(law, np.array([32_767, -32_768])).tolist() == [loudest, loudest ^ 0x80]


@LAWS
def test_every_code_comes_back(law: G711, name: str) -> None:
    codes = np.frombuffer(law.encode(law.decode(EVERY_CODE)), np.uint8)
    changed = np.flatnonzero(codes != np.arange(256)).tolist()
    assert changed == ([0x7F] if law is MU_LAW else [])  # mu-law has two codes for 0: 0x7F becomes 0xFF
    assert encoded(law, np.zeros(1)).tolist() == [law.silence] == [0xFF if law is MU_LAW else 0xD5]


@LAWS
def test_codes_decode_as_by_libsndfile(law: G711, name: str) -> None:
    pcm, _ = soundfile.read(
        io.BytesIO(EVERY_CODE), dtype="float32", format="RAW", subtype=name, samplerate=8000, channels=1
    )
    np.testing.assert_array_equal(law.decode(EVERY_CODE), pcm)


@LAWS
def test_samples_encode_as_by_libsndfile(law: G711, name: str) -> None:
    """Except negative ones on a border of two steps, which libsndfile counts to the louder step."""
    file = io.BytesIO()
    soundfile.write(file, EVERY_SAMPLE, 8000, format="RAW", subtype=name)
    borders, unit = (MU_BORDERS, 4) if law is MU_LAW else (A_BORDERS, 8)
    clear = ~np.isin(EVERY_SAMPLE, -borders * unit)
    np.testing.assert_array_equal(encoded(law, EVERY_SAMPLE)[clear], np.frombuffer(file.getvalue(), np.uint8)[clear])


def test_audioop_gives_the_same() -> None:
    """Its mu-law counts negative samples to a step that is one unit louder: those are left out."""
    audioop = import_audioop()
    assert decoded(MU_LAW, EVERY_CODE).astype("<i2").tobytes() == audioop.ulaw2lin(EVERY_CODE, 2)
    assert decoded(A_LAW, EVERY_CODE).astype("<i2").tobytes() == audioop.alaw2lin(EVERY_CODE, 2)
    positive = EVERY_SAMPLE[1 << 15 :]
    assert encoded(MU_LAW, positive).tobytes() == audioop.lin2ulaw(positive.tobytes(), 2)
    assert encoded(A_LAW, EVERY_SAMPLE).tobytes() == audioop.lin2alaw(EVERY_SAMPLE.tobytes(), 2)


def import_audioop() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        reason = "Python 3.13 and newer have no audioop; the ITU's tables and libsndfile are compared anyway"
        return pytest.importorskip("audioop", reason=reason)


@LAWS
def test_what_exceeds_full_scale_is_clipped_and_nan_is_silence(law: G711, name: str) -> None:
    loud = np.array([1, 1.5, np.inf, -1, -16, -np.inf, np.nan], np.float32)
    top, bottom = law.encode(np.array([0.9999, -1], np.float32))
    assert list(law.encode(loud)) == [top] * 3 + [bottom] * 3 + [law.silence]


@LAWS
def test_nothing_gives_nothing(law: G711, name: str) -> None:
    assert law.encode(law.decode(b"")) == b"" and law.decode(b"").dtype == np.float32
