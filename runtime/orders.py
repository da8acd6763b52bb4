"""The orders that a running session takes: say, hold, release, rebuild, rewind. The base of `runtime.session.Session`.

An order takes effect in the next frame whose text is not sampled yet: 80 ms after the reply before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TypeVar

from pplex.runtime.control import Control
from pplex.runtime.priming import VoiceName
from pplex.runtime.saying import Saying, When
from pplex.runtime.text import TextStream

T = TypeVar("T")


class Orders(ABC):
    """A session in slot `row`, whose text is decoded by `text`. Every order raises SlotError if the session is closed."""

    row: int
    text: TextStream

    @abstractmethod
    def control(self) -> Control:
        """The control of the runtime's slots. Raises SlotError if the session is closed."""

    def say(self, text: str, when: When = "now", interrupt: bool = False, gap: int = 0) -> Saying:
        """Let the agent say exactly this text, in its own rhythm; returns its progress.

        when: "now"; "pause", when the agent has said nothing for half a second; "turn", in place of what the model would
        say next after a pause. Texts are said in the order of the calls. interrupt: drop the texts before this one.
        gap: least number of frames between two words.
        Raises SteeringError for a text that is empty, too long or ambiguous, and if too many texts wait.
        """
        return self.control().say(self.row, text, when, interrupt, gap)

    def hold(self) -> int:
        """Keep the agent silent until `release`; returns the first silent frame. Texts that wait are said afterwards."""
        return self.control().steering.hold(self.row)

    def release(self) -> int:
        """End a hold; returns the first free frame."""
        return self.control().steering.release(self.row)

    def rebuild(
        self,
        persona: str | Sequence[int] | None = None,
        facts: str | None = None,
        voice: VoiceName = None,
        keep_seconds: float | None = None,
    ) -> None:
        """Give the agent another persona, voice or facts during the call, or only forget the older part of it.

        What is None stays as it is. keep_seconds: how much of the newest history the agent remembers. By default it is as
        much as leaves room for the same again. To step sessions meanwhile, use `rebuilding`.
        Raises SteeringError, PromptError, AudioError, SlotError; then nothing has changed.
        """
        _run(self.control().rebuild(self.row, persona, facts, voice, keep_seconds, wait=False))

    def rebuilding(
        self,
        persona: str | Sequence[int] | None = None,
        facts: str | None = None,
        voice: VoiceName = None,
        keep_seconds: float | None = None,
    ) -> Generator[None, None, None]:
        """`rebuild` as a generator: it yields between chunks, and all sessions may step meanwhile, this one, too."""
        return self.control().rebuild(self.row, persona, facts, voice, keep_seconds)

    def rewind(self, seconds: float) -> int:
        """Let the agent forget the newest seconds, what it said and what it heard; returns the number of frames.

        The sound goes on without a click, and other words are drawn. To step sessions meanwhile, use `rewinding`.
        Raises SteeringError, SlotError.
        """
        return _run(self._rewinding(seconds, wait=False))

    def rewinding(self, seconds: float) -> Generator[None, None, int]:
        """`rewind` as a generator: it yields between chunks if the memory must be computed again.

        All sessions may step meanwhile. What this one says and hears then is forgotten, too.
        """
        return self._rewinding(seconds, wait=True)

    def _rewinding(self, seconds: float, wait: bool) -> Generator[None, None, int]:
        frames = yield from self.control().rewind(self.row, seconds, wait)
        self.text.reset()
        return frames

    @property
    def texts(self) -> list[Saying]:
        """The texts that are said or wait, in their order: a greeting, too, and those of a snapshot."""
        return self.control().steering.texts(self.row)


def _run(work: Generator[None, None, T]) -> T:
    """The result of a generator that needs nothing between its chunks."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
