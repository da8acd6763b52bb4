"""What the two speakers of a made-up dialogue say: a small grammar. Called by trained_dialogues.py."""

from dataclasses import dataclass

import numpy as np

NAMES = ("Anna", "Peter", "Maria", "Tom")
ITEMS = ("parcel", "letter", "bicycle", "lamp", "table", "ticket")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday")
PLACES = ("the station", "the market", "the harbour", "the library", "the old bridge")
NUMBERS = ("two", "three", "four", "five", "seven", "nine", "ten")
COLOURS = ("red", "blue", "green", "black", "white")

PERSONAS = (
    "You enjoy having a good conversation.",
    "You are a wise and friendly teacher.",
    "You work for a small shop and your name is {name}.",
    "You answer questions about trains and parcels.",
)
OPENINGS = ("Hello, this is {name}. How can I help you today?", "Good morning, {name} here. What can I do for you?")
HEARD = ("okay", "yes", "right", "I see")  # by the user, while the agent speaks
LISTENING = ("yeah", "sure")  # by the agent, while the user speaks
CLOSINGS = ("Is there anything else I can do for you?", "Thank you, and have a great day.", "Just call me again.")
UNCLEAR = (
    "Sorry, could you say that again please?",
    "Let me think about that for a moment.",
    "That sounds lovely. Please tell me more about it.",
)


@dataclass(frozen=True)
class Exchange:
    """A question of the user, and the agent's reply."""

    question: str
    reply: str


_EXCHANGES = (
    ("When does my {item} arrive?", "Your {item} arrives on {day} at {number}."),
    ("Can you bring the {colour} {item} on {day}?", "Yes, we bring the {colour} {item} on {day} morning."),
    ("How do I get to {place}?", "Take bus number {number}, and get off at {place}."),
    ("What does the {colour} {item} cost?", "The {colour} {item} costs {number} dollars, and it ships on {day}."),
    ("Is {place} open on {day}?", "Yes, {place} opens on {day} at {number}."),
    ("I lost my {item} near {place}.", "I am sorry to hear that. Somebody found a {colour} {item} near {place}."),
)


def exchange(random: np.random.Generator) -> Exchange:
    """A question and its reply, about the same things."""
    words = {
        "item": ITEMS, "day": DAYS, "place": PLACES, "number": NUMBERS, "colour": COLOURS,
    }  # fmt: skip
    chosen = {key: str(random.choice(values)) for key, values in words.items()}
    question, reply = _EXCHANGES[random.integers(len(_EXCHANGES))]
    return Exchange(question.format(**chosen), reply.format(**chosen))


def one_of(random: np.random.Generator, texts: tuple[str, ...], name: str = "") -> str:
    return str(random.choice(texts)).format(name=name)


def corpus(count: int, seed: int) -> list[str]:
    """Lines that hold every word of the grammar, to train a tokenizer on."""
    random = np.random.default_rng(seed)
    fixed = [*PERSONAS, *OPENINGS, *HEARD, *LISTENING, *CLOSINGS, *UNCLEAR]
    lines = 10 * ([f"<system> {text} <system>" for text in PERSONAS] + fixed)
    lines = [line.format(name=name) for line in lines for name in NAMES]
    for _ in range(count):
        pair = exchange(random)
        lines += [pair.question, pair.reply]
    return lines
