"""Every log line of a conversation has the conversation's id, also a defect's, in every thread."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from callers import call, run, speech
from serving import Running, Serve

# Where a conversation may fail: what runs there, by thread.
PLACES = {
    "event loop": "conversation:session_facts",
    "event loop, reading": "chat_protocol:ChatProtocol.parse",
    "hearing thread": "chat_protocol:ChatProtocol.decode",
    "hearing thread, before the conversation": "chat_protocol:ChatProtocol.prepare",
    "speech thread": "chat_protocol:ChatProtocol.encode",
    "speech thread, at the end": "recording:Recording.close",
}
DEFECTS = """
import functools, importlib, pathlib
def break_if_asked(place):
    module, _, path = place.partition(":")
    owner = importlib.import_module("pplex.server." + module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    whole = getattr(owner, name)
    @functools.wraps(whole)
    def broken(*arguments, **options):
        if pathlib.Path({flag!r}).read_text() == place:
            raise RuntimeError("a defect of the test")
        return whole(*arguments, **options)
    setattr(owner, name, broken)
for place in {places!r}:
    break_if_asked(place)
"""


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that names the broken place."""
    return tmp_path_factory.mktemp("defects") / "place"


@pytest.fixture(scope="module")
def breakable(serve: Serve, flag: Path) -> Iterator[Running]:
    flag.write_text("")
    prelude = DEFECTS.format(flag=str(flag), places=list(PLACES.values()))
    with serve("--slots", "2", "--resume-seconds", "0", "--record", str(flag.parent), prelude=prelude) as server:
        yield server


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_defect_is_logged_with_its_conversation(breakable: Running, flag: Path, place: str) -> None:
    before = len(breakable.events())

    def errors() -> list[dict[str, str]]:
        return [event for event in breakable.events()[before:] if event["level"] == "error"]

    async def visit() -> None:
        async with call(breakable.url, audio="opus" if place.endswith("prepare") else "f32") as caller:
            await caller.until(lambda: caller.messages or errors(), "an answer")
            with suppress(ConnectionError):  # the defect may have ended the connection
                await caller.say(*speech(2))
            if not place.endswith("close"):
                await asyncio.to_thread(breakable.wait_for, errors)

    flag.write_text(place)
    run(visit())
    breakable.wait_for(errors)
    breakable.wait_for(lambda: breakable.state()["used"] == 0)
    started = [event for event in breakable.events()[before:] if event["event"] == "conversation admitted"]
    assert [event["conversation"] for event in started] == [errors()[0]["conversation"]]
    assert {event.get("conversation") for event in errors()} == {started[0]["conversation"]}
    assert "a defect of the test" in errors()[0]["exception"]
