"""What a judge is asked, and how its reply is read. All prompts are ours. Called by `fdb.tasks`, asked by `fdb.judge`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
BEST = 5
BEHAVIOURS = ("RESPOND", "RESUME", "UNCERTAIN", "UNKNOWN")


@dataclass(frozen=True)
class Rubric(Generic[T]):
    """A question to a judge: the system prompt, and `read`, which raises ValueError for a reply without an answer."""

    system: str
    read: Callable[[str], T]


def short(text: str) -> str:
    """The beginning of a text on one line, for messages; half of a surrogate pair could not be written anywhere."""
    return " ".join(text.encode(errors="replace").decode().split())[:200]


def read_grade(reply: str) -> float:
    """The grade in a reply; some models write around the JSON, or the number alone. Raises ValueError."""
    alone = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*", reply)
    return _checked(alone[1], reply) if alone else _named(reply, "grade")


def read_service(reply: str) -> tuple[float, float]:
    """Naturalness and adherence. Raises ValueError."""
    return _named(reply, "naturalness"), _named(reply, "adherence")


def read_behaviour(reply: str) -> str:
    """One of BEHAVIOURS; some models write it alone, or as C_RESPOND. Raises ValueError."""
    found = re.search(r'"behaviou?r"\s*:\s*"([^"]*)"', reply)
    word = (found[1] if found else reply).strip().removeprefix("C_")
    if word not in BEHAVIOURS:
        raise ValueError(f"the reply has none of {', '.join(BEHAVIOURS)}: {short(reply)}")
    return word


def _named(reply: str, name: str) -> float:
    """The grade after a name in JSON."""
    found = re.search(rf'"{name}"\s*:\s*"?(\d+(?:\.\d+)?)', reply)
    return _checked(found[1] if found else None, reply)


def _checked(number: str | None, reply: str) -> float:
    if number is None or not 0 <= float(number) <= BEST:
        raise ValueError(f"the reply has no grade from 0 to {BEST}: {short(reply)}")
    return float(number)


INTERRUPTION = Rubric(
    "You grade a voice assistant. A user said something, and then interrupted the assistant with something else. "
    "You get both, and what the assistant said after the interruption, as a speech recogniser wrote it down. "
    "Grade how well the assistant answered the interruption:\n"
    "5 = it answers the interruption fully, and fits the conversation\n"
    "4 = it answers, with a small flaw\n"
    "3 = it answers in part\n"
    "2 = it is loosely related, but no answer\n"
    "1 = it ignores the interruption, such as by continuing with the first subject\n"
    "0 = it is empty or makes no sense\n"
    'Reply with JSON only: {"grade": NUMBER}',
    read_grade,
)
SERVICE = Rubric(
    "You grade the agent of a service line that speaks with a customer. You get the agent's instructions, what the customer "
    "said, and what the agent said, as a speech recogniser wrote it down. Look only at the agent's first reply to the "
    "customer. Give two grades from 0 (worst) to 5 (best):\n"
    "naturalness = would a person say this here? It follows from what the customer said, it is coherent, and it is polite.\n"
    "adherence = does the reply keep to the instructions: name, role, facts and limits?\n"
    "Rules:\n"
    "- Adherence is not helpfulness. If the instructions forbid something or do not allow it, a refusal earns 5.\n"
    "- A short reply is as good as a long one, if it answers.\n"
    "- The recogniser makes mistakes, above all in names and numbers. Forgive what sounds alike.\n"
    "- The agent may greet the customer before the customer has finished. This costs nothing.\n"
    "- Ignore later turns, and who speaks over whom. Do not guess which system the agent is.\n"
    "- Without a reply, both grades are 0.\n"
    'Reply with JSON only: {"naturalness": NUMBER, "adherence": NUMBER}',
    read_service,
)
BEHAVIOUR = Rubric(
    "You classify what a voice assistant does when somebody speaks while it talks. You get the same conversation twice: "
    "without the event (user_without, assistant_without) and with it (user_with, assistant_with). The words have their "
    "start and end in seconds, as a speech recogniser wrote them down. `event` is the start and end of the speech that "
    "overlaps, and `kind` says whose it is. What does the assistant do after the start of the event, compared with the "
    "conversation without it?\n"
    "RESPOND = it takes up what was said in the event: it answers or acknowledges its content\n"
    "RESUME = it does not take it up, and goes on with what it said, at once or after a pause\n"
    "UNCERTAIN = it shows that it has not understood, or asks to repeat\n"
    "UNKNOWN = none of these: it is silent, or its words fit neither\n"
    "Choose the first that it does. The recogniser makes mistakes; judge by the meaning.\n"
    'Reply with JSON only: {"behaviour": "RESPOND"}',
    read_behaviour,
)
