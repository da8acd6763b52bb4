"""The page in a real browser, Debian's Chromium with a recording for a microphone, against the real server."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import TINY
from relay import Relay
from serving import Running

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

Serve = Callable[..., Any]  # what the fixture `serve` gives
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
            "protocol.js": "packAudio, unpack, openingQuery, resumingQuery, isLoss",
            "words.js": "endingOf, refusalOf, microphoneProblem, STATES, TROUBLES",
            "trouble.js": "Trouble",
            "resampler.js": "Resampler",
            "jitter.js": "JitterBuffer",
            "latency.js": "ReplyTimer",
        }.items()
    )
    sine = "Math.sin(2 * Math.PI * hz * i / rate)"
    tone = f"const tone = (hz, rate, count) => Float32Array.from({{ length: count }}, (_, i) => {sine});"
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


@pytest.mark.parametrize(
    "from_hz, to_hz", [(48000, 24000), (44100, 24000), (16000, 24000), (24000, 44100), (24000, 48000)]
)
def test_the_resampler_keeps_what_fits_and_rejects_the_rest(
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


def test_the_jitter_buffer_holds_a_little_back_and_then_plays_on(logic: Callable[[str], Any]) -> None:
    heard = logic(HEAR + "return hear(steady(50), 4000);")
    assert 10 <= heard["startMs"] <= 40  # 80 ms came at once, 100 are the target
    assert heard["underruns"] == 0
    assert heard["step"] < 1.05 * TONE_STEP
    assert heard["heldMs"] < 40


def test_the_jitter_buffer_fades_out_at_an_underrun_and_holds_more_back_after_it(logic: Callable[[str], Any]) -> None:
    heard = logic(HEAR + "return hear([...steady(20), ...steady(20, 1760)], 3300);")
    assert heard["underruns"] == 1
    assert 110 <= heard["targetMs"] <= 130
    assert heard["step"] < 3 * TONE_STEP  # faded over 5 ms; a click would step by up to 0.5


def test_the_jitter_buffer_rides_out_what_it_has_grown_for(logic: Callable[[str], Any]) -> None:
    """Every fifth frame is 60 ms late: some underruns teach the buffer, and then there are none."""
    late = "const late = (n) => steady(n).map((ms, i) => ms + (i % 5 === 4 ? 60 : 0));"
    first, whole = logic(HEAR + late + "return [hear(late(50), 4000), hear(late(125), 10000)];")
    assert 1 <= first["underruns"] == whole["underruns"] <= 3
    assert whole["step"] < 3 * TONE_STEP


@pytest.mark.parametrize("amplitude, within_s", [(0.5, 8), (0.001, 5)])
def test_the_jitter_buffer_gives_up_what_it_holds_for_nothing(
    logic: Callable[[str], Any], amplitude: float, within_s: int
) -> None:
    """After a burst of 240 ms: at once where the agent is silent, little by little, cross-faded, where it is not."""
    heard = logic(HEAR + f"return hear([0, 0, 0, ...steady({within_s} * 13)], {within_s} * 1000, {amplitude});")
    assert heard["underruns"] == 0
    assert heard["heldMs"] < 50
    assert heard["step"] < 3 * TONE_STEP * amplitude / 0.5


# Networks that are bad for 20 s and then clean: the delay in ms of a frame that is sent at `ms`.
SPELLS = {
    "stalls": "ms + Math.max(0, 500 - (ms % 2900))",
    "uneven": "ms - 80 * Math.log(1 - ((ms * 0.6180339887) % 1))",
    "bursts": "ms + 240 - (ms % 320)",
}
# What the agent says meanwhile: a tone and noise never pause, a voice does; `n` samples of each.
WAVES = {
    "tone": "tone(300, 24000, n)",
    "noise": "Float32Array.from({ length: n }, () => Math.random() - 0.5)",
    "voice": "tone(140, 24000, n).map((x, i) => (x + 0.5 * Math.sin(i * 0.11)) * (i % 60000 < 54000 ? 0.5 : 0.001))",
    "silence": "new Float32Array(n)",
}


@pytest.mark.parametrize("wave", WAVES)
def test_the_jitter_buffer_is_small_again_ten_seconds_after_a_bad_spell(logic: Callable[[str], Any], wave: str) -> None:
    """It grew by underruns; whatever is said, what it holds goes within 10 s, without a click and without new gaps."""
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


def test_the_jitter_buffer_gives_up_the_past_after_a_stall(logic: Callable[[str], Any]) -> None:
    """Two seconds that come at once are not played two seconds late."""
    heard = logic(HEAR + "return hear([...steady(10), ...Array(25).fill(2800), ...steady(50, 2880)], 5000);")
    assert heard["underruns"] == 1
    assert heard["heldMs"] < 200
    assert heard["step"] < 3 * TONE_STEP


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
        "audio=s16&early_metadata=1&text_prompt=Be+kind+%26+brief."
    )
    assert logic("return resumingQuery('k', 't')") == "audio=s16&resume=k&token=t"


def test_only_a_lost_connection_is_taken_up_again(logic: Callable[[str], Any]) -> None:
    codes = [1000, 1001, 1003, 1006, 1007, 1008, 1009, 1011, 1013, 4001, 4002]
    assert logic(f"return {codes}.filter(isLoss)") == [1006, 4002]
    assert all(
        "code" not in reason for reason in logic(f"return {codes}.filter((c) => !isLoss(c)).map((c) => endingOf(c))")
    )


def test_what_each_ending_says_is_what_to_do(logic: Callable[[str], Any]) -> None:
    """The server's own words stand where they are for readers; a code that we do not know is named."""
    idle, fault, unknown, resumed, refused = logic("""return [
        endingOf(1008, "No audio for 60 s."), endingOf(1011, "IndexError: 7"), endingOf(4999, "?"),
        refusalOf(404, "There is no key.", true), refusalOf(400, "seed is x.\\n" + "y ".repeat(900), false)]""")
    assert idle == "No audio for 60 s. Press Talk to begin a new one."
    assert "IndexError" not in fault and "Press Talk" in fault
    assert "4999" in unknown and "Press Talk" in unknown
    assert "restarted" in resumed and "key" not in resumed
    assert refused.startswith("The server did not accept this: seed is x.") and len(refused) < 340


