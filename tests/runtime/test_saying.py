"""The rhythm of a text that is said: a simulated model draws padding and words, and every word is said once, in order."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplex.runtime.delays import FREE
from pplex.runtime.errors import SteeringError
from pplex.runtime.saying import LONGEST_GAP, MAX_PADDING, MAX_QUEUE, PAUSE, TAIL, Saying, Speaker

PAD, EPAD, OTHER = 3, 0, 999  # OTHER: what the model would say itself
WORDS = ((10, 11), (20,), (30, 31, 32))
SPOKEN = [token for word in WORDS for token in word]

Draw = Callable[[int], int]


class Model:
    """One session: draws tokens by `draw(frame)` and lets the speaker force and replace them, as the graph does."""

    def __init__(self, draw: Draw):
        self.speaker, self._draw, self.text, self.silent = Speaker(PAD, EPAD), draw, list[int](), 0

    def step(self, frames: int = 1) -> None:
        for _ in range(frames):
            frame, draw = len(self.text), self._draw(len(self.text))
            target = self.speaker.target(self.silent)
            token = draw
            if target.replacement != FREE and draw not in (PAD, EPAD):
                token = target.replacement
            if target.text != FREE:
                token = target.text
            self.speaker.take(target, draw, token, frame)
            self.silent = self.silent + 1 if token in (PAD, EPAD) else 0
            self.text.append(token)

    def say(self, **settings: object) -> Saying:
        saying = Saying("text", WORDS, **settings)  # type: ignore[arg-type]
        self.speaker.add(saying)
        return saying

    def until_over(self, saying: Saying, most: int = 500) -> list[int]:
        """The tokens from the first word to the first free frame."""
        while not saying.is_over and len(self.text) < most:
            self.step()
        assert saying.is_over and saying.began is not None
        return self.text[saying.began : saying.ended]


def words(text: list[int]) -> list[int]:
    return [token for token in text if token not in (PAD, EPAD)]


def rhythm(seed: int, padding: float) -> Draw:
    """Padding with this probability, else a word; half of the padding before a word is EPAD."""
    chance = random.Random(seed)
    return lambda frame: chance.choice([PAD, EPAD]) if chance.random() < padding else OTHER


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(0, 12), st.integers(0, 20))
def test_all_words_are_said_once_and_in_order(seed: int, padding: float, gap: int, before: int) -> None:
    model = Model(rhythm(seed, padding))
    model.step(before)
    saying = model.say(gap=gap)
    text = model.until_over(saying)
    assert words(text) == SPOKEN and saying.state == "done" and saying.said == len(WORDS)
    starts = [text.index(word[0]) for word in WORDS]
    ends = [text.index(word[-1]) for word in WORDS]
    gaps = [start - end - 1 for start, end in zip(starts[1:], ends[:-1], strict=True)]
    assert all(gap <= pause <= max(MAX_PADDING, gap + 1) for pause in gaps)
    assert all(text[start : start + len(word)] == list(word) for word, start in zip(WORDS, starts, strict=True))
    tail = text[ends[-1] + 1 :]
    assert 1 <= len(tail) <= TAIL and set(tail) == {PAD}


def test_a_word_is_announced_and_forced_at_once() -> None:
    model = Model(lambda frame: OTHER)
    model.step(5)
    saying = model.say()
    model.step(2)
    assert model.text[5:] == [EPAD, WORDS[0][0]] and (saying.state, saying.began) == ("speaking", 6)


def test_a_model_that_only_pads_gets_the_next_word_after_eight_frames() -> None:
    text = (model := Model(lambda frame: PAD)).until_over(model.say())
    assert text == [10, 11, *[PAD] * (MAX_PADDING - 1), EPAD, 20, *[PAD] * (MAX_PADDING - 1), EPAD, 30, 31, 32, PAD]


def test_the_models_own_padding_stays_and_its_words_are_replaced() -> None:
    drawn = [OTHER, OTHER, OTHER, PAD, EPAD, OTHER, PAD, PAD, OTHER]
    model = Model(lambda frame: drawn[frame] if frame < len(drawn) else PAD)
    assert model.until_over(model.say()) == [10, 11, PAD, EPAD, 20, PAD, PAD, 30, 31, 32, PAD]


def test_pause_waits_until_the_agent_has_said_nothing_for_a_while() -> None:
    model = Model(lambda frame: OTHER if frame < 9 else PAD)
    model.step(4)
    saying = model.say(when="pause")
    model.until_over(saying)
    assert model.text[: 9 + PAUSE + 2] == [OTHER] * 9 + [PAD] * PAUSE + [EPAD, 10] and saying.began == 9 + PAUSE + 1


def test_turn_takes_the_place_of_what_the_model_would_say_next() -> None:
    model = Model(lambda frame: OTHER if frame < 9 or frame >= 60 else PAD)
    saying = model.say(when="turn")
    model.step(60)
    assert saying.state == "queued" and OTHER not in model.text[9:60]
    model.step(2)
    assert model.text[60:] == [10, 11] and saying.began == 60


def test_texts_are_said_in_the_order_of_the_orders() -> None:
    model = Model(rhythm(1, 0.6))
    first, second = model.say(), model.say()
    model.until_over(second)
    assert first.ended is not None and second.began is not None and first.ended < second.began
    assert words(model.text) == SPOKEN * 2


def test_a_cut_text_counts_its_whole_words() -> None:
    model = Model(lambda frame: OTHER)
    saying, waiting = model.say(), model.say()
    model.step(5)  # EPAD 10 11 20 30
    model.speaker.cut(5, queued=False)
    assert (saying.state, saying.said, saying.ended) == ("cut", 2, 5) and waiting.state == "queued"
    model.speaker.cut(5, queued=True)
    model.step()
    assert waiting.state == "cut" and model.text[-1] == OTHER and model.speaker.is_idle


def test_a_hold_pads_and_keeps_what_waits() -> None:
    model = Model(lambda frame: OTHER)
    saying, waiting = model.say(), model.say()
    model.step(3)
    model.speaker.cut(3, queued=False)
    model.speaker.holds = True
    model.step(20)
    assert model.text[3:] == [PAD] * 20 and saying.state == "cut"
    model.speaker.holds = False
    assert words(model.until_over(waiting)) == SPOKEN


@given(st.integers(0, 1000), st.integers(0, 40))
def test_a_saved_speaker_goes_on_in_the_same_way(seed: int, at: int) -> None:
    model, other = Model(rhythm(seed, 0.5)), Model(rhythm(seed, 0.5))
    for each in (model, other):
        each.say(gap=1)
        each.say(when="pause")
        each.step(at)
    saved, other.speaker = other.speaker.save(), Speaker(PAD, EPAD)
    other.speaker.restore(saved)
    for each in (model, other):
        each.step(60)
    assert model.text == other.text


def test_too_many_texts_and_unknown_settings_are_refused() -> None:
    model = Model(lambda frame: OTHER)
    for _ in range(MAX_QUEUE):
        model.say()
    with pytest.raises(SteeringError, match="queued already"):
        model.say()
    with pytest.raises(SteeringError, match="must be now, pause, turn"):
        model.say(when="soon")
    for gap in (-1, LONGEST_GAP + 1):
        with pytest.raises(SteeringError, match="0 to 50"):
            model.say(gap=gap)
