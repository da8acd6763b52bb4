"""The page in each state of trouble, in Chromium and Firefox, on a desk and on a phone: what it says, and whether it fits.

Pictures of all states are kept in PPLEX_ARTIFACTS, else in .cache/screenshots.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest
from firefox import FIREFOX, PULSEAUDIO, Firefox, loudspeaker
from folders import TINY
from relay import Relay
from serving import Running, Serve

import pplex.server

CHROMIUM = shutil.which("chromium")
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
    f" --use-file-for-fake-audio-capture={TINY / 'checkpoint/voices/synthetic.wav'}"
).split()
PAGE = Path(pplex.server.__file__).parent / "page"
ROOT = Path(__file__).parents[2]
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "small": (320, 568)}
FOR_PROGRAMMERS = ("WebSocket", "bytearray", "Bearer", "parameter", "orklet", "undefined", "null", "Error", "{", "<p>")


class Tab(Protocol):
    """What both browsers' tabs can do."""

    def goto(self, url: str) -> None: ...
    def before_each_page(self, script: str) -> None: ...
    def evaluate(self, expression: str) -> Any: ...
    def resize(self, width: int, height: int) -> None: ...
    def picture(self, path: Path) -> None: ...
    def close(self) -> None: ...


class ChromiumTab:
    """A tab of Chromium, as playwright drives it."""

    def __init__(self, browser: Any):
        self._page = browser.new_context().new_page()

    def goto(self, url: str) -> None:
        self._page.goto(url)

    def before_each_page(self, script: str) -> None:
        self._page.add_init_script(script)

    def evaluate(self, expression: str) -> Any:
        return self._page.evaluate(expression)

    def resize(self, width: int, height: int) -> None:
        self._page.set_viewport_size({"width": width, "height": height})

    def picture(self, path: Path) -> None:
        self._page.screenshot(path=path)

    def close(self) -> None:
        self._page.context.close()


class Visit:
    """A tab with the page in it, and what one looks for there."""

    def __init__(self, tab: Tab, browser: str, pictures: Path):
        self.tab, self.browser, self._pictures = tab, browser, pictures

    def load(self, url: str, before: str = "") -> None:
        """The page, once it can be used; `before` is a script that runs ahead of it."""
        if before:
            self.tab.before_each_page(before)
        self.tab.goto(url)
        self.wait_for("document.body.dataset.state === 'ready'")

    def press(self) -> None:
        """The one button."""
        self.tab.evaluate("document.querySelector('#talk').click()")

    def enter(self, field: str, text: str) -> None:
        self.tab.evaluate(f"void (document.querySelector('#{field}').value = {text!r})")

    def talk(self) -> None:
        """Press Talk, and wait for the conversation and its first words."""
        self.press()
        self.wait_for("document.body.dataset.state === 'talking'")
        self.wait_for("document.querySelector('#transcript').textContent.length > 0")

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.tab.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} is still not so; the page says {self.said()!r}"
            time.sleep(0.1)

    def said(self) -> str:
        """What the page says of its state: the status line, and the alert above it."""
        return self.tab.evaluate(
            "[...document.querySelectorAll('.problem, #problem, #status')]"
            ".filter((e) => e.getBoundingClientRect().height > 1).map((e) => e.textContent).join(' ')"
        )

    def look(self, name: str, words: str) -> None:
        """The page says `words`, in no programmer's language, and fits both screens; pictures of it are kept."""
        end = time.monotonic() + 20
        while words not in self.said():
            assert time.monotonic() < end, f"the page says {self.said()!r}, not {words!r}"
            time.sleep(0.1)
        for size, (width, height) in SIZES.items():
            self.tab.resize(width, height)
            self.tab.picture(self._pictures / f"{name}-{self.browser}-{size}.png")
            assert words in self.said()
            assert not [word for word in FOR_PROGRAMMERS if word in self.said()]
            assert self.tab.evaluate(MISFITS) == {"wide": [], "underBar": [], "button": True}, f"{name}, {size}"


