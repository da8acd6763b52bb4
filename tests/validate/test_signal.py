"""The metrics of signals on known differences, and compared with other implementations."""

import math

import numpy as np
import pytest
import torch
from folders import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from pplex.runtime.config import SAMPLE_RATE_HZ
from pplex.runtime.synthetic_speech import speech_like
from pplex.validate.signal import (
    AFTER_MS,
    AUDIBLE,
    RESOLUTIONS,
    Signal,
    onset_shift_ms,
    si_sdr_db,
    spectral_distance,
)

SPEECH = speech_like(120, 1920, seed=7)
SPEECH[:4800] *= np.linspace(0, 1, 4800)


def bursts() -> Signal:
    """Noise that begins at once and fades: 6 attacks."""
    random, fade = np.random.default_rng(0), np.linspace(0.3, 0.05, 6000)
    noise = random.standard_normal((6, 6000)) * fade
    return np.pad(np.pad(noise, ((0, 0), (0, 6000))).ravel(), (6000, 0))


def tones() -> Signal:
    """A tone of 1 kHz that begins at once: 6 attacks."""
    tone = 0.3 * np.sin(2 * np.pi * np.arange(6000) / 24)
    return np.pad(np.tile(np.pad(tone, (0, 6000)), 6), (6000, 0))


def recording() -> Signal:
    return np.pad(load_file(TINY / "expected" / "mimi_stream.safetensors")["pcm_in"], (2400, 0))


def delayed(signal: Signal, samples: int) -> Signal:
    return np.concatenate([np.zeros(samples, signal.dtype), signal[: len(signal) - samples]])


def softened(signal: Signal, ramp_ms: float) -> Signal:
    """Every attack multiplied by a ramp from 0 to 1."""
    result, ramp = signal.copy(), np.linspace(0, 1, int(ramp_ms * SAMPLE_RATE_HZ / 1000))
    for time_s in onset_shift_ms(signal, signal).times_s:
        start = round(time_s * SAMPLE_RATE_HZ)
        result[start : start + len(ramp)] *= ramp[: len(result) - start]
    return result


def noisy(signal: Signal, level_db: float) -> Signal:
    noise = np.random.default_rng(1).standard_normal(len(signal)) * signal.std() * 10 ** (level_db / 20)
    return (signal + noise).astype(signal.dtype)


class TestSiSdr:
    @pytest.mark.parametrize("signal", [SPEECH, recording(), bursts(), bursts() + 0.4], ids=len)
    @pytest.mark.parametrize("level_db", [-5.0, -40.0, -70.0])
    @pytest.mark.parametrize("gain", [1.0, -0.3])
    def test_equals_that_of_torchmetrics(self, signal: Signal, level_db: float, gain: float) -> None:
        estimate = gain * noisy(signal.astype(np.float64), level_db)
        theirs = scale_invariant_signal_distortion_ratio(torch.from_numpy(estimate), torch.from_numpy(signal).double())
        assert si_sdr_db(estimate, signal) == pytest.approx(theirs.item(), abs=1e-6)

    def test_equals_the_level_of_added_noise(self) -> None:
        assert si_sdr_db(noisy(bursts(), -60.0), bursts()) == pytest.approx(60, abs=0.2)

    def test_silence_against_sound_is_infinite(self) -> None:
        silence, sound = np.zeros(100, np.float32), SPEECH[4800:4900]
        assert si_sdr_db(silence, silence) == si_sdr_db(sound, sound) == math.inf
        assert si_sdr_db(silence, sound) == si_sdr_db(sound, silence) == -math.inf


class TestSpectralDistance:
    @pytest.mark.parametrize("signal", [SPEECH[:30000], recording()[:30001], bursts()[6000:6700]], ids=len)
    @pytest.mark.parametrize("level_db", [-10.0, -60.0])
    def test_equals_that_of_another_stft(self, signal: Signal, level_db: float) -> None:
        estimate = noisy(signal, level_db)
        convergence, log_magnitude = np.mean([by_torch(estimate, signal, *r) for r in RESOLUTIONS], axis=0)
        distance = spectral_distance(estimate, signal)
        assert distance.convergence == pytest.approx(convergence, rel=1e-9)
        assert distance.log_magnitude == pytest.approx(log_magnitude, rel=1e-9)
        assert distance.total == pytest.approx(convergence + log_magnitude, rel=1e-9)

    def test_a_level_difference_is_in_db(self) -> None:
        distance = spectral_distance(0.5 * bursts()[6000:12000], bursts()[6000:12000])
        assert distance.convergence == pytest.approx(0.5)
        assert distance.log_magnitude == pytest.approx(math.log(2), rel=0.02)

    def test_inaudible_differences_count_as_silence(self) -> None:
        silence, murmur = np.zeros(3000), 0.5 * AUDIBLE * np.sin(np.arange(3000))
        assert spectral_distance(silence, silence).total == 0
        assert spectral_distance(murmur, silence).log_magnitude == 0
        assert spectral_distance(murmur, silence).convergence == math.inf


