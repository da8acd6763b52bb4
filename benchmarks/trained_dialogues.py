"""Made-up dialogues between a user and the agent: the sound of both, and the agent's text by frame. Called by trained.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from trained_espeak import Manner, Said, say
from trained_sentences import (
    CLOSINGS,
    HEARD,
    LISTENING,
    NAMES,
    OPENINGS,
    PERSONAS,
    UNCLEAR,
    exchange,
    one_of,
)

from pplex.runtime.arrays import Pcm, Tokens
from pplex.runtime.config import END_OF_PADDING, SAMPLE_RATE_HZ
from pplex.validate.speech.spoken import spoken

Encode = Callable[[str], list[int]]  # text -> tokens

# The agent's voices, with the names of the released ones; each has one of NAMES.
VOICES = {
    "NATF0": Manner("en-us+f2", 170, 55),
    "NATM0": Manner("en-us+m3", 165, 40),
    "NATF2": Manner("en-us+Annie", 175, 60),
    "VARM0": Manner("en-gb-scotland+m7", 170, 35),
}
USERS = ("en-us+f5", "en-us+max", "en-us+m1", "en-us+linda", "en-gb-scotland+f4", "en-us+Mario", "en-us+f3", "en-us+m5")
VOICE_TEXT = "Good morning. What would you like to talk about today? I am always here."

FRAME_S = 0.08
BABBLE, PAUSED, LONG, BACKCHANNEL, INTERRUPTED, CLOSED = 0.2, 0.15, 0.15, 0.2, 0.15, 0.3  # how often
STOPS_S = 0.4  # after the user interrupts
FADE_S = 0.02


@dataclass(frozen=True)
class Dialogue:
    """pcm [F, 1920] of both speakers, the agent's text tokens [F], its voice, and its persona."""

    agent: Pcm
    user: Pcm
    text: Tokens
    voice: str
    persona: str


