"""A lost client resumes its conversation; a closed one cannot be resumed."""

import asyncio

import aiohttp
import numpy as np
import pytest
from answers import expected, is_close
from callers import FRAME, call, run, speech
from serving import Running

from pplex.runtime.session import Runtime


def test_a_closed_conversation_cannot_be_resumed_and_frees_its_slot(server: Running) -> None:
    async def visit() -> None:
        async with call(server.url) as caller:
            key = (await caller.handshake()).session["resume"]
        for attempt in (key, "nonsense"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with call(server.url, resume=attempt):
                    pass
            assert refused.value.status == 404

    run(visit())
    server.wait_for(lambda: server.state()["used"] == 0)


def test_a_lost_client_continues_its_conversation(server: Running, alone: Runtime) -> None:
    user = speech(20)

    async def converse() -> tuple[np.ndarray, str]:
        async with call(server.url, text_prompt="You remember.", seed="9") as caller:
            await (await caller.handshake()).talk(user[:8])
            first, text = caller.heard(), caller.text
            key = caller.session["resume"]
            caller.drop()
        await asyncio.sleep(0.5)
        assert server.metric("pplex_slots_kept") == 1
        async with call(server.url, resume=key) as caller:
            await (await caller.handshake()).talk(user[8:])
            assert caller.session["resumed"] is True
            return np.concatenate([first, caller.heard()]), text + caller.text

    heard, text = run(converse())
    pcm, wanted = expected(alone, user, "NATF0", "You remember.", 9)
    assert is_close(heard, pcm)
    assert text == wanted


def test_resuming_takes_over_from_an_open_connection(server: Running) -> None:
    async def visit() -> None:
        async with call(server.url) as old:
            key = (await old.handshake()).session["resume"]
            async with call(server.url, resume=key, audio="s16") as new:
                await new.handshake()
                assert new.session["audio"] == "s16"
                assert await old.closed() == 4001
                await new.ws.send_bytes(b"\1" + bytes(FRAME * 2))
                await new.until(lambda: new.all("audio"))
                assert len(new.all("audio")[0]) == FRAME * 2

    run(visit())
    server.wait_for(lambda: server.state()["used"] == 0)


def test_a_client_that_does_not_return_loses_its_slot(server: Running) -> None:
    """The shared server keeps a lost client's conversation for 2 s."""

    async def visit() -> str:
        async with call(server.url) as caller:
            key: str = (await caller.handshake()).session["resume"]
            caller.drop()
        return key

    key = run(visit())
    server.wait_for(lambda: server.metric("pplex_slots_kept") == 1)
    server.wait_for(lambda: server.state()["used"] == 0)
    assert server.get(f"/api/chat?resume={key}")[0] == 404
