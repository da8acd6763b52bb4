"""Our page through HAProxy, in a real browser."""

import json
from contextlib import closing

from chromium_tab import chromium_tab
from folders import TINY
from our_page import expect_state, frame_count, level, received, talk, wait_for
from relay import Relay
from scaled import Scaled

MICROPHONE = TINY / "checkpoint/voices/synthetic.wav"


def test_the_page_talks_and_returns_to_its_replica_after_each_loss(scaled: Scaled) -> None:
    """The balancer sends the connections to all three replicas."""
    with chromium_tab(MICROPHONE) as tab, closing(Relay(scaled.port)) as relay:
        sockets = received(tab)
        talk(tab, relay.url)
        for turn in range(4):
            wait_for(tab, lambda: len(sockets) > turn and frame_count(sockets[turn]) >= 10)  # noqa: B023
            relay.cut()
        wait_for(tab, lambda: len(sockets) == 5 and frame_count(sockets[4]) >= 10)
        expect_state(tab, "talking")
        wait_for(tab, lambda: level(tab, "Agent") > 20)
        session = next(json.loads(message[1:]) for message in sockets[4] if message[0] == 4)
        assert session["resumed"] is True
        assert sum(scaled.metrics("pplex_slots_used").values()) == 1
        tab.get_by_role("button", name="Stop").click()
        scaled.wait_for(lambda: sum(scaled.metrics("pplex_slots_used").values()) == 0)
