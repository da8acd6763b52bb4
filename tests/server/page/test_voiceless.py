"""The page of a model without a prompt, and of one without voices."""

from collections.abc import Callable
from pathlib import Path

import pytest
from our_page import Tab, expect, expect_state, frame_count, received, talk, wait_for
from serving import serving

from pplex.runtime.bundle import Bundle


@pytest.mark.parametrize("takes_prompt", [False, True], ids=["Moshi", "PersonaPlex without voices"])
def test_a_conversation_without_a_voice(
    open_tab: Callable[..., Tab], moshi_bundle: Bundle, voiceless_bundle: Bundle, tmp_path: Path, takes_prompt: bool
) -> None:
    bundle = voiceless_bundle if takes_prompt else moshi_bundle
    with serving(bundle.folder, tmp_path, "--slots", "1") as server:
        tab = open_tab()
        sockets = received(tab)
        talk(tab, server.url)
        wait_for(tab, lambda: frame_count(sockets[0]) >= 10)
        expect(tab.locator("#facts")).to_contain_text("Voice none")
        tab.get_by_role("button", name="Stop").click()
        expect_state(tab, "ended")
        expect(tab.get_by_label("Voice")).to_be_visible(visible=takes_prompt)
        expect(tab.get_by_label("Describe the agent")).to_be_visible(visible=takes_prompt)
        (admitted,) = (event for event in server.events() if event["event"] == "conversation admitted")
        assert not admitted.get("ignored")
