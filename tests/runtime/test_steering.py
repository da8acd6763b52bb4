"""Sessions of the real runtime that say, hold and release."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from conversations import CODES, PCM, PERSONA, finish, heard, small_runtime, talk

from pplex.runtime.arrays import Tokens
from pplex.runtime.bundle import Bundle
from pplex.runtime.config import END_OF_PADDING, SILENCE_CODES
from pplex.runtime.errors import SlotError, SteeringError
from pplex.runtime.sampling import Sampling
from pplex.runtime.saying import Saying
from pplex.runtime.session import Runtime, Session
from pplex.runtime.text import TextStream

LETTERS = "abcdefghilmnoprstuwy"  # that the tiny tokenizer has
PADDING = (3, END_OF_PADDING)
SENTENCES, ROUND = 200, 8


def sentence(seed: int) -> str:
    chance = random.Random(seed)
    return " ".join("".join(chance.choices(LETTERS, k=chance.randint(1, 6))) for _ in range(chance.randint(1, 7)))


def words_said(runtime: Runtime, saying: Saying, said: Tokens) -> str:
    """The text of the frames [F, 17] from the text's first word to the first free frame."""
    assert saying.began is not None and saying.ended is not None
    stream = TextStream(runtime.tokenizer)
    return "".join(stream.push(token) for token in said[saying.began : saying.ended, 0].tolist())


@contextmanager
def talking(runtime: Runtime, seeds: range) -> Iterator[list[Session]]:
    sampling = [Sampling(text_temperature=3, text_top_k=512), Sampling(text_top_k=2), Sampling()]
    sessions = [runtime.open(None, "", seed, sampling[seed % 3]) for seed in seeds]
    try:
        yield sessions
    finally:
        for session in sessions:
            session.close()


def say_all(runtime: Runtime, seeds: range) -> tuple[list[Saying], list[Tokens]]:
    """Sessions with these seeds say their sentences side by side, each at its own time; the tokens [F, 17] of each."""
    with talking(runtime, seeds) as sessions:
        said = list[list[Tokens]]([] for _ in seeds)
        sayings = dict[Session, Saying]()
        frame = 0
        while len(sayings) < len(seeds) or not all(saying.is_over for saying in sayings.values()):
            for seed, session in zip(seeds, sessions, strict=True):
                if frame == seed % 16:
                    sayings[session] = session.say(sentence(seed), gap=seed % 4)
            heard = {session: CODES[seed % 9, frame % 300] for seed, session in zip(seeds, sessions, strict=True)}
            for tokens, answer in zip(said, runtime.step_codes(heard).values(), strict=True):
                tokens.append(answer)
            frame += 1
        for tokens, session in zip(said, sessions, strict=True):  # the frame that is sampled, but not yet returned
            tokens.append(session.step_codes(CODES[0, 0]))
        return [sayings[session] for session in sessions], [np.stack(tokens) for tokens in said]


@pytest.mark.slow
def test_two_hundred_sentences_are_said_word_for_word_alone(one: Runtime) -> None:
    for seed in range(SENTENCES):
        (saying,), (said,) = say_all(one, range(seed, seed + 1))
        assert words_said(one, saying, said) == f" {sentence(seed)}" and saying.state == "done", seed


@pytest.mark.slow
def test_two_hundred_sentences_are_said_word_for_word_beside_neighbours(eight: Runtime) -> None:
    for first in range(0, SENTENCES, ROUND):
        seeds = range(first, first + ROUND)
        for seed, saying, said in zip(seeds, *say_all(eight, seeds), strict=True):
            assert words_said(eight, saying, said) == f" {sentence(seed)}", seed
            assert saying.state == "done" and saying.said == len(saying.words)


def test_a_sentence_is_said_alone_as_beside_neighbours(eight: Runtime) -> None:
    together = say_all(eight, range(12, 18))[1]
    for seed, beside in zip(range(12, 18), together, strict=True):
        (alone,) = say_all(eight, range(seed, seed + 1))[1]
        frames = min(len(alone), len(beside)) - 1  # the last one hears something else
        assert np.array_equal(alone[:frames], beside[:frames])


