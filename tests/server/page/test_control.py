"""The panel with which a user lets the agent say words and holds it."""

from collections.abc import Callable, Iterator

import pytest
from our_page import Tab, expect, expect_state, talk, wait_for
from serving import Running, Serve

TEXT = "good answers for you"


@pytest.fixture(scope="module")
def steered(serve: Serve) -> Iterator[Running]:
    with serve("--slots", "2", "--queue", "0", "--token", "caller", "--control-token", "boss") as running:
        yield running


def transcript(tab: Tab) -> str:
    return tab.locator("#transcript").inner_text()


def test_the_agent_says_what_the_user_enters_and_is_silent_when_held(
    open_tab: Callable[..., Tab], steered: Running
) -> None:
    tab = open_tab()
    talk(tab, f"{steered.url}/?token=boss")
    group = tab.get_by_role("group", name="Control of the agent")
    group.get_by_role("textbox", name="Words that the agent shall say").fill(f" {TEXT} ")
    group.get_by_role("button", name="Say").click()
    expect(group.get_by_role("status")).to_have_text("The agent has said it.")
    wait_for(tab, lambda: TEXT in transcript(tab))
    expect(tab.locator("#words")).to_have_value("")
    expect(tab.locator("#words")).to_be_focused()
    hold = group.get_by_role("button", name="Hold")
    hold.click()
    expect(hold).to_have_attribute("aria-pressed", "true")
    expect(group.get_by_role("status")).to_contain_text("stays silent")
    tab.wait_for_timeout(600)
    held = transcript(tab)
    tab.wait_for_timeout(1500)
    assert transcript(tab) == held
    hold.click()
    expect(hold).to_have_attribute("aria-pressed", "false")
    expect(group.get_by_role("status")).to_have_text("")
    wait_for(tab, lambda: transcript(tab) != held)


def test_what_the_agent_cannot_say_is_explained(open_tab: Callable[..., Tab], steered: Running) -> None:
    tab = open_tab()
    talk(tab, f"{steered.url}/?token=boss")
    tab.locator("#words").fill("call 555-1234")
    tab.get_by_role("button", name="Say").click()
    expect(tab.locator("#answer")).to_contain_text("can be said in several ways")
    expect(tab.locator("#answer")).to_have_class("wrong")
    expect(tab.locator("#words")).to_have_value("call 555-1234")
    expect_state(tab, "talking")
    tab.locator("#words").fill(f"{TEXT} and {TEXT}")
    tab.get_by_role("button", name="Say").click()
    expect(tab.locator("#answer")).to_have_text("The agent is saying it.")
    tab.get_by_role("button", name="Hold").click()
    expect(tab.locator("#answer")).to_contain_text("stay")


def test_the_panel_can_be_used_with_the_keyboard(open_tab: Callable[..., Tab], steered: Running) -> None:
    """Enter says the words; it does not press the page's button, which would end the conversation."""
    tab = open_tab()
    talk(tab, f"{steered.url}/?token=boss")
    tab.locator("#words").focus()
    tab.keyboard.press("Enter")  # nothing to say
    tab.keyboard.type(TEXT)
    tab.keyboard.press("Enter")
    expect(tab.locator("#answer")).to_have_text("The agent has said it.")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("button", name="Hold")).to_be_focused()
    tab.keyboard.press("Space")
    expect(tab.get_by_role("button", name="Hold")).to_have_attribute("aria-pressed", "true")
    expect_state(tab, "talking")
    tab.get_by_role("button", name="Stop").click()
    expect(tab.locator("#control")).to_be_hidden()


@pytest.mark.parametrize("token, controls", [("boss", True), ("caller", False)])
def test_the_panel_is_for_those_who_may_control(
    open_tab: Callable[..., Tab], steered: Running, token: str, controls: bool
) -> None:
    """Also if the token is entered in the form."""
    tab = open_tab()
    tab.goto(steered.url)
    expect(tab.locator("#control")).to_be_hidden()
    tab.get_by_label("Access token").fill(token)
    tab.get_by_role("button", name="Talk").click()
    expect_state(tab, "talking")
    expect(tab.locator("#control")).to_be_visible(visible=controls)
    if controls:
        expect(tab.locator("#control")).to_be_enabled()