# What is wider than the window, what the bar covers (of a conversation: at once; of the form: scrolled to its end), and
# whether the button can be pressed.
MISFITS = """(() => {
    const box = (element) => element.getBoundingClientRect();
    const name = (element) => element.id || element.tagName;
    const bar = document.querySelector("#bar");
    const shown = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && !element.closest(".unseen, option, #examples input") && box(element).height > 1);
    const overflows = (element) => element.scrollWidth > element.clientWidth + 1;
    const wide = shown.filter((element) => box(element).right > innerWidth + 1 || box(element).left < -1
        || (element.matches("#status, #problem") && overflows(element)));
    if (overflows(document.documentElement)) wide.push(document.documentElement);
    if (!document.body.classList.contains("calling")) scrollTo(0, 1e6);
    const underBar = shown.filter((element) => !bar.contains(element) && !element.contains(bar)
        && !element.parentElement.closest("#transcript") && box(element).bottom > box(bar).top + 1);
    const talk = document.querySelector("#talk");
    const { left, top, width, height } = box(talk);
    const button = document.elementFromPoint(left + width / 2, top + height / 2) === talk && top + height <= innerHeight;
    scrollTo(0, 0);
    return { wide: wide.map(name), underBar: underBar.map(name), button };
})()"""


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def new_tab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Tab]]:
    """Opens tabs of one browser, which all tests of this file share."""
    if request.param == "chromium":
        if CHROMIUM is None:
            pytest.skip("chromium is not installed: apt-get install chromium")
        playwright = pytest.importorskip(
            "playwright.sync_api", reason="playwright is not installed: pip install '.[test]'"
        )
        with playwright.sync_playwright() as started:
            chromium = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
            yield lambda: ChromiumTab(chromium)
            chromium.close()
        return
    if FIREFOX is None:
        pytest.skip("Firefox is not installed: apt-get install firefox-esr")
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("firefox")
        environment = stack.enter_context(loudspeaker(tmp_path_factory.mktemp("sound"))) if PULSEAUDIO else {}
        firefox = Firefox(folder, environment)
        stack.callback(firefox.close)
        yield firefox.tab


@pytest.fixture(scope="module")
def pictures() -> Path:
    folder = Path(os.environ.get("PPLEX_ARTIFACTS", ROOT / ".cache/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(new_tab: Callable[[], Tab], pictures: Path) -> Iterator[Visit]:
    tab = new_tab()
    yield Visit(tab, "chromium" if isinstance(tab, ChromiumTab) else "firefox", pictures)
    tab.close()


@pytest.fixture
def sound(visit: Visit) -> None:
    """What a conversation needs of the browser."""
    if visit.browser == "firefox" and PULSEAUDIO is None:
        pytest.skip("Firefox holds no conversation without a sound device: apt-get install pulseaudio")


@pytest.fixture(scope="module")
def one(serve: Serve) -> Iterator[Running]:
    """A server with one slot, a queue of one, and no wait for clients that are lost."""
    with serve("--slots", "1", "--queue", "1", "--resume-seconds", "0.01") as running:
        yield running


@pytest.fixture
def relay(one: Running) -> Iterator[Relay]:
    relay = Relay(one.port)
    yield relay
    relay.close()
    one.wait_for(lambda: one.state()["used"] == 0)


# Before a conversation


# What a browser lacks, as a script that takes it away, and what the page says.
UNFIT = {
    "not-secure": ("Object.defineProperty(window, 'isSecureContext', { value: false });", "https://"),
    "no-microphones": ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined });", "Firefox, Chrome"),
    "too-old": ("window.AudioWorkletNode = undefined;", "Update it"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_browser_that_cannot_hold_a_conversation(visit: Visit, one: Running, name: str) -> None:
    before, words = UNFIT[name]
    visit.load(one.url, before)
    visit.look(name, words)
    assert visit.tab.evaluate("document.querySelector('#talk').disabled")


REFUSED_MICROPHONES = {
    "NotAllowedError": "Allow it",
    "NotFoundError": "Connect one",
    "NotReadableError": "Close other programs",
    "AbortError": "Check that it is connected",
}


@pytest.mark.parametrize("error", REFUSED_MICROPHONES)
def test_a_microphone_that_cannot_be_had(visit: Visit, one: Running, error: str) -> None:
    refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }};"
    visit.load(one.url, refuse)
    visit.press()
    visit.look(f"microphone-{error}", REFUSED_MICROPHONES[error])


NEVER_STARTS = (
    "AudioContext.prototype.resume = async function () { await this.suspend(); await new Promise(() => {}); };"
)


