"""Our page in a tab of Chromium: actions and checks for tests, through playwright."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pplex.server

PAGE = Path(pplex.server.__file__).parent / "page"

SECOND = 1000  # playwright counts in ms
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

Browser = Any
Tab = Any


def serve_folder(tab: Tab, origin: str, info: dict[str, Any] | None = None) -> None:
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


INFO = {
    "voices": ["NATF0", "VARM2", "mine"],
    "sample_rate": 24000,
    "frame_size": 1920,
    "takes_prompt": True,
    "token_required": True,
}


def expect(locator: Any) -> Any:
    """An assertion of playwright about an element; it waits until it holds."""
    from playwright.sync_api import expect

    return expect(locator)


def talk(tab: Tab, url: str) -> None:
    tab.goto(url)
    tab.get_by_role("button", name="Talk").click()
    expect_state(tab, "talking")


def expect_state(tab: Tab, state: str) -> None:
    expect(tab.locator("body")).to_have_attribute("data-state", state, timeout=20 * SECOND)


def received(tab: Tab) -> list[list[bytes]]:
    """The messages of each of the tab's WebSockets; the list grows as they arrive."""
    sockets: list[list[bytes]] = []

    def listen(ws: Any) -> None:
        messages: list[bytes] = []
        sockets.append(messages)
        ws.on("framereceived", lambda message: messages.append(message))

    tab.on("websocket", listen)
    return sockets


def wait_for(tab: Tab, holds: Callable[[], bool], seconds: float = 20) -> None:
    for _ in range(int(seconds * 20)):
        if holds():
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"still not so after {seconds} s")


def frame_count(messages: list[bytes]) -> int:
    return sum(message[0] == 1 for message in messages)


def level(tab: Tab, meter: str) -> int:
    return int(tab.get_by_role("meter", name=meter).get_attribute("aria-valuenow"))


def forget_failed_requests(tab: Tab) -> None:
    """Ignore the browser's complaints about refused requests, which the test expects."""
    tab.complaints[:] = [
        line for line in tab.complaints if "WebSocket connection" not in line and "a status of" not in line
    ]
