"""Orders of `pplex.server.client`: they return when the server has followed them, whoever reads its messages."""

import asyncio
from collections.abc import Iterator

import pytest
from callers import FRAME_S, run, speech
from network import network
from serving import Running, Serve

from pplex.runtime.errors import PplexError
from pplex.server.client import (
    Audio,
    ClosedError,
    Conversation,
    LostError,
    RefusedError,
    RefusedOrderError,
    Said,
    Text,
    connect,
)

TEXT = "good answers for you"


@pytest.fixture(scope="module")
def open_server(serve: Serve) -> Iterator[Running]:
    """A server whose clients may control their conversations."""
    with serve("--slots", "2", "--allow", "control", "--one-batch-size") as running:
        yield running


async def speak(conversation: Conversation) -> None:
    while True:
        await conversation.send(speech(1)[0])
        await asyncio.sleep(FRAME_S)


def test_a_program_controls_its_conversation_while_it_iterates(open_server: Running) -> None:
    async def converse() -> None:
        async with connect(open_server.url, control=True, greeting=TEXT, seed=1) as conversation:
            assert conversation.frame == 0
            speaking, heard, events = asyncio.create_task(speak(conversation)), "", list[Said]()

            async def listen() -> None:
                nonlocal heard
                async for event in conversation:
                    heard += event.text if isinstance(event, Text) else ""
                    events.extend([event] if isinstance(event, Said) else [])

            listening = asyncio.create_task(listen())
            saying = await conversation.say("one two three four", gap=1)
            assert saying.words == 4 and saying.frame > 0
            while not events or events[-1].state != "done":
                await asyncio.sleep(0.02)
            assert [(event.id, event.state) for event in events] == [(saying.id, "speaking"), (saying.id, "done")]
            assert TEXT in heard and "one two three four" in heard
            held = await conversation.hold()
            assert await conversation.release() >= held
            assert await conversation.rebuild(persona="You are in a restaurant.") >= held
            kept = await conversation.snapshot()
            assert kept.nbytes > 0 and kept.seconds == 600
            assert await conversation.rewind(0.4) == 5
            with pytest.raises(RefusedOrderError, match=r"refused to say: .*several ways") as refusal:
                await conversation.say("#")
            assert refusal.value.order == "say"
            async with connect(open_server.url, snapshot=kept.key, control=True) as fork:
                assert (fork.seed, fork.frame) == (1, kept.frame)
            speaking.cancel()
            listening.cancel()

    run(converse())


def test_an_order_returns_also_if_nobody_iterates(open_server: Running) -> None:
    """What the agent says meanwhile is kept for the iteration; many tasks may order at the same time."""

    async def converse() -> None:
        async with connect(open_server.url, control=True) as conversation:
            await conversation.send(speech(2).reshape(-1))
            await asyncio.gather(*(conversation.hold() for _ in range(5)))
            heard = 0
            while heard < 2:
                heard += isinstance(await anext(conversation), Audio)

    run(converse())


def test_without_control_an_order_is_an_error(open_server: Running, server: Running) -> None:
    async def converse(url: str, **settings: bool | str) -> None:
        async with connect(url, **settings) as conversation:  # type: ignore[arg-type]
            with pytest.raises(PplexError, match="control=True"):
                await conversation.hold()

    run(converse(open_server.url))
    for settings in ({"control": True}, {"greeting": TEXT}, {"snapshot": "key"}):
        with pytest.raises(RefusedError) as refusal:
            run(converse(server.url, **settings))  # type: ignore[arg-type]
        assert refusal.value.status == 403
    with pytest.raises(PplexError, match="A snapshot has its settings: leave out greeting"):
        run(converse(open_server.url, snapshot="key", greeting=TEXT))


def test_control_goes_on_after_reconnecting_and_the_lost_order_is_an_error(open_server: Running) -> None:
    async def converse() -> None:
        async with network(open_server) as (url, way), connect(url, control=True, reconnect=True) as conversation:
            await conversation.hold()
            order = asyncio.create_task(conversation.rebuild(facts="The salad is good."))
            await asyncio.sleep(0)
            way.cut()
            with pytest.raises(LostError):
                await order
            await conversation.release()
            assert conversation.reconnected == 1

    run(converse())


def test_an_order_to_a_conversation_that_ended_is_an_error(open_server: Running) -> None:
    async def converse() -> None:
        url = open_server.url
        async with (
            connect(url, control=True) as conversation,
            connect(url, resume=conversation.resume, control=True) as other,
        ):
            with pytest.raises(ClosedError):
                await conversation.hold()
            await other.hold()
            with pytest.raises(ClosedError):
                await conversation.release()

    run(converse())