def test_trouble_is_named_while_it_lasts(logic: Callable[[str], Any]) -> None:
    """Late answers and gaps are a slow connection; no audio asked for is worse, and zeros only from the microphone less."""
    assert logic("""
        const seen = [];
        const trouble = new Trouble(0);
        const voice = new Float32Array(960).fill(0.1), zeros = new Float32Array(960);
        for (let ms = 0; ms < 40000; ms += 500) {
            if (ms < 30000) trouble.played(ms < 9000 ? 0 : 3, ms);
            trouble.heard(ms > 16000 && ms < 25000 ? zeros : voice, ms);
            const word = trouble.look(ms > 2000 && ms < 4000 ? ms - 2000 : 0, ms);
            if (word !== seen.at(-1)?.[1]) seen.push([ms, word]);
        }
        return seen;
    """) == [
        [0, None],
        [3500, "slow"],
        [6000, None],
        [9000, "slow"],
        [16000, None],
        [21500, "silent"],
        [25000, None],
        [32000, "stopped"],
    ]


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
        *(
            ("on-accent", "accent", 4.5),
            ("on-stop", "stop", 4.5),
            ("wrong", "wrong-tint", 4.5),
            ("text", "accent-tint", 4.5),
        ),
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


@pytest.mark.parametrize("error, words", [("NotAllowedError", "not allowed"), ("NotFoundError", "No microphone")])
def test_a_microphone_that_cannot_be_had_is_explained(open_tab: Callable[..., Tab], error: str, words: str) -> None:
    tab = open_tab()
    refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }};"
    tab.add_init_script(refuse)
    _serve_folder(tab, "http://localhost:9", {**INFO, "token_required": False})
    tab.goto("http://localhost:9/")
    tab.get_by_role("button", name="Talk").click()
    playwright.expect(tab.get_by_role("status")).to_contain_text(words)
    playwright.expect(tab.get_by_role("button", name="Talk")).to_be_enabled()


