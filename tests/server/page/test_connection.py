"""The page when its connection is refused, waits, breaks or ends."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from our_page import (
    INFO,
    Tab,
    expect,
    expect_state,
    forget_failed_requests,
    frame_count,
    level,
    received,
    talk,
    wait_for,
)
from relay import Relay
from serving import Running, Serve


def test_a_refusal_before_the_upgrade_shows_the_reason_of_the_server(
    open_tab: Callable[..., Tab], two: Running
) -> None:
    tab = open_tab()
    tab.goto(two.url)
    tab.get_by_label("Describe the agent: who it is and what it knows").fill("<system>")
    tab.get_by_text("Advanced").click()
    tab.get_by_label("Seed").fill("99999999999999999999")
    tab.get_by_role("button", name="Talk").click()
    expect_state(tab, "ended")
    expect(tab.get_by_role("status")).to_contain_text("not accept this: seed is 99999999999999999999, but must be")
    forget_failed_requests(tab)


def test_a_full_server_says_so(open_tab: Callable[..., Tab], two: Running) -> None:
    tabs = [open_tab() for _ in range(3)]
    for tab in tabs[:2]:
        talk(tab, two.url)
    tabs[2].goto(two.url)
    tabs[2].get_by_role("button", name="Talk").click()
    expect(tabs[2].get_by_role("status")).to_contain_text("the queue is full")
    forget_failed_requests(tabs[2])
    for tab in tabs[:2]:
        tab.get_by_role("button", name="Stop").click()
    two.wait_for(lambda: two.state()["used"] == 0)


def test_place_in_the_queue_and_a_later_refusal_are_shown(open_tab: Callable[..., Tab], two: Running) -> None:
    """The page sends the token of its address, shows the place in the queue, and then the reason of the refusal."""
    tab, sockets = open_tab(), []
    tab.route("**/api/info", lambda route: route.fulfill(json=INFO))
    tab.route_web_socket("**/api/chat**", lambda ws: (sockets.append(ws), ws.send(b'\4{"type":"queued","position":2}')))
    tab.goto(f"{two.url}/?token=secret")
    expect(tab.get_by_label("Access token")).to_have_value("secret")
    groups = tab.locator("#voice optgroup").evaluate_all("all => all.map((group) => group.label)")
    assert groups == ["Natural, female", "Varied, male", "Others"]
    tab.get_by_role("button", name="Talk").click()
    expect(tab.get_by_role("status")).to_contain_text("number 2")
    assert {"audio=s16", "voice_prompt=NATF0", "token=secret"} <= set(sockets[0].url.partition("?")[2].split("&"))
    sockets[0].close(code=1013)
    expect(tab.get_by_role("status")).to_contain_text("Try again in a few minutes")
    assert len(sockets) == 1


def test_a_page_that_read_too_slowly_reconnects(open_tab: Callable[..., Tab], two: Running) -> None:
    """The server closes with its own code, and waits for the client to return."""
    tab, sockets = open_tab(), []
    session = {"type": "session", "resume": "k", "resume_seconds": 30, "voice": None, "seed": 1}

    def answer(ws: Any) -> None:
        ws.send(b"\4" + json.dumps({**session, "resumed": bool(sockets)}).encode())
        ws.send(b"\0")
        sockets.append(ws)

    tab.route_web_socket("**/api/chat**", answer)
    talk(tab, two.url)
    sockets[0].close(code=4002)
    wait_for(tab, lambda: len(sockets) == 2)
    expect_state(tab, "talking")
    assert sockets[1].url.endswith("?audio=s16&resume=k")
    sockets[1].send(b"\5You were idle.")
    sockets[1].close(code=1008)
    expect(tab.get_by_role("status")).to_have_text("You were idle. Press Talk to begin a new one.")
    assert len(sockets) == 2


@pytest.fixture
def relay(two: Running) -> Iterator[Relay]:
    relay = Relay(two.port)
    yield relay
    relay.close()


def test_a_conversation_continues_after_its_connection_is_cut(
    open_tab: Callable[..., Tab], two: Running, relay: Relay
) -> None:
    tab = open_tab()
    sockets = received(tab)
    talk(tab, relay.url)
    wait_for(tab, lambda: frame_count(sockets[0]) >= 10)
    facts = tab.locator("#facts").inner_text()
    relay.cut()
    wait_for(tab, lambda: len(sockets) == 2 and frame_count(sockets[1]) >= 10)
    expect_state(tab, "talking")
    session = next(json.loads(message[1:]) for message in sockets[1] if message[0] == 4)
    assert session["type"] == "session" and session["resumed"] is True
    assert two.state()["used"] == 1
    wait_for(tab, lambda: level(tab, "Agent") > 20)
    assert tab.locator("#facts").inner_text() == facts
    tab.get_by_role("button", name="Stop").click()
    two.wait_for(lambda: two.state()["used"] == 0)


def test_an_ended_conversation_is_not_resumed(open_tab: Callable[..., Tab], serve: Serve) -> None:
    """The server did not wait: the page says so and does not try a third connection."""
    tab = open_tab()
    sockets = received(tab)
    with serve("--slots", "1", "--resume-seconds", "0.01") as server, contextlib.closing(Relay(server.port)) as relay:
        talk(tab, relay.url)
        relay.cut()
        expect_state(tab, "ended")
        expect(tab.get_by_role("status")).to_contain_text("Press Talk to begin a new one")
        assert len(sockets) == 2
    forget_failed_requests(tab)