def test_a_loudspeaker_that_does_not_start(visit: Visit, one: Running) -> None:
    """It takes no slot: the page finds out before it connects. Firefox without a sound device does so by itself."""
    visit.load(one.url, "" if visit.browser == "firefox" and not PULSEAUDIO else NEVER_STARTS)
    visit.press()
    visit.look("no-sound", "Connect headphones or a loudspeaker")
    assert one.state()["used"] == 0


# What stands where the server was


class StandIn:
    """Serves the page, and beside it what a proxy, another server, or one of another version might answer."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.origins: list[str | None] = []  # of requests that ask why there was no conversation
        answers, origins = self.answers, self.origins

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any):
                super().__init__(*args, directory=str(PAGE))

            def do_GET(self) -> None:
                answer = answers.get(self.path.split("?")[0])
                if answer is None:
                    return super().do_GET()
                self.give(*answer)

            def do_POST(self) -> None:
                origins.append(self.headers["Origin"])
                self.give(*answers[self.path.split("?")[0]])

            def give(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for header in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


JSON = {"Content-Type": "application/json"}
SCRIPT = {"Content-Type": "text/javascript"}
OURS = {"Content-Type": "text/plain; charset=utf-8", "Referrer-Policy": "no-referrer"}
INFO = b'{"voices": ["NATF0"], "sample_rate": 24000, "frame_size": 1920, "token_required": false}'


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    server.answers["/api/info"] = (200, JSON, INFO)
    yield server
    server.close()


# A path, what is answered there, and what the page says.
UNUSABLE = {
    "no-api": ("/api/info", (404, {}, b""), "A part of this page is missing on the server (404)"),
    "bad-gateway": ("/api/info", (502, {}, b"<html>"), "does not work right now (502)"),
    "no-json": ("/api/info", (200, {}, b"<html>"), "The server does not answer"),
    "no-module": ("/latency.js", (404, {}, b""), "This page is still loading"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_page_that_cannot_be_used(visit: Visit, stand_in: StandIn, name: str) -> None:
    path, answer, words = UNUSABLE[name]
    stand_in.answers[path] = answer
    visit.tab.goto(stand_in.url)
    visit.tab.evaluate(
        "document.getAnimations().forEach((animation) => animation.finish())"
    )  # what shows after seconds
    visit.look(name, words)
    assert "eload" in visit.said()
    assert visit.tab.evaluate("document.querySelector('#talk').disabled")


REFUSED = {
    "no-worklet": ("/capture.js", (404, {}, b""), "A part of this page is missing on the server (404)"),
    "failing-worklet": ("/playback.js", (503, {}, b""), "does not work right now (503)"),
    "other-version": ("/playback.js", (200, SCRIPT, b"import { gone } from './jitter.js';"), "Reload the page"),
    "parser": ("/api/chat", (400, {}, b"Got more than 8190 bytes when reading: bytearray(b'...')."), "Shorten it"),
    "proxy-414": ("/api/chat", (414, {}, b"<html><h1>Request-URI Too Large</h1>"), "Shorten it"),
    "proxy-502": ("/api/chat", (502, {}, b"<html><h1>Bad Gateway</h1>"), "Try again in a minute"),
    "no-chat": ("/api/chat", (404, {}, b"404: Not Found"), "Check the address"),
    "unknown-status": ("/api/chat", (418, {}, b"null"), "refused the connection (418)"),
    "busy": ("/api/chat", (503, OURS, b"The server is still loading. Try again later."), "still loading"),
    "origin": ("/api/chat", (403, OURS, b"Pages of 'http://x' may not use this server."), "Pages of 'http://x'"),
    "blocked": ("/api/chat", (204, {}, b""), "Try another network"),
    "no-spaces": ("/api/chat", (400, OURS, b"x" * 5000), "The server did not accept this: xxx"),
    "many-words": ("/api/chat", (400, OURS, b"The persona has too many words. " * 150), "too many words"),
    "script": ("/api/chat", (400, OURS, "日本語<img src=x onerror=alert(1)>".encode()), "Shorten it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_plain_and_fits(visit: Visit, sound: None, stand_in: StandIn, name: str) -> None:
    path, answer, words = REFUSED[name]
    visit.load(stand_in.url)
    stand_in.answers[path] = answer
    visit.press()
    visit.look(name, words)
    assert visit.tab.evaluate("document.querySelectorAll('#status *').length") == 0
    assert stand_in.origins == ([stand_in.url] if path == "/api/chat" else [])
    assert not visit.tab.evaluate("document.querySelector('#talk').disabled")


def test_a_persona_that_no_server_takes(visit: Visit, sound: None, one: Running) -> None:
    visit.load(one.url)
    visit.enter("persona", "あ" * 20000)
    visit.press()
    visit.wait_for("document.body.dataset.state === 'ended'")
    visit.look("persona", "ersona")


# During a conversation


def test_a_slow_network_is_shown_and_what_follows_it(visit: Visit, sound: None, one: Running, relay: Relay) -> None:
    """Nothing comes through for 2 s; then all does; then the network is gone, and the server did not wait."""
    visit.load(relay.url)
    visit.talk()
    visit.tab.evaluate(f"void (document.querySelector('#transcript p').textContent = {'much to say ' * 400!r})")
    visit.look("talking", "Talking")
    relay.hold()
    visit.look("slow", "The connection is slow")
    assert visit.tab.evaluate("document.body.dataset.state") == "talking"
    relay.go_on()
    visit.wait_for("document.body.dataset.trouble === ''")
    relay.cut()
    visit.look("over", "Press Talk to begin a new one")


def test_a_full_server(visit: Visit, sound: None, new_tab: Callable[[], Tab], one: Running, pictures: Path) -> None:
    others = [Visit(new_tab(), visit.browser, pictures) for _ in range(2)]
    others[0].load(one.url)
    others[0].talk()
    others[1].load(one.url)
    others[1].press()
    others[1].look("queued", "You are next")
    visit.load(one.url)
    visit.press()
    visit.look("full", "ry again")
    for other in others:
        other.tab.close()
    one.wait_for(lambda: one.state()["used"] == 0)


QUIET = (
    """navigator.mediaDevices.getUserMedia = async () => new AudioContext().createMediaStreamDestination().stream;"""
)
STOPPABLE = """
    const Context = window.AudioContext;
    window.contexts = [];
    window.AudioContext = class extends Context { constructor(options) { super(options); contexts.push(this); } };
