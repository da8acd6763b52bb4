"""A client that sends orders to its conversation, and waits for their answers."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from callers import FRAME_S, Caller, speech


async def send(caller: Caller, order: bytes | dict[str, Any]) -> None:
    """Send a metadata message: an order, or any bytes."""
    await caller.ws.send_bytes(b"\4" + (order if isinstance(order, bytes) else json.dumps(order).encode()))


def answers(caller: Caller) -> list[dict[str, Any]]:
    """All answers to orders until now."""
    metadata = [json.loads(payload) for payload in caller.all("metadata")]
    return [content for content in metadata if content["type"] in ("done", "refused")]


async def ordered(caller: Caller, order: bytes | dict[str, Any]) -> dict[str, Any]:
    """Send an order; returns the next answer, done or refused."""
    before = len(answers(caller))
    await send(caller, order)
    await caller.until(lambda: len(answers(caller)) > before, f"the answer to {str(order)[:200]}")
    return answers(caller)[before]


async def done(caller: Caller, name: str, **arguments: Any) -> dict[str, Any]:
    """Send an order that is followed; returns its answer."""
    answer = await ordered(caller, {"type": name, **arguments})
    assert (answer["type"], answer["order"], answer["id"]) == ("done", name, arguments.get("id")), answer
    return answer


async def refused(caller: Caller, order: bytes | dict[str, Any]) -> str:
    """Send an order that is refused; returns the reason."""
    answer = await ordered(caller, order)
    assert answer["type"] == "refused", answer
    return answer["reason"]


def said(caller: Caller, order_id: str | None) -> list[tuple[str, int]]:
    """The states of a text, and its frame of each, as reported."""
    return [(each["state"], each["frame"]) for each in caller.metadata("said") if each["id"] == order_id]


async def chat(caller: Caller, until: Callable[[], Any], seed: int = 0) -> None:
    """Talk in real time until `until()` is true."""
    for frame in speech(200, seed):
        if until():
            return
        await caller.say(frame)
        await asyncio.sleep(FRAME_S)
    raise AssertionError("still not so after 16 s of speech")