def by_torch(estimate: Signal, target: Signal, fft: int, hop: int, window: int) -> tuple[float, float]:
    e, t = (
        torch.stft(
            torch.from_numpy(x).double(),
            fft,
            hop,
            window,
            torch.hann_window(window, dtype=torch.float64),
            center=True,
            pad_mode="constant",
            return_complex=True,
        ).abs()
        for x in (estimate, target)
    )
    logs = [x.clamp(min=AUDIBLE * window / 4).log() for x in (e, t)]
    return ((e - t).norm() / t.norm()).item(), (logs[0] - logs[1]).abs().mean().item()


class TestOnsetShift:
    @pytest.mark.parametrize("signal", [SPEECH, recording(), bursts()], ids=len)
    @pytest.mark.parametrize("samples", [7, 60, 120, 240])
    def test_a_delay_is_measured_exactly(self, signal: Signal, samples: int) -> None:
        delay_ms = samples * 1000 / SAMPLE_RATE_HZ
        late = onset_shift_ms(delayed(signal, samples), signal)
        early = onset_shift_ms(signal, delayed(signal, samples))
        assert late.onsets > 5
        assert late.shifts_ms == pytest.approx([delay_ms] * late.onsets, abs=0.5)
        assert early.shifts_ms == pytest.approx([-delay_ms] * early.onsets, abs=0.5)

    @pytest.mark.parametrize("ramp_ms", [6.0, 10.0, 20.0])
    def test_a_softer_attack_shifts_by_half_its_ramp(self, ramp_ms: float) -> None:
        shift = onset_shift_ms(softened(tones(), ramp_ms), tones())
        assert shift.times_s == pytest.approx([0.25 + 0.5 * i for i in range(6)], abs=1e-3)
        assert shift.median_ms == pytest.approx(ramp_ms / 2, abs=1)

    @pytest.mark.parametrize("ramp_ms", [10.0, 18.0])
    def test_a_softer_attack_is_found_where_other_metrics_pass(self, ramp_ms: float) -> None:
        soft = softened(SPEECH, ramp_ms)
        assert si_sdr_db(soft, SPEECH) > 42 and spectral_distance(soft, SPEECH).total < 0.02
        shift = onset_shift_ms(soft, SPEECH)
        assert shift.onsets > 5 and min(shift.shifts_ms) > 0.5

    @pytest.mark.parametrize("signal", [SPEECH, recording(), bursts()], ids=len)
    def test_level_noise_and_offset_cause_no_shift(self, signal: Signal) -> None:
        shift = onset_shift_ms(0.9 * noisy(signal, -60.0) + 0.4, signal)
        assert shift.onsets > 5 and shift.worst_ms == pytest.approx(0, abs=0.1)
        assert onset_shift_ms(signal, signal).shifts_ms == (0.0,) * shift.onsets

    def test_one_shifted_attack_among_many_is_found(self) -> None:
        signal = bursts()
        late = signal.copy()
        late[28000:42000] = delayed(signal, 96)[28000:42000]  # the third
        shift = onset_shift_ms(late, signal)
        assert shift.median_ms == pytest.approx(0, abs=1e-6)
        assert shift.worst_ms == pytest.approx(4, abs=0.2) and shift.worst_s == pytest.approx(1.25, abs=1e-3)

    def test_a_lost_attack_is_a_large_shift(self) -> None:
        shift = onset_shift_ms(np.zeros(len(SPEECH)), SPEECH)
        assert shift.onsets > 5 and min(shift.shifts_ms) > AFTER_MS / 2

    def test_sound_without_attacks_has_no_shift(self) -> None:
        for signal in (np.zeros(24000), np.ones(1), np.sin(0.1 * np.arange(24000))):
            shift = onset_shift_ms(signal, signal)
            assert (shift.onsets, shift.median_ms, shift.worst_ms, shift.worst_s) == (0, None, None, None)


def test_nan_is_never_a_pass() -> None:
    broken = SPEECH.copy()
    broken[50000] = np.nan
    assert math.isnan(si_sdr_db(broken, SPEECH))
    assert math.isnan(spectral_distance(broken, SPEECH).total)
    shift = onset_shift_ms(broken, SPEECH)
    assert shift.worst_ms is not None and math.isnan(shift.worst_ms) and shift.worst_s is not None


@pytest.mark.parametrize("metric", [si_sdr_db, spectral_distance, onset_shift_ms])
@pytest.mark.parametrize("shape", [(0,), (2, 50), (99,)], ids=str)
def test_incomparable_signals_are_refused(metric: object, shape: tuple[int, ...]) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="same length"):
        metric(np.zeros(shape), np.zeros(100) if shape == (99,) else np.zeros(shape))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 900), elements=st.floats(width=32), fill=st.sampled_from([0.0, 0.1])),
    st.integers(1, 900),
)
def test_any_samples_give_numbers_or_nan(pair: Signal, length: int) -> None:
    estimate, target = pair[:, :length]
    distance, ratio = spectral_distance(estimate, target), si_sdr_db(estimate, target)
    finite = bool(np.isfinite(pair[:, :length]).all())
    assert math.isnan(ratio) == math.isnan(distance.total) == (not finite)
    assert distance.total >= 0 or not finite
    shift = onset_shift_ms(estimate, target)
    assert shift.onsets == 0 or not finite or all(math.isfinite(ms) for ms in shift.shifts_ms)
    if finite:
        assert spectral_distance(target, target).total == 0 and si_sdr_db(target, target) > 100
