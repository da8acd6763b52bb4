"""What one session is ordered to say or to hold: a small state machine, asked once a frame. Called by `runtime.steering`.

A forced word tells the model "I say this now". The model itself decides the rhythm: where it draws padding, that stays.

    order       say "Good morning"
    text        PAD PAD EPAD Good PAD PAD EPAD morning PAD PAD ...
    forced               x    x                         x
    replaced                               x                       the model drew another word
    the model's  x   x            x   x                     x

Source: the Moshi paper, appendix C (text to speech); the limit of paddings is that of Kyutai's text-to-speech model.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pplex.runtime.delays import FREE
from pplex.runtime.errors import SteeringError
from pplex.runtime.words import Words

When = Literal["now", "pause", "turn"]
State = Literal["queued", "speaking", "done", "cut"]

MAX_QUEUE = 8  # texts of one session
MAX_PADDING = 8  # frames between two words, 0.64 s: then the next word is forced
LONGEST_GAP = 50  # frames
PAUSE = 6  # frames without a word, 0.48 s: longer than most gaps between two words
TAIL = 8  # frames of padding after the last word, unless the model pads by itself


@dataclass(eq=False)
class Saying:
    """A text that a session says: its progress. Frames count from the session's first, 0."""

    text: str
    words: Words  # tokens of each word
    when: When = "now"
    gap: int = 0  # least number of frames between two words
    state: State = "queued"
    said: int = 0  # whole words
    began: int | None = None  # the frame of the first word
    ended: int | None = None  # the first frame that is free again

    def __post_init__(self) -> None:
        if self.when not in get_args(When):
            raise SteeringError(f"when is {self.when!r}, but must be {', '.join(get_args(When))}.")
        if not 0 <= self.gap <= LONGEST_GAP:
            raise SteeringError(f"The gap is {self.gap} frames, but must be 0 to {LONGEST_GAP}.")

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "cut")


@dataclass(frozen=True)
class Target:
    """What the next frame must hold: its text token or FREE, and the token that takes the place of a word drawn, or FREE."""

    text: int = FREE
    replacement: int = FREE


class Speaker:
    """The orders of one session: texts in a queue, and whether it holds. `padding`, `end_of_padding`: the text tokens."""

    def __init__(self, padding: int, end_of_padding: int):
        self._padding, self._end_of_padding = padding, end_of_padding
        self.holds = False
        self.queue = deque[Saying]()  # the first one may be speaking
        self._clear()

    def _clear(self) -> None:
        self._token = self._tail = 0  # tokens of the current word, frames after the last word
        self._is_announced = False  # whether the last frame was EPAD

    # Orders.

    def add(self, saying: Saying) -> None:
        """Raises SteeringError if the queue is full."""
        if len(self.queue) >= MAX_QUEUE:
            raise SteeringError(f"{MAX_QUEUE} texts are queued already. Wait until one is said, or interrupt.")
        self.queue.append(saying)

    def cut(self, frame: int, queued: bool) -> None:
        """Stop the text that is being said at `frame`, and drop those that wait if `queued`."""
        while self.queue and (queued or self.queue[0].state == "speaking"):
            saying = self.queue.popleft()
            saying.state, saying.ended = "cut", frame
        self._clear()

    @property
    def is_idle(self) -> bool:
        return not self.holds and not self.queue

    # One frame.

    def target(self, silent: int) -> Target:
        """For the next frame, after `silent` frames without a word."""
        if self.holds:
            return Target(self._padding)
        if not self.queue:
            return Target()
        saying = self.queue[0]
        if saying.state == "queued":
            return self._first(saying, silent)
        if saying.said == len(saying.words):
            return Target(self._padding)
        word = saying.words[saying.said]
        if self._token:
            return Target(word[self._token])
        longest = max(MAX_PADDING, saying.gap + 1)
        if silent < saying.gap:
            return Target(self._padding)
        if silent >= longest:
            return Target(word[0])
        if silent == longest - 1 and not self._is_announced:
            return Target(self._end_of_padding)
        return Target(replacement=word[0])

    def _first(self, saying: Saying, silent: int) -> Target:
        """The first word takes the place of the model's own next word ("turn"), or is announced and forced."""
        paused = silent >= PAUSE
        if saying.when == "turn":
            return Target(replacement=saying.words[0][0]) if paused else Target()
        if self._is_announced:
            return Target(saying.words[0][0])
        return Target(self._end_of_padding) if paused or saying.when == "now" else Target()

    def take(self, target: Target, draw: int, text: int, frame: int) -> None:
        """Note the text token of `frame`, for which `target` was given, and what the model drew."""
        if self.holds or not self.queue:
            return
        saying = self.queue[0]
        if text not in (self._padding, self._end_of_padding) and text in (target.text, target.replacement):
            self._spoke(saying, frame)
        elif saying.state == "speaking" and saying.said == len(saying.words):
            self._tail += 1
            if draw == self._padding or self._tail == TAIL:
                saying.state, saying.ended = "done", frame + 1
                self.queue.popleft()
                self._clear()
                return
        self._is_announced = text == self._end_of_padding and (saying.state == "speaking" or text == target.text)

    def _spoke(self, saying: Saying, frame: int) -> None:
        if saying.state == "queued":
            saying.state, saying.began = "speaking", frame
        self._token += 1
        if self._token == len(saying.words[saying.said]):
            saying.said, self._token = saying.said + 1, 0

    # Saved and restored.

    def save(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        queue = [{**vars(saying), "words": [list(word) for word in saying.words]} for saying in self.queue]
        return {"queue": queue, "holds": self.holds, "place": [self._token, self._tail, self._is_announced]}

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `save` gave. The texts get new handles."""
        texts = (
            Saying(**{**saying, "words": tuple(tuple(int(token) for token in word) for word in saying["words"])})
            for saying in saved["queue"]
        )
        self.queue, self.holds = deque(texts), saved["holds"]
        self._token, self._tail, self._is_announced = saved["place"]
