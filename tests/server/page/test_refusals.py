"""The page's words before a conversation: an unfit browser, no microphone, a refusing server or proxy."""

import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from firefox import PULSEAUDIO
from our_page import PAGE
from serving import Running
from visits import Visit

# A script that removes a feature of the browser, and the words of the page.
UNFIT = {
    "not-secure": ("Object.defineProperty(window, 'isSecureContext', { value: false });", "https://"),
    "no-microphones": ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined });", "Firefox, Chrome"),
    "too-old": ("window.AudioWorkletNode = undefined;", "Update it"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_browser_says_what_to_do(visit: Visit, one: Running, name: str) -> None:
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
def test_a_refused_microphone_says_what_to_do(visit: Visit, one: Running, error: str) -> None:
    refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }};"
    visit.load(one.url, refuse)
    visit.press()
    visit.look(f"microphone-{error}", REFUSED_MICROPHONES[error])


NEVER_STARTS = (
    "AudioContext.prototype.resume = async function () { await this.suspend(); await new Promise(() => {}); };"
)


def test_a_loudspeaker_that_does_not_start_takes_no_slot(visit: Visit, one: Running) -> None:
    """The page notices before it connects. Firefox without a sound device behaves like this by itself."""
    visit.load(one.url, "" if visit.browser == "firefox" and not PULSEAUDIO else NEVER_STARTS)
    visit.press()
    visit.look("no-sound", "Connect headphones or a loudspeaker")
    assert one.state()["used"] == 0


class StandIn:
    """Serves the page, with answers of a proxy, of another server, or of another version."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.origins: list[str | None] = []  # of requests that ask for the reason of a refusal
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
INFO_JSON = b'{"voices": ["NATF0"], "sample_rate": 24000, "frame_size": 1920, "token_required": false}'


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    server.answers["/api/info"] = (200, JSON, INFO_JSON)
    yield server
    server.close()


# A path, its answer, and the words of the page.
UNUSABLE = {
    "no-api": ("/api/info", (404, {}, b""), "A part of this page is missing on the server (404)"),
    "bad-gateway": ("/api/info", (502, {}, b"<html>"), "does not work right now (502)"),
    "no-json": ("/api/info", (200, {}, b"<html>"), "The server does not answer"),
    "no-module": ("/latency.js", (404, {}, b""), "This page is still loading"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_page_says_to_reload(visit: Visit, stand_in: StandIn, name: str) -> None:
    path, answer, words = UNUSABLE[name]
    stand_in.answers[path] = answer
    visit.tab.goto(stand_in.url)
    visit.tab.evaluate(
        "document.getAnimations().forEach((animation) => animation.finish())"
    )  # the text that appears after some seconds
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
def test_a_refusal_is_in_plain_words_and_fits(visit: Visit, sound: None, stand_in: StandIn, name: str) -> None:
    path, answer, words = REFUSED[name]
    visit.load(stand_in.url)
    stand_in.answers[path] = answer
    visit.press()
    visit.look(name, words)
    assert visit.tab.evaluate("document.querySelectorAll('#status *').length") == 0
    assert stand_in.origins == ([stand_in.url] if path == "/api/chat" else [])
    assert not visit.tab.evaluate("document.querySelector('#talk').disabled")


def test_a_persona_that_is_too_long_is_refused(visit: Visit, sound: None, one: Running) -> None:
    visit.load(one.url)
    visit.enter("persona", "あ" * 20000)
    visit.press()
    visit.wait_for("document.body.dataset.state === 'ended'")
    visit.look("persona", "ersona")
