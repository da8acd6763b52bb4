"""Conversations between the page and the server, in Chromium with a recording for a microphone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from our_page import Tab, expect, expect_state, frame_count, level, received, talk, wait_for
from serving import Running


def test_a_conversation_is_audible_and_readable_and_frees_its_slot(open_tab: Callable[..., Tab], two: Running) -> None:
    tab = open_tab()
    sockets = received(tab)
    talk(tab, two.url)
    assert two.state()["used"] == 1
    wait_for(tab, lambda: level(tab, "Agent") > 20)  # above -48 dB, in the loudspeaker's worklet
    wait_for(tab, lambda: level(tab, "You") > 20)
    wait_for(tab, lambda: frame_count(sockets[0]) >= 25)
    assert {len(message) for message in sockets[0] if message[0] == 1} == {1 + 2 * 1920}
    wait_for(tab, lambda: len(tab.locator("#transcript").inner_text()) > 20)
    expect(tab.locator("#reply")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(tab.locator("#buffer")).to_have_text(re.compile(r"^\d+ ms$"))
    tab.get_by_role("button", name="Stop").click()
    expect_state(tab, "ended")
    two.wait_for(lambda: two.state()["used"] == 0)
    expect(tab.get_by_role("button", name="Talk")).to_be_enabled()
    assert len(sockets) == 1


@pytest.mark.parametrize("rate_hz", [44100, 48000])
def test_a_microphone_at_its_own_sample_rate_is_resampled(
    open_tab: Callable[..., Tab], two: Running, rate_hz: int
) -> None:
    """In Firefox, a microphone cannot enter an audio context of another rate."""
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
    sockets = received(tab)
    talk(tab, two.url)
    assert tab.evaluate("rates") == [24000, rate_hz]
    wait_for(tab, lambda: frame_count(sockets[0]) >= 10 and level(tab, "Agent") > 20)


def test_everything_can_be_done_with_the_keyboard(open_tab: Callable[..., Tab], two: Running) -> None:
    tab = open_tab()
    sent: list[str] = []
    tab.on("websocket", lambda ws: sent.append(ws.url))
    tab.goto(two.url)
    expect_state(tab, "ready")

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
    expect_state(tab, "talking")
    expect(tab.locator("#facts")).to_have_text("Voice NATM1, seed 7")
    assert "text_prompt=You+are+brief." in sent[0]
    tab.keyboard.press("Space")
    expect_state(tab, "ended")
