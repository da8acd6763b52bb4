"""Dialogues for calibration: who speaks when, personas, and what the agent says. Called by `export.conversations`.

Nothing here is in the history that `validate` and `bench precision` measure with, so their figures are of unheard speech.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.config import END_OF_PADDING, ModelConfig
from pplex.runtime.text import Tokenizer

Mask = npt.NDArray[np.bool_]

TURN_FRAMES = (12, 50)  # 1 to 4 seconds
PAUSE_FRAMES = (-4, 9)  # between two turns; below 0 both speak
BACKCHANNEL_FRAMES = 5  # "uh-huh" of the one who listens
WORD_PAUSE_FRAMES = (1, 4)  # with the words themselves, two of three text tokens are padding

PERSONAS = (
    "You are a wise and friendly teacher. Answer questions or give advice in a clear and engaging way.",
    "You work for CitySan Services, which is a waste management company, and your name is Ayelen Lucero.",
    "You are Marco, a waiter in a small Italian restaurant. Today's special is mushroom risotto for 18 dollars.",
    "You help callers of a travel agency. Flights to Lisbon leave at 7:40 and 15:25. Ask for the number of travellers.",
    "You are a calm nurse on a night line. Ask what hurts, since when, and whether there is fever.",
    "You enjoy history. Talk about old ships, and be honest if you do not know something.",
    "You are the voice of a bank. Verify the date of birth before you give a balance. Never guess a number.",
    "You are curious and a little shy. Keep your answers short, and let the other person finish.",
)

SENTENCES = (
    "Sure, what would you like to know about it?",
    "I checked twice, and the parcel left our warehouse on Tuesday evening.",
    "Oh no, that sounds painful! When did it start?",
    "We have a table for four at half past seven, or a smaller one outside.",
    "Honestly, I have never been to Norway, but my brother keeps talking about the fjords.",
    "Could you spell your last name, please? Thanks, that was K, O, W, A, L, S, K, I.",
    "It costs 249 euros a year, and you may cancel whenever you want.",
    "Right. Then you turn left behind the library and walk for another five minutes.",
    "Mm-hmm, go on.",
    "The reason is simple: warm air rises, so the upper rooms heat up first.",
    "Let us begin with the easy part, and then try something more difficult together.",
    "I am sorry, I did not catch that. Which colour did you say?",
    "Yes! And the second album was even better, because the drummer had joined by then.",
    "Your appointment with Doctor Alvarez is on March 3rd at 11 a.m.",
    "If the red light blinks, hold the power button until it turns green.",
    "Well, it depends. Do you prefer mountains or the sea?",
    "No worries, take your time.",
    "That brings the total to sixty-two dollars and fifteen cents, tax included.",
    "Back then, sailors measured their speed with a rope and a piece of wood.",
    "Great, everything is set. Have a lovely evening and drive safely.",
)


@dataclass(frozen=True)
class Dialogue:
    """Which frames the agent and the user speak in, [F] each, and the agent's text tokens [F, 1]."""

    agent: Mask
    user: Mask
    text: Tokens

    def heard(self, agent: Pcm, user: Pcm) -> tuple[Pcm, Pcm]:
        """Both recordings [F, 1920], silent where the other one has the turn."""
        return agent * self.agent[:, None], user * self.user[:, None]


def dialogue(config: ModelConfig, tokenizer: Tokenizer, frames: int, seed: int) -> Dialogue:
    """The dialogue number `seed`: turns with pauses or overlaps between them, and words in the agent's turns."""
    random = np.random.default_rng([seed, frames])
    speakers = np.zeros((2, frames), np.bool_)
    place, turn = 0, seed % 2
    while place < frames:
        end = place + int(random.integers(*TURN_FRAMES))
        speakers[turn, place:end] = True
        middle = int(random.integers(place, end))
        speakers[1 - turn, middle : middle + BACKCHANNEL_FRAMES] |= random.random() < 0.3
        place, turn = max(end + int(random.integers(*PAUSE_FRAMES)), place + 1), 1 - turn
    words = _words(tokenizer, random.permutation(len(SENTENCES)).tolist())
    agent, user = speakers
    return Dialogue(agent, user, _said(config, agent, words, random))


def _words(tokenizer: Tokenizer, order: Sequence[int]) -> Iterator[list[int]]:
    """The tokens of each word, without end."""
    while True:
        for sentence in order:
            for word in SENTENCES[sentence].split():
                yield tokenizer.encode(word)


def _said(config: ModelConfig, speaks: Mask, words: Iterator[list[int]], random: np.random.Generator) -> Tokens:
    """Text tokens [F, 1]: end of padding, a word's tokens and padding in turn where the agent speaks, otherwise padding."""
    text, place = np.full((len(speaks), 1), config.text_padding, np.int64), 0
    while place < len(speaks):
        if not speaks[place]:
            place += 1
            continue
        word = [END_OF_PADDING, *next(words)][: len(speaks) - place]
        text[place : place + len(word), 0] = word
        place += len(word) + int(random.integers(*WORD_PAUSE_FRAMES))
    return text