# The page and the server


@pytest.fixture(scope="module")
def two(serve: Serve) -> Iterator[Running]:
    """A server with 2 slots and no queue."""
    with serve("--slots", "2", "--queue", "0") as running:
        yield running


def _talk(tab: Tab, url: str) -> None:
    tab.goto(url)
    tab.get_by_role("button", name="Talk").click()
    _expect_state(tab, "talking")


def _expect_state(tab: Tab, state: str) -> None:
    playwright.expect(tab.locator("body")).to_have_attribute("data-state", state, timeout=20 * SECOND)


def _received(tab: Tab) -> list[list[bytes]]:
    """The messages of each of the tab's sockets, as they come."""
    sockets: list[list[bytes]] = []

    def listen(ws: Any) -> None:
        messages: list[bytes] = []
        sockets.append(messages)
        ws.on("framereceived", lambda message: messages.append(message))

    tab.on("websocket", listen)
    return sockets


def _wait_for(tab: Tab, holds: Callable[[], bool], seconds: float = 20) -> None:
    for _ in range(int(seconds * 20)):
        if holds():
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"still not so after {seconds} s")


def _frames(messages: list[bytes]) -> int:
    return sum(message[0] == 1 for message in messages)


def _level(tab: Tab, meter: str) -> int:
    return int(tab.get_by_role("meter", name=meter).get_attribute("aria-valuenow"))


def test_a_conversation_is_heard_and_read_and_its_slot_freed(open_tab: Callable[..., Tab], two: Running) -> None:
    tab = open_tab()
    sockets = _received(tab)
    _talk(tab, two.url)
    assert two.state()["used"] == 1
    _wait_for(tab, lambda: _level(tab, "Agent") > 20)  # above -48 dB, in the loudspeaker's worklet
    _wait_for(tab, lambda: _level(tab, "You") > 20)
    _wait_for(tab, lambda: _frames(sockets[0]) >= 25)
    assert {len(message) for message in sockets[0] if message[0] == 1} == {1 + 2 * 1920}
    _wait_for(tab, lambda: len(tab.locator("#transcript").inner_text()) > 20)
    playwright.expect(tab.locator("#reply")).to_have_text(re.compile(r"^\d+ ms$"))
    playwright.expect(tab.locator("#buffer")).to_have_text(re.compile(r"^\d+ ms$"))
    tab.get_by_role("button", name="Stop").click()
    _expect_state(tab, "ended")
    two.wait_for(lambda: two.state()["used"] == 0)
    playwright.expect(tab.get_by_role("button", name="Talk")).to_be_enabled()
    assert len(sockets) == 1


@pytest.mark.parametrize("rate_hz", [44100, 48000])
def test_a_browser_that_gives_its_microphone_at_its_own_rate_only(
    open_tab: Callable[..., Tab], two: Running, rate_hz: int
) -> None:
    """As Firefox does: a microphone cannot enter a context of another rate."""
    tab = open_tab()
    tab.add_init_script(f"""
        const Context = window.AudioContext;
        window.rates = [];
        window.AudioContext = class extends Context {{
            constructor(options) {{
                super({{ sampleRate: {rate_hz}, ...options }});
                rates.push(this.sampleRate);
            }}
            createMediaStreamSource(stream) {{
                if (this.sampleRate !== {rate_hz}) throw new DOMException("", "NotSupportedError");
                return super.createMediaStreamSource(stream);
            }}
        }};
    """)
    sockets = _received(tab)
    _talk(tab, two.url)
    assert tab.evaluate("rates") == [24000, rate_hz]
    _wait_for(tab, lambda: _frames(sockets[0]) >= 10 and _level(tab, "Agent") > 20)


