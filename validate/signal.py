"""Distances between two signals: power, spectra and onset times. Used by the codec section."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pplex.runtime.config import SAMPLE_RATE_HZ

Signal = npt.NDArray[np.floating[Any]]  # [N] samples; full scale is 1

# FFT, hop and window in samples, from the article's table for 24 kHz.
RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))
AUDIBLE = 1e-4  # amplitude of a sine 80 dB below full scale: quieter parts of spectra count as silence

HOP = 6  # samples: the envelope has a value every 0.25 ms
SMOOTHING_MS = 10.0  # of the envelope: a period of a 100 Hz voice, so its pulses are not onsets
RISE_DB, RISE_MS = 9.0, 10.0  # an onset rises by at least RISE_DB within RISE_MS
APART_MS = 40.0  # rises within this time are one onset
QUIETEST_DB, SILENT_DB = -35.0, -60.0  # relative to the loudest: quieter onsets are left out; lower levels are clipped
BEFORE_MS, REACH_MS, AFTER_MS = (
    25.0,
    20.0,
    60.0,
)  # around an onset: search of its floor, of its peak, and its largest delay


@dataclass(frozen=True)
class SpectralDistance:
    """Means over the resolutions: `convergence` is a ratio of norms, `log_magnitude` a mean of |ln(A / B)|."""

    convergence: float
    log_magnitude: float

    @property
    def total(self) -> float:
        return self.convergence + self.log_magnitude


@dataclass(frozen=True)
class OnsetShift:
    """For each onset of the target: its time in seconds, and the delay of the estimate's rise in ms."""

    times_s: tuple[float, ...]
    shifts_ms: tuple[float, ...]

    @property
    def onsets(self) -> int:
        return len(self.shifts_ms)

    @property
    def median_ms(self) -> float | None:
        """The median with its sign; None without onsets."""
        return float(np.median(self.shifts_ms)) if self.shifts_ms else None

    @property
    def worst_ms(self) -> float | None:
        """The shift furthest from 0, with its sign; None without onsets."""
        return max(self.shifts_ms, key=_magnitude) if self.shifts_ms else None

    @property
    def worst_s(self) -> float | None:
        """The time of the worst shift."""
        return self.times_s[self.shifts_ms.index(self.worst_ms)] if self.worst_ms is not None else None


def si_sdr_db(estimate: Signal, target: Signal) -> float:
    """Scale-invariant signal-to-distortion ratio of two signals [N] in dB; means are not removed.

    10 log10(|a t|^2 / |a t - e|^2) with a = <e, t> / <t, t>, so a change of level does not count. It is infinite without
    distortion, also for two silent signals, and -infinity if only one signal is silent. NaN gives NaN.
    Source: Le Roux et al., SDR - half-baked or well done?, 2019.
    """
    e, t = _pair(estimate, target)
    power = float(t @ t)
    scaled = t * (float(e @ t) / power) if power else t
    signal, distortion = float(scaled @ scaled), float(((scaled - e) ** 2).sum())
    if math.isnan(distortion):
        return math.nan
    if distortion == 0:
        return math.inf if signal or not power else -math.inf
    return 10 * math.log10(signal / distortion) if signal else -math.inf


def spectral_distance(estimate: Signal, target: Signal) -> SpectralDistance:
    """Multi-resolution distance of the magnitude spectra of two signals [N]; 0 for equal signals.

    Each resolution has two values. Spectral convergence is the difference of the spectrograms relative to the target's; it
    weighs loud parts. The mean difference of their logarithms weighs quiet parts. No single window resolves both pitch and
    attacks, so the mean is over several. NaN gives NaN.
    Source: Yamamoto et al., Parallel WaveGAN, 2020. Unlike there, magnitudes below those of a sine of AUDIBLE are clipped:
    then silence has a logarithm.
    """
    e, t = _pair(estimate, target)
    distances = [_spectral_distance(e, t, *resolution) for resolution in RESOLUTIONS]
    return SpectralDistance(*(float(mean) for mean in np.mean(distances, axis=0)))


def onset_shift_ms(estimate: Signal, target: Signal) -> OnsetShift:
    """The delay of each onset of `target` [N] in `estimate` [N].

    The time of a rise is the mean time at which its parts arrive, weighted by their height:

        level   |     ,-----      target: the whole rise at t
                |    /|  ,'       estimate: from t to t + 20 ms, on average at t + 10 ms
        floor   |___/_|,'

    A delay of T ms gives T; a linear ramp of T ms gives T / 2. The time at which a threshold is crossed is not used, because
    it jumps if two peaks have similar heights. First, means are removed, and levels are matched over the whole signal.
    A lost onset gives about AFTER_MS. NaN in the estimate gives NaN, and NaN in the target gives no onset.
    """
    e, t = (envelope(signal - signal.mean()) for signal in _pair(estimate, target))
    onsets = find_onsets(t)
    if not len(onsets):
        return OnsetShift((), ())
    power = float(e @ e)
    matched = e * math.sqrt(float(t @ t) / power) if power else e
    shifts = tuple(_rise_shift_ms(matched, t, int(onset)) for onset in onsets)
    return OnsetShift(tuple(float(onset) * HOP / SAMPLE_RATE_HZ for onset in onsets), shifts)


