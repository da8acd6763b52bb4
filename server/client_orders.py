"""Orders of a client to its conversation, and their answers: the base of `client.Conversation`."""

import asyncio
import itertools
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pplex.runtime.errors import PplexError
from pplex.server.client_line import ServerError


class RefusedOrderError(ServerError):
    """The server refused an `order`; the conversation goes on."""

    def __init__(self, order: str, reason: str):
        self.order = order
        super().__init__(f"The server refused to {order}: {reason}", reason)


@dataclass(frozen=True)
class Said:
    """A text of `say` began, ended or was cut off: whole `words` said until now, and the frame of the change."""

    id: str | None
    state: Literal["speaking", "done", "cut"]
    words: int
    frame: int


@dataclass(frozen=True)
class OrderedText:
    """A text that will be said: its `id` in events of Said, the first `frame` that it can change, and its `words`."""

    id: str
    frame: int
    words: int


@dataclass(frozen=True)
class SavedSnapshot:
    """A snapshot on the server: connect(url, snapshot=key) continues it for `seconds`; its first reply is `frame`."""

    key: str
    frame: int
    nbytes: int
    seconds: float


class Orders(ABC):
    """Orders to a conversation opened with control=True. Each returns when the server has followed it.

    Frames are those of the agent's replies, from 0 at the beginning of the conversation.

    Raises RefusedOrderError; LostError if the connection is lost before the answer, when the order may have been followed
    or not; ClosedError if the server ended the conversation.
    """

    _controls: bool

    def __init__(self) -> None:
        self._names = (f"{secrets.token_hex(4)}.{number}" for number in itertools.count())
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def say(
        self, text: str, when: Literal["now", "pause", "turn"] = "now", interrupt: bool = False, gap: int = 0
    ) -> OrderedText:
        """Let the agent say exactly this text; events of Said report its progress. Arguments as in `Session.say`."""
        answer = await self._order("say", text=text, when=when, interrupt=interrupt, gap=gap)
        return OrderedText(answer["id"], answer["frame"], answer["words"])

    async def hold(self) -> int:
        """Keep the agent silent until `release`; returns the first silent frame."""
        return int((await self._order("hold"))["frame"])

    async def release(self) -> int:
        """End a hold; returns the first free frame."""
        return int((await self._order("release"))["frame"])

    async def rebuild(
        self,
        persona: str | None = None,
        facts: str | None = None,
        voice: str | None = None,
        keep_seconds: float | None = None,
    ) -> int:
        """Give the agent another persona, facts or voice; returns the first frame with them. As in `Session.rebuild`."""
        order = self._order("rebuild", persona=persona, facts=facts, voice=voice, keep_seconds=keep_seconds)
        return int((await order)["frame"])

    async def rewind(self, seconds: float) -> int:
        """Let the agent forget the newest seconds; returns the number of frames that it forgot."""
        return int((await self._order("rewind", seconds=seconds))["frames"])

    async def snapshot(self) -> SavedSnapshot:
        """Keep the conversation as it is now on the server."""
        answer = await self._order("snapshot")
        return SavedSnapshot(answer["key"], answer["frame"], answer["bytes"], answer["seconds"])

    async def _order(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Send an order, and wait for its answer."""
        if not self._controls:
            raise PplexError("This conversation takes no orders. Open it with connect(..., control=True).")
        name = next(self._names)
        answer = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            await self._send_order({"type": order, "id": name, **arguments})
            await self._read_until(answer.done)
            return answer.result()
        finally:
            del self._waiting[name]
            if answer.done() and not answer.cancelled():
                answer.exception()  # or asyncio would report it as never seen

    def _answered(self, content: Mapping[str, Any]) -> None:
        """Take a `done` or `refused` of the server."""
        answer = self._waiting.get(content["id"] or "")
        if answer is None or answer.done():
            return
        if content["type"] == "done":
            answer.set_result(dict(content))
        else:
            answer.set_exception(RefusedOrderError(content["order"], content["reason"]))

    def _give_up(self, error: ServerError) -> None:
        """The connection ended: no order gets an answer any more."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)

    @abstractmethod
    async def _send_order(self, content: Mapping[str, Any]) -> None:
        """Send metadata. Raises LostError."""

    @abstractmethod
    async def _read_until(self, is_done: Callable[[], bool]) -> None:
        """Take messages of the server until `is_done()`."""
