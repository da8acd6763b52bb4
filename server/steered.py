"""Scheduler thread: follows a client's orders on its session, and watches the texts that the agent is to say.

`server.control` makes it, in the event loop; `server.scheduler` runs it.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from pplex.runtime.errors import PplexError
from pplex.runtime.saying import Saying, State
from pplex.runtime.session import Session
from pplex.runtime.snapshot import Snapshot
from pplex.server.logs import LOGGER
from pplex.server.orders import Order


class DefectError(PplexError):
    """An order failed by our own mistake, which was logged. The session's state is unknown."""


@dataclass(frozen=True)
class Followed:
    """What an order did. `frame`: the first reply that it can change; a conversation's replies count from 0."""

    frame: int
    facts: Mapping[str, object] = field(default_factory=dict)  # for the client
    snapshot: Snapshot | None = None


@dataclass(eq=False)
class _Watched:
    """A text, the client's id of it, and the state that the client knows."""

    saying: Saying
    id: str | None
    known: State = "queued"


class Steered:
    """One conversation's orders. `tell` gets the facts of a message to the client, in the scheduler's thread."""

    def __init__(self, tell: Callable[[Mapping[str, object]], None]):
        self._tell = tell
        self._watched: list[_Watched] = []

    def follow(self, session: Session, order: Order) -> Generator[None, None, Followed]:
        """Follow an order. It yields before work that needs the spare slot, and between its chunks.

        Raises PplexError with the reason why it is refused.
        """
        try:
            return (yield from self._follow(session, order))
        except PplexError:
            raise
        except Exception as error:  # of one conversation: the others go on
            LOGGER.exception("an order failed")
            raise DefectError("The server has a defect; it was logged.") from error

    def _follow(self, session: Session, order: Order) -> Generator[None, None, Followed]:
        match order.name:
            case "say":
                saying = session.say(**order.arguments)
                self._watched.append(_Watched(saying, order.id))
                return Followed(_next_frame(session), {"words": len(saying.words)})
            case "hold":
                return Followed(session.hold())
            case "release":
                return Followed(session.release())
            case "rebuild":
                yield
                yield from session.rebuilding(**order.arguments)
                return Followed(_next_frame(session))
            case "rewind":
                yield
                frames = yield from session.rewinding(**order.arguments)
                return Followed(_next_frame(session), {"frames": frames})
            case "snapshot":
                return Followed(session.frame, snapshot=session.snapshot())
        raise AssertionError(order.name)

    def position(self, session: Session) -> Generator[None, None, int]:
        """The number of the next reply."""
        yield from ()
        return session.frame

    def look(self) -> None:
        """Tell the client which texts have begun, ended or were cut off. After each step and each order."""
        for watched in self._watched:
            saying = watched.saying
            if saying.state != watched.known:
                watched.known = saying.state
                frame = saying.began if saying.state == "speaking" else saying.ended
                self._tell(
                    {"type": "said", "id": watched.id, "state": saying.state, "words": saying.said, "frame": frame}
                )
        self._watched = [each for each in self._watched if not each.saying.is_over]


def _next_frame(session: Session) -> int:
    """The first reply whose text is not sampled yet."""
    return session.frame + 1
