"""The grade: the worst of the figures decides, and more drift never gives a better word."""

import pytest

from pplex.validate.grade import BOUNDS, GRADES, grade_of
from pplex.validate.report.schema import Grade, Measure, Section, Tolerance

WORDS = [*GRADES]
FINE = {"drift.text_kl": 1e-9, "drift.audio_kl": 1e-9, "drift.text_top1": 1.0, "drift.audio_top1": 1.0}


def graded(values: dict[str, float | None], *failing: Measure) -> Grade | None:
    measures = tuple(Measure(name, value, "", name) for name, value in {**FINE, **values}.items())
    return grade_of([Section("drift", "Drift", "?", (*measures, *failing))])


def word(values: dict[str, float | None], *failing: Measure) -> str:
    grade = graded(values, *failing)
    assert grade is not None
    return grade.word


def test_no_drift_is_indistinguishable_and_needs_no_reason() -> None:
    assert graded({}) == Grade("indistinguishable", GRADES["indistinguishable"], (), heard=False)


@pytest.mark.parametrize("name", [*BOUNDS])
def test_each_figure_alone_gives_every_grade_and_never_a_better_one_for_more_damage(name: str) -> None:
    bounds = BOUNDS[name]
    first, second, third = bounds.limits
    step = -1e-6 if bounds.least else 1e-6  # past the limit
    values = (first, first + step, second, second + step, third, third + step)
    found = [WORDS.index(word({name: value})) for value in values]
    assert found == [0, 1, 1, 2, 2, 3]


def test_the_worst_figure_decides_and_is_the_reason() -> None:
    grade = graded({"drift.text_kl": 0.004, "drift.audio_kl": 0.9})
    assert grade is not None
    assert (grade.word, grade.reasons) == ("broken", ("divergence of audio 0.9",))


def test_a_figure_that_is_not_a_number_is_broken() -> None:
    assert word({"drift.audio_kl": float("nan")}) == "broken"


def failing(name: str) -> Measure:
    return Measure(name, 2.0, "", name, Tolerance(1.0, "a test"))


@pytest.mark.parametrize("name", ["health.clipping", "health.dead_air"])
def test_bad_sound_is_audible_however_small_the_drift(name: str) -> None:
    grade = graded({}, failing(name))
    assert grade is not None
    assert grade.word == "audible" and grade.reasons == (f"{name} 2",)


BEHAVIOUR = ("conversation.takeover_rate", "conversation.stop_ms", "health.looped_text")


def test_three_figures_of_behaviour_are_audible_beside_a_small_drift_and_two_are_chance() -> None:
    small: dict[str, float | None] = {"drift.text_kl": 0.01}
    assert word(small, *map(failing, BEHAVIOUR[:2])) == "small drift"
    assert word(small, *map(failing, BEHAVIOUR)) == "audible"


def test_other_turns_without_drift_are_chance() -> None:
    assert word({}, *map(failing, BEHAVIOUR)) == "indistinguishable"


def test_behaviour_does_not_improve_a_broken_model() -> None:
    assert word({"drift.text_kl": 5.0}, *map(failing, BEHAVIOUR)) == "broken"


@pytest.mark.parametrize("name", ["health.non_finite", "drift.window", "drift.sampled"])
def test_sound_that_is_not_a_number_and_a_wrong_window_are_broken(name: str) -> None:
    assert word({}, failing(name)) == "broken"


def test_a_figure_that_was_not_measured_does_not_count() -> None:
    assert word({"conversation.text_surprise": None}) == "indistinguishable"


def test_the_grade_says_whether_conversations_were_part_of_it() -> None:
    grade = graded({"conversation.takeover_rate": 1.0})
    assert grade is not None and grade.heard


def test_without_the_drift_there_is_no_grade() -> None:
    assert grade_of([Section("codec", "Codec", "?", (Measure("codec.si_sdr_db", 80.0, "dB", "?"),))]) is None