def test_a_greeting_is_the_first_thing_that_is_said(one: Runtime) -> None:
    with one.open("NATF0", PERSONA, seed=7, greeting="good night friend") as session:
        said = talk(session, PCM[0, :40])
    assert said.tokens[0, 0] == END_OF_PADDING and said.tokens[1, 0] not in PADDING
    assert "".join(said.text).startswith(" good night friend")


def test_nothing_is_said_during_a_hold(three: Runtime) -> None:
    with talking(three, range(2, 4)) as (session, neighbour):
        saying = session.say("good night my friend of the house")
        replies = [three.step({session: frame, neighbour: frame}) for frame in PCM[0, :12]]
        assert saying.state == "speaking"
        first = session.hold()
        replies += [three.step({session: frame, neighbour: frame}) for frame in PCM[0, 12:40]]
        free = session.release()
        replies += [three.step({session: frame, neighbour: frame}) for frame in PCM[0, 40:80]]
        said, beside = (heard([each[who] for each in replies]) for who in (session, neighbour))
    assert (first, free) == (13, 41)  # one frame is sampled already when its predecessor is answered
    assert (said.tokens[first:free, 0] == 3).all() and not any(said.text[first:free])
    assert (said.tokens[first:free, 1:9] == SILENCE_CODES).all()
    assert (said.tokens[free:, 1:9] != SILENCE_CODES).any(axis=1).all()
    assert saying.state == "cut" and 0 < saying.said < len(saying.words) and saying.ended == first
    with talking(three, range(2, 4)) as (other, same):
        other.step(PCM[0, 0])  # another neighbour
        other.close()
        assert beside == talk(same, PCM[0, :80])


def test_texts_wait_for_the_end_of_a_hold(one: Runtime) -> None:
    with one.open(None, "", seed=3) as session:
        session.hold()
        session.hold()
        saying = session.say("good night")
        talk(session, PCM[0, :10])
        assert saying.state == "queued"
        session.release()
        session.release()
        said = talk(session, PCM[0, 10:60])
        assert saying.state == "done" and " good night" in "".join(said.text)


def test_an_interrupting_text_cuts_the_others(one: Runtime) -> None:
    with one.open(None, "", seed=3) as session:
        speaking, waiting = session.say("one of the many words of a long story"), session.say("good night")
        before = talk(session, PCM[0, :8])
        third = session.say("stop here", interrupt=True)
        after = talk(session, PCM[0, 8:50])
        assert (speaking.state, waiting.state, third.state) == ("cut", "cut", "done")
    assert " stop here" in "".join(after.text) and "night" not in "".join(before.text + after.text)


def test_orders_end_with_their_session(one: Runtime) -> None:
    session = one.open("NATF0", PERSONA, seed=7)
    saying = session.say("good night")
    session.hold()
    session.close()
    assert saying.state == "cut"
    with pytest.raises(SlotError, match="closed"):
        session.say("good night")
    with one.open("NATF0", PERSONA, seed=7) as new:
        text = talk(new, PCM[0, :20]).tokens[:, 0]
    with one.open("NATF0", PERSONA, seed=7) as new:
        assert np.array_equal(talk(new, PCM[0, :20]).tokens[:, 0], text) and not (text == 3).all()


def test_a_session_without_orders_is_not_changed_by_a_refused_one(one: Runtime) -> None:
    with one.open("NATF0", PERSONA, seed=7) as session:
        for text in ("", "12:30", "x" * 5000):
            with pytest.raises(SteeringError):
                session.say(text)
        session.release()
        talk(session, PCM[0, :50])
        state = session.runtime.stages.replacement.copy()
    assert (state == -1).all()


def test_a_refused_greeting_leaves_the_slot_free(tiny_bundle: Bundle) -> None:
    runtime = small_runtime(tiny_bundle)
    with pytest.raises(SteeringError):
        runtime.open("NATF0", PERSONA, greeting="at 10:30")
    finish(runtime.begin("NATF0", PERSONA, greeting="good night"))
