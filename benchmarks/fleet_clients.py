"""Clients that arrive at random, talk in real time and hang up, counted as in the simulation. Called by fleet_run.py."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from fleet_ray import RayServers
from fleet_servers import Server, Servers

from pplex.fleet.demand import Arrival
from pplex.fleet.rules import Rules
from pplex.fleet.tally import Tally
from pplex.server.client import ClosedError, Conversation, RefusedError, ServerError, connect

FRAME = np.zeros(1920, np.float32)  # 80 ms of silence: the agent's work is the same
FRAME_S = 0.08


@dataclass
class Visits:
    """What all clients share: the servers, the rules of the balancer, the counts, and some times in seconds."""

    servers: Servers | RayServers
    rules: Rules
    tally: Tally
    numbers: random.Random
    began_s: float = field(default_factory=time.monotonic)
    overhead_s: list[float] = field(default_factory=list)  # of a slot's time: before the handshake, and for the goodbye
    away_s: list[float] = field(default_factory=list)  # from a cut until the client talks again
    unexpected: list[str] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def in_turn(self) -> Sequence[Server]:
        """The servers that the balancer tries."""
        ready = list(self.servers.ready)
        if self.rules.balance == "random":
            return self.numbers.sample(ready, len(ready))
        return sorted(ready, key=lambda server: server.clients)


async def arrive(visits: Visits, arrivals: Sequence[Arrival]) -> None:
    """All arrivals, until the last client has left."""
    async with asyncio.TaskGroup() as group:
        for one in arrivals:
            await asyncio.sleep(one.at_s - visits.now_s)
            group.create_task(live(visits, one.seconds))


async def live(visits: Visits, seconds: float) -> None:
    """One client, from its arrival until it has said all or gives up. If it is cut, it comes back with the rest."""
    left_s: float | None = seconds
    cut_s: float | None = None
    while left_s is not None:
        visit = Visit(visits, left_s, cut_s)
        left_s = await visit.run()
        if left_s is not None:
            cut_s = visits.now_s
            await asyncio.sleep(visits.numbers.uniform(0, visits.rules.return_s))


class Visit:
    """One request for a slot, at one server after the other."""

    def __init__(self, visits: Visits, left_s: float, cut_s: float | None):
        self._visits, self._left_s, self._cut_s = visits, left_s, cut_s
        self._asked_s = visits.now_s
        self._slot_s: float | None = None
        self._queued = False

    async def run(self) -> float | None:
        """Returns the seconds that a cut client still wants to talk; None if it is finished."""
        for server in self._visits.in_turn():
            server.clients += 1
            try:
                return await self._at(server)
            except RefusedError:
                continue  # 503: the next one
            finally:
                server.clients -= 1
        self._visits.tally.refused(self._asked_s)
        return None

    async def _at(self, server: Server) -> float | None:
        visits, began_s = self._visits, None
        entered_s = visits.now_s
        try:
            async with connect(server.url, audio="s16", on_queued=self._moved) as conversation:
                began_s = visits.now_s
                self._got_slot(began_s)
                await self._talk(conversation)
            visits.tally.talked(self._left_s, visits.now_s)
            visits.overhead_s.append(visits.now_s - (self._slot_s or entered_s) - self._left_s)
            return None
        except RefusedError:
            raise
        except ClosedError as error:
            if error.code != 1013:
                visits.unexpected.append(str(error))
            visits.tally.timed_out(self._asked_s)
            return None
        except (ServerError, OSError):
            return self._cut(began_s)

    def _moved(self, position: int) -> None:
        self._queued |= position > 0
        if position == 0:
            self._slot_s = self._visits.now_s

    def _got_slot(self, began_s: float) -> None:
        visits = self._visits
        slot_s = self._asked_s if self._slot_s is None else self._slot_s
        visits.tally.got_slot(self._asked_s, slot_s if self._queued else self._asked_s)
        if self._cut_s is not None:
            visits.away_s.append(began_s - self._cut_s)

    async def _talk(self, conversation: Conversation) -> None:
        """Speak in real time, and listen, for as long as the client wants."""
        listening = asyncio.create_task(_listen(conversation))
        due_s = time.monotonic()
        try:
            for _ in range(max(1, round(self._left_s / FRAME_S))):
                due_s += FRAME_S
                await asyncio.sleep(due_s - time.monotonic())
                if listening.done():
                    break
                await conversation.send(FRAME)
            if listening.done():
                listening.result()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def _cut(self, began_s: float | None) -> float:
        visits = self._visits
        if began_s is None:
            visits.tally.sent_away(self._asked_s)
            return self._left_s
        said_s = visits.now_s - began_s
        visits.tally.talked(said_s, visits.now_s)
        visits.tally.cut("failure", visits.now_s)
        return max(0.0, self._left_s - said_s)


async def _listen(conversation: Conversation) -> None:
    async for _ in conversation:
        pass