"""
NO_OUTPUT = "navigator.mediaDevices.enumerateDevices = async () => [];"


def test_a_microphone_that_gives_nothing(visit: Visit, sound: None, one: Running) -> None:
    visit.load(one.url, QUIET)
    visit.press()
    visit.look("silent", "not muted")


def test_sound_that_stops(visit: Visit, sound: None, one: Running) -> None:
    """The page says so, and a tap makes it go on."""
    visit.load(one.url, STOPPABLE)
    visit.talk()
    visit.tab.evaluate("Promise.all(contexts.map((context) => context.suspend()))")
    visit.look("stopped", "The sound has stopped")
    visit.tab.evaluate("document.dispatchEvent(new PointerEvent('pointerdown', { bubbles: true }))")
    visit.wait_for("document.body.dataset.trouble === ''")


def test_a_computer_without_a_loudspeaker(visit: Visit, sound: None, one: Running) -> None:
    if visit.browser == "firefox":
        pytest.skip("Firefox does not list loudspeakers; it does not start without one")
    visit.load(one.url, NO_OUTPUT)
    visit.talk()
    visit.look("deaf", "No loudspeaker was found")


def test_a_server_that_restarts(visit: Visit, sound: None, serve: Serve) -> None:
    """It goes, comes back and asks for a token, and goes again: the page says what to do each time."""
    with contextlib.ExitStack() as stack:
        with serve("--slots", "1") as first:
            relay = Relay(first.port)
            stack.callback(relay.close)
            visit.load(relay.url)
            visit.talk()
            relay.hold()
        relay.cut()
        relay.go_on()
        visit.look("lost", "Trying to reconnect")
        with serve("--slots", "1", "--port", str(first.port), "--token", "secret") as second:
            visit.look("token", "Enter it in the field")
            assert visit.tab.evaluate("document.activeElement.id") == "token"
            visit.enter("token", "wrong")
            visit.press()
            visit.look("token-wrong", "Enter it in the field")
            visit.enter("token", "secret")
            visit.talk()
        visit.look("shutdown", "shutting down")
        visit.press()
        visit.look("gone", "the server is down")
        assert second.process.returncode == 0
