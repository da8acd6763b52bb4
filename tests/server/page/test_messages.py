"""The page's messages: those on the wire, and those for the user."""

from collections.abc import Callable
from typing import Any

import pytest
from our_page import INFO, Tab, expect, serve_folder


def test_messages_are_packed_and_unpacked(logic: Callable[[str], Any]) -> None:
    packed, audio, text, session, broken, others = logic("""
        const bytes = (...list) => new Uint8Array(list.flat()).buffer;
        const utf8 = (text) => [...new TextEncoder().encode(text)];
        return [
            [...new Uint8Array(packAudio(Float32Array.of(0, 1, -1, 2, NaN, 0.5)))],
            [...unpack(bytes(1, 0, 64, 0, 128)).samples],
            unpack(bytes(2, utf8(" für"))).text,
            unpack(bytes(4, utf8('{"type":"session"}'))).content,
            unpack(bytes(4, utf8('{"type'))).content,
            [bytes(0), bytes(6), bytes(9), bytes()].map((message) => unpack(message).kind),
        ];
    """)
    assert packed == [1, 0, 0, 255, 127, 1, 128, 255, 127, 0, 0, 0, 64]
    assert audio == [0.5, -1]
    assert (text, session, broken) == (" für", {"type": "session"}, {})
    assert others == ["handshake", "ping", "unknown", "unknown"]


def test_a_query_omits_empty_values(logic: Callable[[str], Any]) -> None:
    assert logic("return openingQuery({ seed: '', text_prompt: ' Be kind & brief. ', token: undefined })") == (
        "audio=s16&early_metadata=1&text_prompt=Be+kind+%26+brief."
    )
    assert logic("return resumingQuery('k', 't')") == "audio=s16&resume=k&token=t"
    assert logic("return resumingQuery('k', '', '1')") == "audio=s16&resume=k&control=1"


def test_an_order_is_metadata(logic: Callable[[str], Any]) -> None:
    kind, *payload = logic("return [...new Uint8Array(packOrder({ type: 'say', text: 'für' }))]")
    assert (kind, bytes(payload).decode()) == (4, '{"type":"say","text":"für"}')


def test_only_a_lost_connection_is_resumed(logic: Callable[[str], Any]) -> None:
    codes = [1000, 1001, 1003, 1006, 1007, 1008, 1009, 1011, 1013, 4001, 4002]
    assert logic(f"return {codes}.filter(isLoss)") == [1006, 4002]
    assert all(
        "code" not in reason for reason in logic(f"return {codes}.filter((c) => !isLoss(c)).map((c) => endingOf(c))")
    )


def test_every_ending_says_what_to_do(logic: Callable[[str], Any]) -> None:
    """Readable reasons of the server are shown unchanged; an unknown code is named."""
    idle, fault, unknown, resumed, refused = logic("""return [
        endingOf(1008, "No audio for 60 s."), endingOf(1011, "IndexError: 7"), endingOf(4999, "?"),
        refusalOf(404, "There is no key.", true), refusalOf(400, "seed is x.\\n" + "y ".repeat(900), false)]""")
    assert idle == "No audio for 60 s. Press Talk to begin a new one."
    assert "IndexError" not in fault and "Press Talk" in fault
    assert "4999" in unknown and "Press Talk" in unknown
    assert "restarted" in resumed and "key" not in resumed
    assert refused.startswith("The server did not accept this: seed is x.") and len(refused) < 340


def test_trouble_is_named_while_it_lasts(logic: Callable[[str], Any]) -> None:
    """Late answers and gaps mean a slow connection. Stopped playback is worse; a silent microphone is less bad."""
    assert logic("""
        const seen = [];
        const trouble = new Trouble(0);
        const voice = new Float32Array(960).fill(0.1), zeros = new Float32Array(960);
        for (let ms = 0; ms < 40000; ms += 500) {
            if (ms < 30000) trouble.played(ms < 9000 ? 0 : 3, ms);
            trouble.heard(ms > 16000 && ms < 25000 ? zeros : voice, ms);
            const word = trouble.look(ms > 2000 && ms < 4000 ? ms - 2000 : 0, ms);
            if (word !== seen.at(-1)?.[1]) seen.push([ms, word]);
        }
        return seen;
    """) == [
        [0, None],
        [3500, "slow"],
        [6000, None],
        [9000, "slow"],
        [16000, None],
        [21500, "silent"],
        [25000, None],
        [32000, "stopped"],
    ]


def test_a_page_that_is_not_secure_says_what_to_do(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    serve_folder(tab, "http://page.test", INFO)
    tab.goto("http://page.test/")
    expect(tab.get_by_role("alert")).to_contain_text("https")
    expect(tab.get_by_role("button", name="Talk")).to_be_disabled()


@pytest.mark.parametrize("error, words", [("NotAllowedError", "not allowed"), ("NotFoundError", "No microphone")])
def test_a_refused_microphone_is_explained(open_tab: Callable[..., Tab], error: str, words: str) -> None:
    tab = open_tab()
    refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }};"
    tab.add_init_script(refuse)
    serve_folder(tab, "http://localhost:9", {**INFO, "token_required": False})
    tab.goto("http://localhost:9/")
    tab.get_by_role("button", name="Talk").click()
    expect(tab.get_by_role("status")).to_contain_text(words)
    expect(tab.get_by_role("button", name="Talk")).to_be_enabled()
