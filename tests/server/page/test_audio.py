"""The page's audio: the resampler, the jitter buffer, and the time that an answer takes."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    "from_hz, to_hz", [(48000, 24000), (44100, 24000), (16000, 24000), (24000, 44100), (24000, 48000)]
)
def test_resampler_keeps_speech_and_rejects_tones_that_would_fold(
    logic: Callable[[str], Any], from_hz: int, to_hz: int
) -> None:
    """Speech passes unchanged; a tone above the lower rate's Nyquist limit is 70 dB down, not folded back."""
    tones = [
        200,
        3000,
        9000 if min(from_hz, to_hz) > 18000 else 6000,
        *(hz for hz in (12500, 15000, 19000) if hz < from_hz / 2),
    ]
    gains = logic(f"""
        return {tones}.map((hz) => {{
            const resampler = new Resampler({from_hz}, {to_hz});
            const input = tone(hz, {from_hz}, {from_hz} / 4);
            const output = [];
            for (let i = 0; i < input.length; i += 128) output.push(...resampler.process(input.subarray(i, i + 128)));
            const steady = output.slice(1000, -1000);
            return 10 * Math.log10(2 * steady.reduce((sum, x) => sum + x * x, 0) / steady.length);
        }});
    """)
    for hz, gain_db in zip(tones, gains, strict=True):
        if hz < min(from_hz, to_hz) / 2:
            assert abs(gain_db) < 0.1, hz
        else:
            assert gain_db < -70, hz


def test_resampler_does_not_depend_on_the_size_of_its_chunks(logic: Callable[[str], Any]) -> None:
    lengths, difference = logic("""
        const input = tone(440, 44100, 20000);
        const whole = new Resampler(44100, 24000).process(input).slice();
        const resampler = new Resampler(44100, 24000);
        const pieces = [];
        for (let i = 0, size = 1; i < input.length; i += size, size = (size * 7 + 3) % 401) {
            pieces.push(...resampler.process(input.subarray(i, i + size)));
            if (size === 0) size = 1;
        }
        return [[whole.length, pieces.length], Math.max(...whole.map((x, i) => Math.abs(x - pieces[i])))];
    """)
    assert lengths[0] == lengths[1] > 10800
    assert difference == 0


# The output for a 300 Hz tone that arrives in frames at `arrivals` (ms): the time playing starts, the largest step from
# one sample to the next, and the buffer's values at the end. The tone itself steps by 0.0393 (2 pi 300 / 24000 x 0.5).
HEAR = """
    const hear = (arrivals, untilMs, amplitude = 0.5, wave = tone(300, 24000, 1920 * arrivals.length)) => {
        const buffer = new JitterBuffer(24000);
        const input = wave.map((x) => amplitude * x);
        const output = new Float32Array(128);
        let before = 0, step = 0, startMs = null, held = [];
        for (let next = 0, at = 0; at < untilMs * 24; at += 128) {
            for (; next < arrivals.length && arrivals[next] * 24 <= at; next++) {
                buffer.push(input.subarray(1920 * next, 1920 * (next + 1)));
            }
            buffer.pull(output);
            for (const sample of output) {
                step = Math.max(step, Math.abs(sample - before));
                before = sample;
            }
            if (startMs === null && output.some((x) => x !== 0)) startMs = at / 24;
            if (at > (untilMs - 1000) * 24) held.push(buffer.heldMs);
        }
        const { underruns, targetMs } = buffer;
        return { startMs, step, underruns, targetMs, heldMs: Math.min(...held) };
    };
    const steady = (count, from = 0) => Array.from({ length: count }, (_, n) => from + 80 * n);
"""
TONE_STEP = 0.0393


def test_jitter_buffer_starts_after_a_short_delay_and_plays_on(logic: Callable[[str], Any]) -> None:
    heard = logic(HEAR + "return hear(steady(50), 4000);")
    assert 10 <= heard["startMs"] <= 40  # 80 ms arrived at once, the target is 100
    assert heard["underruns"] == 0
    assert heard["step"] < 1.05 * TONE_STEP
    assert heard["heldMs"] < 40


def test_jitter_buffer_fades_out_at_an_underrun_and_then_grows(logic: Callable[[str], Any]) -> None:
    heard = logic(HEAR + "return hear([...steady(20), ...steady(20, 1760)], 3300);")
    assert heard["underruns"] == 1
    assert 110 <= heard["targetMs"] <= 130
    assert heard["step"] < 3 * TONE_STEP  # faded over 5 ms; a click would step by up to 0.5


