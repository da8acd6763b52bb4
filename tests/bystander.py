"""A bystander whose conversation must not change while another client attacks the server."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
from callers import call, run, speech
from serving import Running

BYSTANDER = speech(12, seed=3)


async def beside_a_bystander(server: Running, unharmed: np.ndarray, attack: Callable[[], Awaitable[None]]) -> None:
    """Let a bystander talk while `attack` runs, and compare its replies with the expected ones."""
    async with call(server.url, voice_prompt="NATM1", text_prompt="A bystander.", seed="77") as bystander:
        await bystander.handshake()
        running = asyncio.ensure_future(attack())
        heard = await bystander.talk(BYSTANDER)
        await running
        assert np.abs(heard - unharmed).max() < 1e-4
        assert not bystander.metadata("dropped")


def attacked(server: Running, unharmed: np.ndarray, attack: Callable[[], Awaitable[None]], rounds: int = 1) -> None:
    """Attack beside a bystander, `rounds` times; afterwards the server is healthy and every slot is free."""
    for _ in range(rounds):
        run(beside_a_bystander(server, unharmed, attack))
    assert server.get("/health") == (200, "ok\n")
    server.wait_for(lambda: server.state() == {"ready": True, "slots": 4, "used": 0, "queued": 0})
    assert not [event for event in server.events() if event["level"] == "error"]
