"""Mixing channels: the mean where it is right, else the channel of the speaker."""

import numpy as np
import pytest

from pplex.runtime.arrays import Pcm
from pplex.runtime.mixing import Mix, MixChooser, StreamMix

RATE_HZ = 24_000
BLOCK = 2400


def voice(seconds: float = 2.0, seed: int = 0) -> Pcm:
    """Noise with syllables."""
    size = round(seconds * RATE_HZ)
    syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * np.arange(size) / RATE_HZ)
    return (0.1 * syllables * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def channels(*each: Pcm | float) -> Pcm:
    """[samples, C]; a number stands for a channel of noise of that level."""
    size = max(len(channel) for channel in each if not isinstance(channel, float))
    noise = np.random.default_rng(99)
    return np.stack(
        [noise.normal(0, c + 1e-12, size).astype(np.float32) if isinstance(c, float) else c for c in each], axis=1
    )


def choose(pcm: Pcm) -> Mix:
    chooser = MixChooser(pcm.shape[1])
    for block in np.array_split(pcm, len(pcm) // BLOCK):
        chooser.see(block)
    return chooser.choose()


def test_a_constant_offset_is_not_sound() -> None:
    """A microphone's direct current, the same in both channels, must not hide that the voice cancels out."""
    pcm = channels(0.3 * voice() + np.float32(0.2), -0.3 * voice() + np.float32(0.2))
    assert choose(pcm).channel == 0
    mixed = np.concatenate([StreamMix(RATE_HZ).push(pcm)])
    assert level(mixed - mixed.mean()) > 0.01


def level(pcm: Pcm) -> float:
    return float(np.sqrt(np.mean(np.square(pcm, dtype=np.float64))))


class TestRecording:
    @pytest.mark.parametrize(
        "pcm",
        [
            channels(voice(), voice()),
            channels(voice(), 0.0),
            channels(voice(), 0.5 * voice()),
            channels(voice(), voice(seed=1)),
            channels(voice(), np.roll(voice(), 7)),
            channels(voice(), 0.0, 0.0),
            channels(*(voice(seed=seed) for seed in range(8))),
            np.zeros((24_000, 2), np.float32),
            np.full((24_000, 2), np.nan, np.float32),
        ],
        ids=[
            "same",
            "one silent",
            "panned",
            "two speakers",
            "apart",
            "one of three",
            "eight",
            "silence",
            "not numbers",
        ],
    )
    def test_ordinary_channels_are_averaged(self, pcm: Pcm) -> None:
        mix = choose(pcm)
        assert (mix, mix.note) == (Mix(pcm.shape[1]), "")
        np.testing.assert_array_equal(mix.apply(pcm), pcm.mean(axis=1))

    @pytest.mark.parametrize("other", [-1.0, -0.9, -1.1])
    def test_the_louder_of_two_cancelling_channels_is_used(self, other: float) -> None:
        pcm = channels(voice(), other * voice())
        mix = choose(pcm)
        loudest = int(abs(other) > 1)
        np.testing.assert_array_equal(mix.apply(pcm), pcm[:, loudest])
        assert f"its 2 channels cancel out when they are mixed: only channel {loudest + 1} is heard" in mix.note

    def test_cancelling_for_a_part_of_the_time_is_enough(self) -> None:
        pcm = channels(voice(4.0), voice(4.0))
        pcm[72_000:, 1] *= -1  # somebody changes the cable after three of four seconds
        np.testing.assert_array_equal(choose(pcm).apply(pcm), pcm[:, 0])

    def test_two_of_four_that_cancel_are_found_beside_silent_ones(self) -> None:
        pcm = channels(0.0, voice(), -voice(), 0.0)
        assert choose(pcm).channel in (1, 2)

    @pytest.mark.parametrize("count", [4, 6, 8, 16])
    def test_a_speaker_in_one_of_many_channels_keeps_the_level(self, count: int) -> None:
        pcm = channels(*[1e-4] * (count - 2), voice(), 1e-4)
        mix = choose(pcm)
        assert level(mix.apply(pcm)) == pytest.approx(level(voice()), rel=0.01)
        assert (
            f"the mean of its {count} channels is too quiet: it is raised by {20 * np.log10(count):.0f} dB" in mix.note
        )

    def test_speakers_with_a_channel_each_are_all_heard(self) -> None:
        """A meeting: eight microphones, one speaks after the other."""
        pcm = np.zeros((8 * RATE_HZ, 8), np.float32)
        for speaker in range(8):
            pcm[speaker * RATE_HZ : (speaker + 1) * RATE_HZ, speaker] = voice(1.0, seed=speaker)
        heard = choose(pcm).apply(pcm)
        np.testing.assert_allclose(heard, pcm.sum(axis=1), atol=0.01)


class TestStream:
    def push(self, pcm: Pcm, mix: StreamMix | None = None) -> Pcm:
        mix = mix or StreamMix(RATE_HZ)
        return np.concatenate([mix.push(block) for block in pcm.reshape(-1, 480, 2)])

    @pytest.mark.parametrize("other", [voice(), 0.0, voice(seed=1), np.roll(voice(), 7)])
    def test_ordinary_stereo_is_averaged(self, other: Pcm | float) -> None:
        pcm = channels(voice(), other)
        np.testing.assert_array_equal(self.push(pcm), pcm.mean(axis=1))

    def test_cancelling_channels_are_audible_from_the_first_block(self) -> None:
        heard = self.push(channels(voice(), -voice()))
        np.testing.assert_allclose(heard[480:], voice()[480:], atol=1e-7)

    def test_a_change_of_channel_fades_in_both_directions(self) -> None:
        tone = (0.3 * np.sin(2 * np.pi * 200 * np.arange(9 * RATE_HZ) / RATE_HZ)).astype(np.float32)
        pcm = np.stack([tone, tone], axis=1)
        pcm[3 * RATE_HZ : 6 * RATE_HZ, 1] *= -1
        mix = StreamMix(RATE_HZ)
        before = self.push(pcm[: 3 * RATE_HZ], mix)
        during = self.push(pcm[3 * RATE_HZ : 6 * RATE_HZ], mix)
        assert mix.cancels
        after = self.push(pcm[6 * RATE_HZ :], mix)
        assert not mix.cancels
        np.testing.assert_array_equal(before, tone[: 3 * RATE_HZ])
        assert level(during[2 * RATE_HZ :]) == pytest.approx(level(tone), rel=0.01)
        assert level(after[2 * RATE_HZ :]) == pytest.approx(level(tone), rel=0.01)
        steps = np.abs(np.diff(np.concatenate([during[480:], after])))
        assert steps.max() < 2 * np.abs(np.diff(tone)).max()

    def test_silence_changes_nothing(self) -> None:
        mix = StreamMix(RATE_HZ)
        self.push(channels(voice(), -voice()), mix)
        self.push(np.zeros((RATE_HZ, 2), np.float32), mix)
        assert mix.cancels