@dataclass
class _Track:
    """One speaker's sound, and the words with their times."""

    pcm: Pcm
    words: list[tuple[float, str]] = field(default_factory=list)

    def add(self, at_s: float, said: Said, until_s: float = np.inf) -> float:
        """Add speech, cut at `until_s`; returns its end in seconds."""
        start, count = round(at_s * SAMPLE_RATE_HZ), len(said.pcm)
        if until_s < np.inf:
            count = min(count, max(0, round(until_s * SAMPLE_RATE_HZ) - start))
        count = max(0, min(count, len(self.pcm) - start))
        pcm, fade = said.pcm[:count].copy(), min(count, round(FADE_S * SAMPLE_RATE_HZ))
        if count < len(said.pcm) and fade:
            pcm[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        self.pcm[start : start + count] += pcm
        end_s = at_s + count / SAMPLE_RATE_HZ
        starts = zip(said.starts_s, said.text.split(), strict=True)
        self.words += [(at_s + start_s, word) for start_s, word in starts if at_s + start_s < end_s - FADE_S]
        return end_s


def dialogues(count: int, frames: int, encode: Encode, padding: int, seed: int) -> Iterator[Dialogue]:
    """`count` dialogues of `frames` frames. Equal seeds give equal dialogues, with the same version of espeak-ng."""
    for index in range(count):
        yield _dialogue(np.random.default_rng([seed, index]), frames, encode, padding)


def voice_speech(voice: str, frames: int) -> Pcm:
    """The recording [frames, 1920] of a voice prompt."""
    pcm = say(VOICE_TEXT, VOICES[voice]).pcm
    size = round(FRAME_S * SAMPLE_RATE_HZ)
    return np.resize(pcm, frames * size).reshape(frames, size)


def _dialogue(random: np.random.Generator, frames: int, encode: Encode, padding: int) -> Dialogue:
    voice = str(random.choice([*VOICES]))
    name = NAMES[[*VOICES].index(voice)]
    samples = round(frames * FRAME_S * SAMPLE_RATE_HZ)
    agent, user = (_Track(np.zeros(samples, np.float32)) for _ in range(2))
    _Talk(random, agent, user, VOICES[voice], name).run(frames * FRAME_S)
    user.pcm *= np.float32(random.uniform(0.4, 1))
    user.pcm += random.normal(0, random.uniform(0, 0.002), samples).astype(np.float32)
    return Dialogue(
        agent.pcm.reshape(frames, -1),
        user.pcm.reshape(frames, -1),
        aligned(agent.words, frames, encode, padding),
        voice,
        one_of(random, PERSONAS, name),
    )


class _Talk:
    """Fills two tracks: the user asks, the agent replies, one listens while the other speaks."""

    def __init__(self, random: np.random.Generator, agent: _Track, user: _Track, own: Manner, name: str):
        self.random, self.agent, self.user, self.own, self.name = random, agent, user, own, name
        self.other = Manner(str(random.choice(USERS)), int(random.integers(150, 200)), int(random.integers(30, 70)))
        self.now_s = float(random.uniform(0.2, 0.6))

    def run(self, seconds: float) -> None:
        if self.random.random() < 0.6:
            self.now_s = self.reply(one_of(self.random, OPENINGS, self.name))
        while self.now_s < seconds:
            self.now_s += self.random.uniform(0.3, 1.2)
            reply = self.ask()
            self.now_s += self.random.uniform(0.2, 0.5)
            self.now_s = self.reply(reply)

    def ask(self) -> str:
        """The user's turn; returns what the agent replies."""
        if self.random.random() < BABBLE:
            seconds = float(self.random.uniform(1.5, 5))
            pcm = spoken(seconds, int(self.random.integers(1 << 30)))
            self.now_s = self.user.add(self.now_s, Said("", pcm, ()))
            return one_of(self.random, UNCLEAR)
        pair = exchange(self.random)
        parts = [pair.question]
        if self.random.random() < LONG:
            parts.insert(0, exchange(self.random).reply)
            parts.insert(0, exchange(self.random).reply)
        elif self.random.random() < PAUSED:
            words = pair.question.split()
            parts = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
        for index, part in enumerate(parts):
            if index:
                self.now_s += self.random.uniform(0.1, 0.2) if len(parts) == 3 else self.random.uniform(0.6, 1.3)
            if index == 1 and len(parts) == 3:
                self.agent.add(self.now_s + 0.3, say(one_of(self.random, LISTENING), self.own))
            self.now_s = self.user.add(self.now_s, say(part, self.other))
        return pair.reply

    def reply(self, text: str) -> float:
        """The agent's turn; returns its end."""
        if self.random.random() < CLOSED:
            text = f"{text} {one_of(self.random, CLOSINGS)}"
        said, listens = say(text, self.own), self.random.random()
        middle_s = self.now_s + self.random.uniform(0.3, 0.7) * said.seconds
        if listens < INTERRUPTED:
            end_s = self.agent.add(self.now_s, said, middle_s + STOPS_S)
            self.now_s = middle_s
            again = self.ask()
            self.now_s = max(self.now_s, end_s) + self.random.uniform(0.2, 0.5)
            return self.agent.add(self.now_s, say(again, self.own))
        if listens < INTERRUPTED + BACKCHANNEL:
            self.user.add(middle_s, say(one_of(self.random, HEARD), self.other))
        return self.agent.add(self.now_s, said)


def aligned(words: list[tuple[float, str]], frames: int, encode: Encode, padding: int) -> Tokens:
    """Text tokens [F]: a word's tokens from its first frame on, EPAD in the frame before, padding elsewhere."""
    text = np.full(frames, padding, np.int64)
    free = 0
    for start_s, word in sorted(words):
        at = max(free, int(start_s / FRAME_S))
        tokens = encode(word)
        if at + len(tokens) > frames:
            break
        if at > free:
            text[at - 1] = END_OF_PADDING
        text[at : at + len(tokens)] = tokens
        free = at + len(tokens)
    return text
