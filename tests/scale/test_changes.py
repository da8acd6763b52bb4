"""Replicas that die, end or are replaced; the tests run in this order, on the same replicas."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, suppress

import aiohttp
from callers import Caller, ask, call, run, speech
from scaled import Scaled

SECOND = 13  # frames


async def _converse(caller: Caller, over: asyncio.Event) -> None:
    """Talk until `over`, or until the connection ends."""
    while not (over.is_set() or caller.ws.closed):
        await caller.say(speech(1)[0])
        await asyncio.sleep(0.08)


class Talking:
    """Callers who talk the whole time."""

    def __init__(self, url: str, count: int):
        self._url, self._count, self._over, self._stack = url, count, asyncio.Event(), AsyncExitStack()
        self.callers: list[Caller] = []

    async def __aenter__(self) -> "Talking":
        for _ in range(self._count):
            self.callers.append(await self._stack.enter_async_context(call(self._url)))
        for caller in self.callers:
            await caller.handshake()
        self._tasks = [asyncio.create_task(_converse(caller, self._over)) for caller in self.callers]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def all_hear_more(self, frames: int = SECOND) -> None:
        """Every caller gets more replies."""
        for caller in self.callers:
            before = len(caller.all("audio"))
            await caller.until(lambda: len(caller.all("audio")) >= before + frames, "more replies")  # noqa: B023


def test_a_killed_replica_loses_only_its_own_conversations(scaled: Scaled) -> None:
    async def visit() -> None:
        async with Talking(scaled.url, 6) as talking:
            keys = [caller.session["resume"] for caller in talking.callers]
            os.kill(scaled.replicas()[0], signal.SIGKILL)
            began = time.monotonic()
            await asyncio.wait([caller._reader for caller in talking.callers], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(1)
            lost = [caller for caller in talking.callers if caller._reader.done()]
            assert [caller.ws.close_code for caller in lost] == [1006, 1006]
            left = [caller for caller in talking.callers if caller not in lost]
            for caller in left:
                await caller.replies(len(caller.all("audio")) + 5)
            await left[0].ws.close()
            while True:  # the slot is free a moment later
                with suppress(aiohttp.WSServerHandshakeError):
                    async with call(scaled.url) as anew:
                        await anew.handshake()
                        break
                await asyncio.sleep(0.1)
            assert time.monotonic() - began < 10
            for caller in lost:
                key = keys[talking.callers.index(caller)]
                answer = await asyncio.to_thread(ask, scaled, f"/api/chat?resume={key}", method="POST")
                assert answer[:2] == (404, "The conversation with this key is over. Start a new one.\n")

    run(visit())
    scaled.wait_for(lambda: len(scaled.metrics("pplex_slots")) == 3, 90)  # Serve has started another


def test_an_update_cuts_no_conversation_and_keys_stay_valid(scaled: Scaled) -> None:
    async def visit() -> None:
        before = set(scaled.metrics("pplex_slots"))
        async with call(scaled.url) as away:
            key = (await away.handshake()).session["resume"]
            async with Talking(scaled.url, 3) as talking:
                update = scaled.update("--replicas", "3", "--slots", "3")
                output, _ = await asyncio.to_thread(update.communicate, None, 180)
                assert (update.returncode, output) == (0, f"{scaled.url}\n")
                after = scaled.metrics("pplex_slots")
                assert set(after.values()) == {3.0} and not before & set(after)
                await talking.all_hear_more()
                away.drop()
                async with call(scaled.url, resume=key) as back:  # the old replica is not among HAProxy's any more
                    assert (await back.handshake()).session["resumed"]
                    await back.talk(speech(2))

    run(visit(), 240)
    scaled.wait_for(lambda: len(scaled.replicas()) == 3, 60)  # the old ones end with their conversations


def test_fewer_replicas_cut_no_conversation(scaled: Scaled) -> None:
    async def visit() -> None:
        async with Talking(scaled.url, 4) as talking:
            update = scaled.update("--replicas", "1", "--slots", "3")
            output, _ = await asyncio.to_thread(update.communicate, None, 180)
            assert update.returncode == 0, output
            await asyncio.sleep(8)  # longer than Ray keeps a replica that ends open for newcomers
            await talking.all_hear_more()
            assert len(scaled.metrics("pplex_slots")) == 1

    run(visit(), 240)
    scaled.wait_for(lambda: len(scaled.replicas()) == 1, 60)
