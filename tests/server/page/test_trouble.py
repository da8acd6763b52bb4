"""The page's words during trouble in a conversation, in Chromium and Firefox, on a desktop and a phone."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from relay import Relay
from serving import Running, Serve
from visits import BrowserTab, Visit


@pytest.fixture
def relay(one: Running) -> Iterator[Relay]:
    relay = Relay(one.port)
    yield relay
    relay.close()
    one.wait_for(lambda: one.state()["used"] == 0)


def test_a_slow_network_its_recovery_and_its_loss_are_shown(
    visit: Visit, sound: None, one: Running, relay: Relay
) -> None:
    """The network stalls for 2 s, recovers, and then breaks; the server does not wait."""
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


def test_a_full_server_says_so_and_a_waiting_client_sees_its_place(
    visit: Visit, sound: None, new_tab: Callable[[], BrowserTab], one: Running, pictures: Path
) -> None:
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


def test_a_silent_microphone_is_shown(visit: Visit, sound: None, one: Running) -> None:
    visit.load(one.url, QUIET)
    visit.press()
    visit.look("silent", "not muted")


def test_stopped_sound_is_shown_and_a_tap_restarts_it(visit: Visit, sound: None, one: Running) -> None:
    """The page says so, and a tap restarts the sound."""
    visit.load(one.url, STOPPABLE)
    visit.talk()
    visit.tab.evaluate("Promise.all(contexts.map((context) => context.suspend()))")
    visit.look("stopped", "The sound has stopped")
    visit.tab.evaluate("document.dispatchEvent(new PointerEvent('pointerdown', { bubbles: true }))")
    visit.wait_for("document.body.dataset.trouble === ''")


def test_a_missing_loudspeaker_is_shown(visit: Visit, sound: None, one: Running) -> None:
    if visit.browser == "firefox":
        pytest.skip("Firefox does not list loudspeakers; it does not start without one")
    visit.load(one.url, NO_OUTPUT)
    visit.talk()
    visit.look("deaf", "No loudspeaker was found")


def test_a_restarting_server_is_shown_at_each_stage(visit: Visit, sound: None, serve: Serve) -> None:
    """The server stops, returns with a token, and stops again: the page says what to do each time."""
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
