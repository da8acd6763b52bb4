"""Limits of a conversation: late audio, idle clients, the maximum duration, leaving early."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import pytest
from callers import FRAME_S, Caller, call, dial, frame, run, speech
from live_caller import live
from serving import Running, Serve

from pplex.server.limits import Bucket


def test_late_audio_is_dropped_reported_and_counted(serve: Serve) -> None:
    async def visit(url: str) -> Caller:
        async with call(url) as caller:
            await caller.handshake()
            await caller.say(*speech(20))
            await caller.until(lambda: caller.metadata("dropped"))
            await caller.replies(4)
            await asyncio.sleep(0.3)
            return caller

    with serve("--slots", "1", "--backlog", "4") as server:
        caller = run(visit(server.url))
        dropped = caller.metadata("dropped")[-1]["frames"]
        assert dropped >= 15  # one may have been heard before the others arrived
        assert len(caller.all("audio")) == 20 - dropped
        assert server.metric('pplex_dropped_frames_total{reason="backlog"}') == dropped


def test_an_idle_client_and_a_long_conversation_are_closed(serve: Serve) -> None:
    async def idle(url: str) -> None:
        async with call(url) as caller:
            await caller.handshake()
            assert await caller.closed() == 1008
            assert caller.all("error") == [b"No audio for 1 s."]

    async def long(url: str) -> None:
        async with call(url) as caller:
            await caller.handshake()
            with suppress(ConnectionError):  # the server closes before the last frame
                for frame in speech(60):
                    await caller.say(frame)
                    await asyncio.sleep(FRAME_S)
            assert await caller.closed() == 1008
            assert b"may last" in caller.all("error")[0]

    async def waiting(url: str) -> None:
        async with call(url) as caller:
            await caller.until(lambda: caller.metadata("queued"))
            await caller.handshake()  # waits longer than the maximum duration
            assert len(await caller.talk(speech(10))) == 10

    async def both(url: str) -> None:
        ending = asyncio.create_task(long(url))
        await asyncio.sleep(0.1)
        await asyncio.gather(ending, waiting(url))

    with serve("--slots", "1", "--idle-seconds", "1", "--max-minutes", "0.035") as server:
        run(idle(server.url))
        server.wait_for(lambda: server.state()["used"] == 0)
        run(both(server.url))


def test_leaving_while_priming_frees_the_slot(server: Running) -> None:
    async def visit() -> None:
        for i in range(5):
            async with call(server.url, text_prompt=f"Go {i}. " * 5) as caller:
                await caller.say(*speech(1))

    run(visit())
    server.wait_for(lambda: server.state()["used"] == 0)


def test_a_client_that_does_not_read_loses_its_connection_and_later_its_slot(serve: Serve) -> None:
    """Buffers of the system fill first; then 25 replies wait, and the next one ends the connection."""

    async def visit(port: int, gone: Callable[[], bool]) -> None:
        async with dial(port, receive_buffer=2048) as (_, writer):
            for pcm in speech(150):
                writer.write(frame(b"\1" + pcm.astype("<f4").tobytes()))
                await asyncio.sleep(FRAME_S)
                if await asyncio.to_thread(gone):
                    return

    with serve("--slots", "1", "--resume-seconds", "1") as server:
        run(visit(server.port, lambda: server.metric('pplex_partings_total{cause="slow"}') == 1))
        assert server.metric('pplex_dropped_frames_total{reason="outbox"}') == 26
        assert server.state()["used"] == 1, "kept for its client"
        server.wait_for(lambda: server.state()["used"] == 0)
        assert [event["cause"] for event in server.events() if event["event"] == "conversation ended"] == ["forgotten"]


def test_a_credit_may_exceed_the_size_and_is_used_up() -> None:
    bucket = Bucket(10, 5, 0.0)
    bucket.credit(8)
    assert bucket.take(50, 0.0) and not bucket.take(1, 0.0)
    assert bucket.level(100.0) == 10


def test_long_personas_of_many_clients_are_refused_before_they_keep_the_server_busy(serve: Serve) -> None:
    """Over chat before the upgrade, and over GPT-Live after it; a client with a short persona talks."""
    limits = {"prompt_characters": 1000.0, "prompt_characters_per_s": 0.001}

    async def visit(url: str) -> None:
        async with call(url, text_prompt="x" * 600) as caller:
            await caller.handshake()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with call(url, text_prompt="x" * 600):
                pass
        assert refused.value.status == 503
        async with live(url) as late:
            await late.send("session.start", session={"model": "m", "instructions": "x" * 600})
            assert await late.closed() == 1013
        async with call(url, text_prompt="Hello") as caller:
            assert len(await (await caller.handshake()).talk(speech(2))) == 2

    with serve(limits=limits) as server:
        run(visit(server.url))
