"""Hostile and failing callers of `/twilio`, and a full server."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from bystander import attacked
from callers import call, run
from serving import Running, Serve
from twilio_caller import AUTH_TOKEN, PACKET, SILENCE, attempt, is_free, phone


@pytest.fixture(scope="module")
def attackable(serve: Serve) -> Iterator[Running]:
    limits = {"heartbeat_s": 1.0, "header_s": 1.0, "resume_s": 0.3, "idle_s": 20.0, "queue": 1, "queue_s": 0.7}
    with serve(limits=limits, options={"protocols": ("chat", "twilio"), "twilio_auth_token": AUTH_TOKEN}) as running:
        yield running


def test_full_and_too_long_in_the_queue(attackable: Running) -> None:
    async def visit() -> None:
        callers = [call(attackable.url, resume="") for _ in range(4)]
        for each in callers:
            await (await each.__aenter__()).handshake()
        async with phone(attackable.url, AUTH_TOKEN) as late, phone(attackable.url, AUTH_TOKEN) as waits:
            await waits.start()
            attackable.wait_for(lambda: attackable.state()["queued"] == 1)
            await late.start()
            assert await late.closed() == 1013
            assert await attempt(attackable.url, {}, auth_token=AUTH_TOKEN) == 503
            assert await waits.closed() == 1013
        for each in callers:
            await each.__aexit__(None, None, None)

    run(visit())
    attackable.wait_for(lambda: is_free(attackable))


async def nonsense(server: Running) -> None:
    """Messages that cannot be read, before and after the start: the call goes on."""
    texts = [
        "{",
        "[]",
        "null",
        "[" * 50_000,
        '{"event":3}',
        '{"event":"media"}',
        '{"event":"media","media":{"payload":"%"}}',
    ]
    async with phone(server.url, AUTH_TOKEN) as caller:
        for is_begun in (False, True):
            if is_begun:
                await caller.start()
            for text in texts:
                await caller.ws.send_str(text)
        await caller.start({"seed": "x"})  # a second one
        talking = asyncio.create_task(caller.talk(SILENCE * 640 * 10))
        await caller.replies(3)
        await talking


async def binary(server: Running) -> None:
    async with phone(server.url, AUTH_TOKEN) as caller:
        await caller.start()
        await caller.ws.send_bytes(SILENCE * PACKET)
        assert await caller.closed() == 1003


async def large(server: Running) -> None:
    async with phone(server.url, AUTH_TOKEN) as caller:
        await caller.start()
        with suppress(ConnectionError):
            await caller.media(SILENCE * 100_000)
        assert await caller.closed() in (1006, 1009)


async def flood(server: Running) -> None:
    """More packets than a call needs. The bystander, in the same process, must have its turn meanwhile."""
    async with phone(server.url, AUTH_TOKEN) as caller:
        await caller.start()
        with suppress(ConnectionError):
            for number in range(2_000):
                await caller.media(SILENCE * PACKET)
                await asyncio.sleep(0.001 if number % 10 == 0 else 0)
        assert await caller.closed() in (1006, 1008)


async def leaps(server: Running) -> None:
    """Each packet claims that a second was lost before it."""
    async with phone(server.url, AUTH_TOKEN) as caller:
        began = time.monotonic()
        await caller.start()
        for _ in range(100):
            caller.lose(50)
            await caller.media(SILENCE * PACKET)
            await asyncio.sleep(0.02)
        assert len(caller.frames) <= (time.monotonic() - began) / 0.08 + 8, "never faster than the clock"


async def leaves(server: Running) -> None:
    """Starts, and is gone before the answer."""
    for _ in range(8):
        async with phone(server.url, AUTH_TOKEN) as caller:
            await caller.start({"persona": "You enjoy salad."})


@pytest.mark.parametrize("attack", [nonsense, binary, large, flood, leaps, leaves])
def test_bystanders_are_unharmed(attackable: Running, unharmed: np.ndarray, attack: Any) -> None:
    attacked(attackable, unharmed, lambda: attack(attackable))


def test_ignored_messages_are_counted(attackable: Running) -> None:
    async def visit() -> None:
        async with phone(attackable.url, AUTH_TOKEN) as caller:
            await caller.start()
            payload = base64.b64encode(SILENCE * PACKET).decode()
            await caller.send("media", media={"track": "outbound", "timestamp": "0", "payload": payload})
            await caller.ws.send_str(json.dumps({"event": "news"}))
            await caller.stop()
            await caller.closed()

    run(visit())
    for kind in ("media of another track", "unknown event"):
        assert attackable.metric(f'pplex_ignored_total{{what="{kind}"}}') >= 1
