"""The page in a real browser, Debian's Chromium with a recording for a microphone, against the real server."""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import TINY

import pplex.server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")

CHROMIUM = shutil.which("chromium")
PAGE = Path(pplex.server.__file__).parent / "page"
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
    f" --use-file-for-fake-audio-capture={TINY / 'checkpoint/voices/synthetic.wav'}"
).split()
SECOND = 1000  # playwright counts in ms
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")

Browser = Any
Tab = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a tab that remembers what went wrong in it, in `complaints`; nothing may have."""
    contexts, complaints = [], list[str]()

    def make(**options: Any) -> Tab:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(20 * SECOND)
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        tab.complaints = complaints
        return tab

    yield make
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def logic(open_tab: Callable[..., Tab]) -> Callable[[str], Any]:
    """Runs the body of a function in which the page's modules without browser APIs are at hand; gives what it returns."""
    tab = open_tab()
    _serve_folder(tab, "http://page.test")
    tab.goto("http://page.test/blank")
    modules = "".join(
        f"const {{ {names} }} = await import('/{file}');"
        for file, names in {
            "protocol.js": "packAudio, unpack, openingQuery, resumingQuery, endingOf, isLoss",
            "resampler.js": "Resampler",
            "jitter.js": "JitterBuffer",
            "latency.js": "ReplyTimer",
        }.items()
    )
    tone = "const tone = (hz, rate, count) => Float32Array.from({ length: count }, (_, i) => Math.sin(2 * Math.PI * hz * i / rate));"
    return lambda body: tab.evaluate(f"async () => {{ {modules} {tone} {body} }}")


def _serve_folder(tab: Tab, origin: str, info: dict[str, Any] | None = None) -> None:
    """Answers a tab's requests to `origin` from the page's folder, without a server; /api/info is `info`."""

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix(origin).split("?")[0].strip("/") or "index.html"
        if name == "api/info":
            route.fulfill(json=info)
        elif (PAGE / name).is_file():
            route.fulfill(path=PAGE / name)
        else:
            route.fulfill(body="", content_type="text/html")

    tab.route(f"{origin}/**", answer)


# Logic


@pytest.mark.parametrize("from_hz, to_hz", [(48000, 24000), (44100, 24000), (16000, 24000), (24000, 44100), (24000, 48000)])
def test_the_resampler_keeps_what_fits_and_rejects_the_rest(logic: Callable[[str], Any], from_hz: int, to_hz: int) -> None:
    """Speech passes unchanged; a tone above the lower rate's Nyquist limit is 70 dB down, not folded back."""
    tones = [200, 3000, 9000 if min(from_hz, to_hz) > 18000 else 6000, *(hz for hz in (12500, 15000, 19000) if hz < from_hz / 2)]
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


def test_the_resampler_does_not_depend_on_how_its_input_is_cut(logic: Callable[[str], Any]) -> None:
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