def test_everything_can_be_done_with_the_keyboard(open_tab: Callable[..., Tab], two: Running) -> None:
    tab = open_tab()
    sent: list[str] = []
    tab.on("websocket", lambda ws: sent.append(ws.url))
    tab.goto(two.url)
    _expect_state(tab, "ready")

    def to(locator: Any) -> None:
        for _ in range(12):
            tab.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{locator} is not reached with Tab")

    to(tab.get_by_label("Voice"))
    tab.keyboard.type("NATM1")
    to(tab.get_by_role("radio", name="Assistant"))
    tab.keyboard.press("ArrowRight")
    assert "Maya" in tab.locator("#persona").input_value()
    to(tab.locator("#persona"))
    tab.keyboard.press("Control+A")
    tab.keyboard.type("You are brief.")
    assert tab.get_by_role("radio", checked=True).count() == 0
    to(tab.locator("summary"))
    tab.keyboard.press("Enter")
    to(tab.get_by_label("Seed"))
    tab.keyboard.type("7")
    to(tab.get_by_role("button", name="Talk"))
    assert tab.locator("#talk").evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    _expect_state(tab, "talking")
    playwright.expect(tab.locator("#facts")).to_have_text("Voice NATM1, seed 7")
    assert "text_prompt=You+are+brief." in sent[0]
    tab.keyboard.press("Space")
    _expect_state(tab, "ended")


def test_a_refusal_before_the_upgrade_is_shown_in_the_servers_words(open_tab: Callable[..., Tab], two: Running) -> None:
    tab = open_tab()
    tab.goto(two.url)
    tab.get_by_label("Describe the agent: who it is and what it knows").fill("<system>")
    tab.get_by_text("Advanced").click()
    tab.get_by_label("Seed").fill("99999999999999999999")
    tab.get_by_role("button", name="Talk").click()
    _expect_state(tab, "ended")
    playwright.expect(tab.get_by_role("status")).to_contain_text(
        "not accept this: seed is 99999999999999999999, but must be"
    )
    _forget_failed_requests(tab)


def test_a_server_without_a_place_says_so(open_tab: Callable[..., Tab], two: Running) -> None:
    tabs = [open_tab() for _ in range(3)]
    for tab in tabs[:2]:
        _talk(tab, two.url)
    tabs[2].goto(two.url)
    tabs[2].get_by_role("button", name="Talk").click()
    playwright.expect(tabs[2].get_by_role("status")).to_contain_text("the queue is full")
    _forget_failed_requests(tabs[2])
    for tab in tabs[:2]:
        tab.get_by_role("button", name="Stop").click()
    two.wait_for(lambda: two.state()["used"] == 0)


def _forget_failed_requests(tab: Tab) -> None:
    """The browser complains of a refused request; that is how it was meant."""
    tab.complaints[:] = [
        line for line in tab.complaints if "WebSocket connection" not in line and "a status of" not in line
    ]


def test_waiting_and_a_refusal_after_the_upgrade_are_shown(open_tab: Callable[..., Tab], two: Running) -> None:
    """The token of the page's own address is sent; a place in the queue is told, and why there was none in the end."""
    tab, sockets = open_tab(), []
    tab.route("**/api/info", lambda route: route.fulfill(json=INFO))
    tab.route_web_socket("**/api/chat**", lambda ws: (sockets.append(ws), ws.send(b'\4{"type":"queued","position":2}')))
    tab.goto(f"{two.url}/?token=secret")
    playwright.expect(tab.get_by_label("Access token")).to_have_value("secret")
    groups = tab.locator("#voice optgroup").evaluate_all("all => all.map((group) => group.label)")
    assert groups == ["Natural, female", "Varied, male", "Others"]
    tab.get_by_role("button", name="Talk").click()
    playwright.expect(tab.get_by_role("status")).to_contain_text("number 2")
    assert {"audio=s16", "voice_prompt=NATF0", "token=secret"} <= set(sockets[0].url.partition("?")[2].split("&"))
    sockets[0].close(code=1013)
    playwright.expect(tab.get_by_role("status")).to_contain_text("Try again in a few minutes")
    assert len(sockets) == 1


