"""Browsers, tabs and servers that the tests of our page share."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium_tab import chromium
from firefox import FIREFOX, PULSEAUDIO, Firefox, loudspeaker
from folders import TINY
from our_page import SECOND, Browser, Tab, serve_folder
from serving import Running, Serve
from visits import BrowserTab, ChromiumTab, Visit

MICROPHONE = TINY / "checkpoint/voices/synthetic.wav"
SWITCHES = (  # nothing that a browser does in the background
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(MICROPHONE, *SWITCHES) as browser:
        yield browser


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs that collect errors and warnings in `complaints`; the list must be empty at the end."""
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
    """Runs the body of a function that can use the page's modules without browser APIs; returns its result."""
    tab = open_tab()
    serve_folder(tab, "http://page.test")
    tab.goto("http://page.test/blank")
    modules = "".join(
        f"const {{ {names} }} = await import('/{file}');"
        for file, names in {
            "protocol.js": "packAudio, packOrder, unpack, openingQuery, resumingQuery, isLoss",
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


@pytest.fixture(scope="session")
def two(serve: Serve) -> Iterator[Running]:
    """A server with 2 slots and no queue."""
    with serve("--slots", "2", "--queue", "0") as running:
        yield running


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def new_tab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], BrowserTab]]:
    """Opens tabs of one browser, which all tests of a file share."""
    if request.param == "chromium":
        with chromium(MICROPHONE, *SWITCHES) as browser:
            yield lambda: ChromiumTab(browser)
        return
    if FIREFOX is None:
        pytest.skip("Firefox is not installed: apt-get install firefox-esr")
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("firefox")
        environment = stack.enter_context(loudspeaker(tmp_path_factory.mktemp("sound"))) if PULSEAUDIO else {}
        firefox = Firefox(folder, environment)
        stack.callback(firefox.close)
        yield firefox.tab


@pytest.fixture(scope="session")
def pictures() -> Path:
    folder = Path(os.environ.get("PPLEX_ARTIFACTS", Path(__file__).parents[3] / ".cache/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(new_tab: Callable[[], BrowserTab], pictures: Path) -> Iterator[Visit]:
    tab = new_tab()
    yield Visit(tab, "chromium" if isinstance(tab, ChromiumTab) else "firefox", pictures)
    tab.close()


@pytest.fixture
def sound(visit: Visit) -> None:
    """Skips the test if the browser cannot hold a conversation."""
    if visit.browser == "firefox" and PULSEAUDIO is None:
        pytest.skip("Firefox holds no conversation without a sound device: apt-get install pulseaudio")


@pytest.fixture(scope="session")
def one(serve: Serve) -> Iterator[Running]:
    """A server with one slot and a queue of one; it does not wait for lost clients."""
    with serve("--slots", "1", "--queue", "1", "--resume-seconds", "0.01") as running:
        yield running