def test_jitter_buffer_that_has_grown_has_no_further_underruns(logic: Callable[[str], Any]) -> None:
    """Every fifth frame is 60 ms late: after a few underruns the buffer is long enough."""
    late = "const late = (n) => steady(n).map((ms, i) => ms + (i % 5 === 4 ? 60 : 0));"
    first, whole = logic(HEAR + late + "return [hear(late(50), 4000), hear(late(125), 10000)];")
    assert 1 <= first["underruns"] == whole["underruns"] <= 3
    assert whole["step"] < 3 * TONE_STEP


@pytest.mark.parametrize("amplitude, within_s", [(0.5, 8), (0.001, 5)])
def test_jitter_buffer_shrinks_when_frames_arrive_in_time(
    logic: Callable[[str], Any], amplitude: float, within_s: int
) -> None:
    """After a burst of 240 ms it drops silence at once, and speech step by step with cross-fades."""
    heard = logic(HEAR + f"return hear([0, 0, 0, ...steady({within_s} * 13)], {within_s} * 1000, {amplitude});")
    assert heard["underruns"] == 0
    assert heard["heldMs"] < 50
    assert heard["step"] < 3 * TONE_STEP * amplitude / 0.5


# Networks that are bad for 20 s and then good: the delay in ms of a frame that is sent at `ms`.
SPELLS = {
    "stalls": "ms + Math.max(0, 500 - (ms % 2900))",
    "uneven": "ms - 80 * Math.log(1 - ((ms * 0.6180339887) % 1))",
    "bursts": "ms + 240 - (ms % 320)",
}
# The agent's audio meanwhile: a tone and noise never pause, a voice does; `n` samples of each.
WAVES = {
    "tone": "tone(300, 24000, n)",
    "noise": "Float32Array.from({ length: n }, () => Math.random() - 0.5)",
    "voice": "tone(140, 24000, n).map((x, i) => (x + 0.5 * Math.sin(i * 0.11)) * (i % 60000 < 54000 ? 0.5 : 0.001))",
    "silence": "new Float32Array(n)",
}


@pytest.mark.parametrize("wave", WAVES)
def test_jitter_buffer_is_small_again_ten_seconds_after_network_trouble(logic: Callable[[str], Any], wave: str) -> None:
    """Underruns made it grow; for any audio it shrinks within 10 s, without clicks and new gaps."""
    heard = logic(f"""{HEAR}
        const n = 1920 * 375;
        const wave = {WAVES[wave]};
        const spells = [{", ".join(f"(ms) => {spell}" for spell in SPELLS.values())}];
        return spells.map((late) => {{
            const arrivals = steady(375).map((ms) => (ms < 20000 ? late(ms) : ms));
            arrivals.forEach((ms, i) => (arrivals[i] = Math.max(ms, arrivals[i - 1] ?? 0)));
            return [hear(arrivals.slice(0, 250), 20000, 0.5, wave), hear(arrivals, 30000, 0.5, wave)];
        }});
    """)
    for (spell, whole), name in zip(heard, SPELLS, strict=True):
        assert spell["underruns"] >= 1, name
        assert whole["underruns"] == spell["underruns"], name
        assert whole["heldMs"] < 55, name
        assert whole["targetMs"] < 110, name
        if wave == "tone":
            assert whole["step"] < 3 * TONE_STEP, name


def test_jitter_buffer_skips_old_audio_after_a_stall(logic: Callable[[str], Any]) -> None:
    """Two seconds that come at once are not played two seconds late."""
    heard = logic(HEAR + "return hear([...steady(10), ...Array(25).fill(2800), ...steady(50, 2880)], 5000);")
    assert heard["underruns"] == 1
    assert heard["heldMs"] < 200
    assert heard["step"] < 3 * TONE_STEP


def test_jitter_buffer_does_not_count_an_expected_gap(logic: Callable[[str], Any]) -> None:
    assert logic("""
        const buffer = new JitterBuffer(48000);
        const output = new Float32Array(128);
        for (const expected of [true, false]) {
            buffer.push(new Float32Array(9600));
            buffer.pull(output);
            if (expected) buffer.expectGap();
            for (let i = 0; i < 200; i++) buffer.pull(output);
        }
        return [buffer.underruns, buffer.heldMs < 3];
    """) == [1, True]


def test_answers_are_timed_from_the_last_sample_of_a_frame(logic: Callable[[str], Any]) -> None:
    """Frame 0 is sent by 40 ms and answered at 100, frame 1 dropped, frame 2 sent by 200 and answered at 290."""
    assert logic("""
        const timer = new ReplyTimer();
        for (let ms = 0; ms <= 200; ms += 40) timer.sent(960, ms);
        timer.answered(100);
        const first = timer.medianMs;
        timer.dropped(1);
        timer.answered(290);
        timer.answered(300);
        return [first, timer.medianMs];
    """) == [60, 90]
