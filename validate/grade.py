"""The grade of a bundle in the user's words, from a report's figures: called by `validate.validation` and `validate.short`.

Limits and their measurements: docs/validation.md, "The grade".
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pplex.validate.report.schema import Grade, Measure, Section
from pplex.validate.report.wording import figure
from pplex.validate.sections.conversation import METRICS
from pplex.validate.sections.health import SYMPTOMS

GRADES: Mapping[str, str] = {
    "indistinguishable": "no figure differs from the original model by more than chance",
    "small drift": "single words and tones differ, and the agent behaves the same",
    "audible": "expect other words, other tones, and some unfitting or badly timed replies",
    "broken": "the agent says other things at other times than the model: do not use it",
}
FINE, SMALL, AUDIBLE, BROKEN = range(len(GRADES))


@dataclass(frozen=True)
class Bounds:
    """The largest values of a measure for each grade but the last; with `least`, the smallest ones."""

    what: str
    limits: tuple[float, float, float]
    least: bool = False

    def level(self, value: float) -> int:
        """The grade's place in GRADES. A value that is not a number is broken."""
        if math.isnan(value):
            return BROKEN
        return sum(value < limit if self.least else value > limit for limit in self.limits)


BOUNDS: Mapping[str, Bounds] = {
    "drift.text_kl": Bounds("divergence of text", (0.001, 0.02, 0.2)),
    "drift.audio_kl": Bounds("divergence of audio", (0.002, 0.03, 0.5)),
    "drift.text_top1": Bounds("same most probable text", (0.99, 0.975, 0.92), least=True),
    "drift.audio_top1": Bounds("same most probable code", (0.95, 0.8, 0.4), least=True),
    "conversation.text_surprise": Bounds("surprise at its text", (0.1, 0.2, 0.5)),
    "conversation.audio_surprise": Bounds("surprise at its codes", (0.3, 0.5, 1.0)),
}
NEEDED = ("drift.text_kl", "drift.audio_kl")  # without them nothing is known about what the model expects to say
FATAL = frozenset(("health.non_finite", "drift.window", "drift.sampled"))
SOUND = frozenset(f"health.{name}" for name in ("clipping", "dc_offset", "dead_air", "longest_dead_air"))
TURNS = frozenset(f"conversation.{metric.name}" for metric in METRICS.values())
BEHAVIOUR = TURNS | {f"health.{name}" for name in SYMPTOMS} - SOUND - FATAL
CHANCE = 2  # so many figures of behaviour may be worse than the reference by chance: there are few events


def grade_of(sections: Iterable[Section]) -> Grade | None:
    """The worst grade that a figure gives, and the figures that give it; None without the section of drift."""
    measures = {measure.name: measure for section in sections for measure in section.measures}
    if not measures.keys() >= {*NEEDED}:
        return None
    found = [*_levels(measures)]
    worst = max(level for level, _ in found)
    word, meaning = [*GRADES.items()][worst]
    reasons = tuple(why for level, why in found if level == worst) if worst else ()
    return Grade(word, meaning, reasons, heard=any(name in measures for name in TURNS))


def _levels(measures: Mapping[str, Measure]) -> Iterator[tuple[int, str]]:
    """A level and its reason for each figure that counts."""
    drift = [*_by_bounds(measures)]
    yield from drift
    worse = {name: _shown(name, measure) for name, measure in measures.items() if not measure.passed}
    yield from ((BROKEN, why) for name, why in worse.items() if name in FATAL)
    yield from ((AUDIBLE, why) for name, why in worse.items() if name in SOUND)
    behaviour = [why for name, why in worse.items() if name in BEHAVIOUR]
    if len(behaviour) > CHANCE and max(level for level, _ in drift) > FINE:
        yield from ((AUDIBLE, why) for why in behaviour)


def _by_bounds(measures: Mapping[str, Measure]) -> Iterator[tuple[int, str]]:
    for name, bounds in BOUNDS.items():
        measure = measures.get(name)
        if measure is not None and measure.value is not None:
            yield bounds.level(measure.value), _shown(bounds.what, measure)


def _shown(what: str, measure: Measure) -> str:
    return f"{what} {figure(measure.value, 3)} {measure.unit}".rstrip()