def test_a_client_that_did_not_read_goes_on(open_tab: Callable[..., Tab], two: Running) -> None:
    """The server says so with a code of its own, and waits for the client to return."""
    tab, sockets = open_tab(), []
    session = {"type": "session", "resume": "k", "resume_seconds": 30, "voice": None, "seed": 1}

    def answer(ws: Any) -> None:
        ws.send(b"\4" + json.dumps({**session, "resumed": bool(sockets)}).encode())
        ws.send(b"\0")
        sockets.append(ws)

    tab.route_web_socket("**/api/chat**", answer)
    _talk(tab, two.url)
    sockets[0].close(code=4002)
    _wait_for(tab, lambda: len(sockets) == 2)
    _expect_state(tab, "talking")
    assert sockets[1].url.endswith("?audio=s16&resume=k")
    sockets[1].send(b"\5You were idle.")
    sockets[1].close(code=1008)
    playwright.expect(tab.get_by_role("status")).to_have_text("You were idle. Press Talk to begin a new one.")
    assert len(sockets) == 2


@pytest.fixture
def relay(two: Running) -> Iterator[Relay]:
    relay = Relay(two.port)
    yield relay
    relay.close()


def test_a_conversation_whose_connection_is_cut_goes_on(
    open_tab: Callable[..., Tab], two: Running, relay: Relay
) -> None:
    tab = open_tab()
    sockets = _received(tab)
    _talk(tab, relay.url)
    _wait_for(tab, lambda: _frames(sockets[0]) >= 10)
    facts = tab.locator("#facts").inner_text()
    relay.cut()
    _wait_for(tab, lambda: len(sockets) == 2 and _frames(sockets[1]) >= 10)
    _expect_state(tab, "talking")
    session = next(json.loads(message[1:]) for message in sockets[1] if message[0] == 4)
    assert session["type"] == "session" and session["resumed"] is True
    assert two.state()["used"] == 1
    _wait_for(tab, lambda: _level(tab, "Agent") > 20)
    assert tab.locator("#facts").inner_text() == facts
    tab.get_by_role("button", name="Stop").click()
    two.wait_for(lambda: two.state()["used"] == 0)


def test_a_conversation_that_is_over_is_not_taken_up_again(open_tab: Callable[..., Tab], serve: Serve) -> None:
    """The server did not wait: the page says so, and tries no third connection."""
    tab = open_tab()
    sockets = _received(tab)
    with serve("--slots", "1", "--resume-seconds", "0.01") as server, contextlib.closing(Relay(server.port)) as relay:
        _talk(tab, relay.url)
        relay.cut()
        _expect_state(tab, "ended")
        playwright.expect(tab.get_by_role("status")).to_contain_text("Press Talk to begin a new one")
        assert len(sockets) == 2
    _forget_failed_requests(tab)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where pictures are kept: PPLEX_ARTIFACTS, or with the test."""
    folder = Path(os.environ.get("PPLEX_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_page_is_pictured_and_fits(
    open_tab: Callable[..., Tab], two: Running, artifacts: Path, size: str, scheme: str
) -> None:
    tab = open_tab(color_scheme=scheme, viewport=DESKTOP if size == "desktop" else PHONE)
    tab.goto(two.url)
    _expect_state(tab, "ready")
    tab.screenshot(path=artifacts / f"page-{size}-{scheme}.png")
    _assert_fits(tab)
    tab.get_by_role("button", name="Talk").click()
    _expect_state(tab, "talking")
    _wait_for(tab, lambda: len(tab.locator("#transcript").inner_text()) > 60)
    tab.screenshot(path=artifacts / f"talking-{size}-{scheme}.png")
    _assert_fits(tab)
    tab.set_viewport_size({"width": 320, "height": 500})
    _assert_fits(tab)


def _assert_fits(tab: Tab) -> None:
    """Nothing scrolls sideways, and the button is in sight."""
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = tab.locator("#talk").bounding_box()
    assert box["height"] >= 44
    assert box["y"] + box["height"] <= tab.viewport_size["height"]