def envelope(signal: Signal) -> Signal:
    """Root mean square over SMOOTHING_MS around every HOP-th sample: [N] -> [N // HOP + 1]."""
    half = int(SMOOTHING_MS / 2 * SAMPLE_RATE_HZ / 1000)
    power = np.concatenate([[0.0], np.cumsum(np.asarray(signal, np.float64) ** 2)])
    centres = np.arange(0, len(signal) + 1, HOP)
    sums = power[np.minimum(centres + half, len(signal))] - power[np.maximum(centres - half, 0)]
    return np.sqrt(np.maximum(sums, 0) / (2 * half))


def find_onsets(level: Signal) -> npt.NDArray[np.intp]:
    """The entries of an envelope in the middle of its steep rises."""
    peak, lag = float(level.max(initial=0)), _entries(RISE_MS)
    if not peak > 0 or len(level) <= lag:
        return np.zeros(0, np.intp)
    level_db = 20 * np.log10(np.maximum(level / peak, 10 ** (SILENT_DB / 20)))
    rise_db = level_db[lag:] - level_db[:-lag]
    rise_db[level_db[lag:] < QUIETEST_DB] = 0
    apart, onsets = _entries(APART_MS), list[int]()
    for at in np.argsort(-rise_db, kind="stable"):
        if rise_db[at] < RISE_DB:
            break
        if all(abs(at - other) >= apart for other in onsets):
            onsets.append(int(at))
    return np.array(sorted(onsets), np.intp) + lag // 2


def _pair(estimate: Signal, target: Signal) -> tuple[Signal, Signal]:
    """Both as [N] float64, with NaN for values that are not finite."""
    e, t = (np.where(np.isfinite(x), x, np.nan).astype(np.float64) for x in (estimate, target))
    if e.shape != t.shape or e.ndim != 1 or not len(e):
        raise ValueError(f"Two signals [N] of the same length are compared, not {e.shape} with {t.shape}.")
    return e, t


def _spectral_distance(e: Signal, t: Signal, fft: int, hop: int, window: int) -> tuple[float, float]:
    estimate, target = _spectrogram(e, fft, hop, window), _spectrogram(t, fft, hop, window)
    difference, norm = float(np.linalg.norm(estimate - target)), float(np.linalg.norm(target))
    convergence = difference / norm if norm else (math.inf if difference else difference)
    floor = (
        AUDIBLE * window / 4
    )  # a Hann window sums to half its length, and a sine has half its amplitude at each sign
    logs = np.log(np.maximum(estimate, floor)) - np.log(np.maximum(target, floor))
    return convergence, float(np.abs(logs).mean())


def _spectrogram(signal: Signal, fft: int, hop: int, window: int) -> Signal:
    """Magnitudes [frames, fft // 2 + 1] of Hann windows centred on every `hop`-th sample; the signal is zero-padded."""
    padded = np.pad(signal, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.abs(np.fft.rfft(frames * hann, fft))


def _rise_shift_ms(estimate: Signal, target: Signal, onset: int) -> float:
    start = max(onset - _entries(BEFORE_MS), 0)
    floor = float(target[start : onset + 1].min())
    level = float(target[onset : onset + _entries(REACH_MS) + 1].max())
    times = [_rise(signal, start, onset, floor, level) for signal in (estimate, target)]
    return (times[0] - times[1]) * HOP * 1000 / SAMPLE_RATE_HZ


def _rise(signal: Signal, start: int, onset: int, floor: float, level: float) -> float:
    """Entries from `start` to the mean time of the rise from `floor` to `level`."""
    ahead = signal[onset : onset + _entries(AFTER_MS)]
    halfway = int(np.argmax(ahead >= (floor + level) / 2))  # also 0 if the level is never reached
    trough = start + int(signal[start : onset + halfway + 1].argmin())  # earlier samples belong to the sound before
    heights = np.maximum.accumulate(signal[trough : onset + len(ahead)])
    risen = np.clip((heights - floor) / (level - floor), 0, 1)
    return trough - start + float((1 - risen).sum())


def _entries(duration_ms: float) -> int:
    """The entries of an envelope for a duration."""
    return round(duration_ms * SAMPLE_RATE_HZ / 1000 / HOP)


def _magnitude(shift_ms: float) -> float:
    return math.inf if math.isnan(shift_ms) else abs(shift_ms)