# What is heard of a 300 Hz tone that arrives in frames at `arrivals` (ms): the time playing starts, the largest step from
# one sample to the next, and what the buffer says at the end. The tone itself steps by 0.0393 (2 pi 300 / 24000 x 0.5).
HEAR = """
    const hear = (arrivals, untilMs, amplitude = 0.5) => {
        const buffer = new JitterBuffer(24000);
        const frames = arrivals.map((_, n) => tone(300, 24000, 1920 * (n + 1)).subarray(1920 * n).map((x) => amplitude * x));
        const output = new Float32Array(128);
        let before = 0, step = 0, startMs = null, held = [];
        for (let next = 0, at = 0; at < untilMs * 24; at += 128) {
            while (next < arrivals.length && arrivals[next] * 24 <= at) buffer.push(frames[next++]);
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


def test_the_jitter_buffer_holds_a_little_back_and_then_plays_on(logic: Callable[[str], Any]) -> None:
    heard = logic(HEAR + "return hear(steady(50), 4000);")
    assert 10 <= heard["startMs"] <= 40  # 80 ms came at once, 100 are the target
    assert heard["underruns"] == 0
    assert heard["step"] < 1.05 * TONE_STEP
    assert heard["heldMs"] < 40


def test_the_jitter_buffer_fades_out_at_an_underrun_and_holds_more_back_after_it(logic: Callable[[str], Any]) -> None:
    heard = logic(HEAR + "return hear([...steady(20), ...steady(20, 1760)], 3300);")
    assert heard["underruns"] == 1
    assert heard["targetMs"] == 130
    assert heard["step"] < 3 * TONE_STEP  # faded over 5 ms; a click would step by up to 0.5


def test_the_jitter_buffer_rides_out_what_it_has_grown_for(logic: Callable[[str], Any]) -> None:
    """Every fifth frame is 60 ms late: some underruns teach the buffer, and then there are none."""
    late = "const late = (n) => steady(n).map((ms, i) => ms + (i % 5 === 4 ? 60 : 0));"
    first, whole = logic(HEAR + late + "return [hear(late(50), 4000), hear(late(125), 10000)];")
    assert 1 <= first["underruns"] == whole["underruns"] <= 3
    assert whole["step"] < 3 * TONE_STEP


@pytest.mark.parametrize("amplitude, within_s", [(0.5, 30), (0.001, 5)])
def test_the_jitter_buffer_gives_up_what_it_holds_for_nothing(
    logic: Callable[[str], Any], amplitude: float, within_s: int
) -> None:
    """After a burst of 240 ms: at once where the agent is silent, 20 ms at a time, cross-faded, where it is not."""
    heard = logic(HEAR + f"return hear([0, 0, 0, ...steady({within_s} * 13)], {within_s} * 1000, {amplitude});")
    assert heard["underruns"] == 0
    assert heard["heldMs"] < 50
    assert heard["step"] < 3 * TONE_STEP * amplitude / 0.5


def test_the_jitter_buffer_counts_no_gap_that_is_expected(logic: Callable[[str], Any]) -> None:
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


def test_messages_are_packed_and_unpacked(logic: Callable[[str], Any]) -> None:
    packed, audio, text, session, broken, others = logic("""
        const bytes = (...list) => new Uint8Array(list.flat()).buffer;
        const utf8 = (text) => [...new TextEncoder().encode(text)];
        return [
            [...new Uint8Array(packAudio(Float32Array.of(0, 1, -1, 2, NaN, 0.5)))],
            [...unpack(bytes(1, 0, 64, 0, 128)).samples],
            unpack(bytes(2, utf8(" für"))).text,
            unpack(bytes(4, utf8('{"type":"session"}'))).content,
            unpack(bytes(4, utf8('{"type'))).content,
            [bytes(0), bytes(6), bytes(9), bytes()].map((message) => unpack(message).kind),
        ];
    """)
    assert packed == [1, 0, 0, 255, 127, 1, 128, 255, 127, 0, 0, 0, 64]
    assert audio == [0.5, -1]
    assert (text, session, broken) == (" für", {"type": "session"}, {})
    assert others == ["handshake", "ping", "unknown", "unknown"]


def test_a_query_leaves_out_what_is_empty(logic: Callable[[str], Any]) -> None:
    assert logic("return openingQuery({ seed: '', text_prompt: ' Be kind & brief. ', token: undefined })") == (
        "audio=s16&text_prompt=Be+kind+%26+brief."
    )
    assert logic("return resumingQuery('k', 't')") == "audio=s16&resume=k&token=t"


def test_only_a_lost_connection_is_taken_up_again(logic: Callable[[str], Any]) -> None:
    codes = [1000, 1001, 1003, 1006, 1007, 1008, 1009, 1011, 1013, 4001]
    assert logic(f"return {codes}.filter(isLoss)") == [1006]
    assert all("code" not in reason for reason in logic(f"return {codes}.filter((c) => !isLoss(c)).map(endingOf)"))


def test_answers_are_timed_from_a_frames_last_sample(logic: Callable[[str], Any]) -> None:
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


# The page alone


def _colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    light, dark = (PAGE / "style.css").read_text().split("prefers-color-scheme: dark", 1)
    colours = _colours(light if scheme == "light" else dark)
    for front, back, least in [
        *((front, back, 4.5) for front in ("text", "soft") for back in ("ground", "surface")),
        *(("on-accent", "accent", 4.5), ("on-stop", "stop", 4.5), ("wrong", "wrong-tint", 4.5), ("text", "accent-tint", 4.5)),
        *(("edge", "surface", 3), ("accent", "ground", 3), ("accent", "line", 3)),
    ]:
        one, two = sorted((_luminance(colours[front]), _luminance(colours[back])))
        assert (two + 0.05) / (one + 0.05) >= least, (front, back)


INFO = {"voices": ["NATF0", "VARM2", "mine"], "sample_rate": 24000, "frame_size": 1920, "token_required": True}


def test_a_page_that_is_not_secure_says_what_to_do(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    _serve_folder(tab, "http://page.test", INFO)
    tab.goto("http://page.test/")
    playwright.expect(tab.get_by_role("alert")).to_contain_text("https")
    playwright.expect(tab.get_by_role("button", name="Talk")).to_be_disabled()


@pytest.mark.parametrize("error, words", [("NotAllowedError", "not allowed"), ("NotFoundError", "no microphone")])
def test_a_microphone_that_cannot_be_had_is_explained(open_tab: Callable[..., Tab], error: str, words: str) -> None:
    tab = open_tab()
    refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }};"
    tab.add_init_script(refuse)
    _serve_folder(tab, "http://localhost:9", {**INFO, "token_required": False})
    tab.goto("http://localhost:9/")
    tab.get_by_role("button", name="Talk").click()
    playwright.expect(tab.get_by_role("status")).to_contain_text(words)
    playwright.expect(tab.get_by_role("button", name="Talk")).to_be_enabled()


def test_waiting_and_a_refusal_after_the_upgrade_are_shown(open_tab: Callable[..., Tab]) -> None:
    """The token of the page's own address is sent; a place in the queue is told, and why there was none in the end."""
    tab, sockets = open_tab(), []
    _serve_folder(tab, "http://localhost:9", INFO)
    tab.route_web_socket("**/api/chat**", lambda ws: (sockets.append(ws), ws.send(b'\4{"type":"queued","position":2}')))
    tab.goto("http://localhost:9/?token=secret")
    assert tab.get_by_label("Access token").input_value() == "secret"
    assert tab.locator("#voice optgroup").evaluate_all("all => all.map((group) => group.label)") == [
        "Natural, female",
        "Varied, male",
        "Others",
    ]
    tab.get_by_role("button", name="Talk").click()
    playwright.expect(tab.get_by_role("status")).to_contain_text("number 2")
    assert "audio=s16" in sockets[0].url and "voice_prompt=NATF0" in sockets[0].url and "token=secret" in sockets[0].url
    sockets[0].close(code=1013)
    playwright.expect(tab.get_by_role("status")).to_contain_text("Try again later")
    assert len(sockets) == 1
