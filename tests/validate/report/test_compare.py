"""Two reports side by side: values, ratios, verdicts, and warnings where they cannot be compared."""

import json
from dataclasses import replace

import pytest
from reports import graded, hostile, other, realistic

from pplex.validate.report.compare import Comparison, Pair, compare
from pplex.validate.report.schema import Measure, Report, Section, Tolerance


@pytest.fixture(scope="module")
def both() -> Comparison:
    return compare(realistic(), other())


def pair(a: float | None, b: float | None, tolerance: Tolerance | None = None) -> Pair:
    return Pair("m", Measure("m", a, "s", "", tolerance), Measure("m", b, "s", "", tolerance))


def test_measures_are_paired_by_name_and_each_appears_once(both: Comparison) -> None:
    names = [pair.name for pair in both.pairs]
    assert len(names) == len(set(names))
    assert set(names) == {m.name for report in (realistic(), other()) for m in report.measures}
    pairs = {pair.name: pair for pair in both.pairs}
    assert pairs["drift.same_audio"].values == ("0.9412", "0.98")
    assert [v.word for v in pairs["drift.same_audio"].verdicts] == ["FAILED", "passed"]
    assert pairs["drift.text_kl"].ratio == pytest.approx(0.0013 / 0.00021)


def test_each_side_has_its_grade() -> None:
    one, two = compare(graded(), realistic()).summary[:2]
    assert one.endswith(", grade audible") and "grade" not in two
    assert compare(graded(), realistic()).to_dict()["a"]["grade"]["word"] == "audible"


def test_measures_of_only_one_report_are_marked(both: Comparison) -> None:
    pairs = {pair.name: pair for pair in both.pairs}
    assert (pairs["speed.frame_ms"].values, pairs["speed.frame_ms"].change) == (("21.37 ms", "-"), "only A")
    assert (pairs["memory.session"].values, pairs["memory.session"].change) == (("-", "812.5 MB"), "only B")
    assert [group.key for group in both.groups] == ["graphs", "drift", "conversation", "speed", "memory"]


@pytest.mark.parametrize(
    "a, b, change",
    [
        (2.0, 3.0, "1.5 times"),
        (2.0, 2.0, "same"),
        (0.0, 0.5, "+0.5"),
        (0.5, 0.0, "-0.5"),
        (-1.0, 1.0, "+2"),
        (1.0, None, ""),
        (1.0, float("nan"), ""),
        (float("inf"), 1.0, ""),
        (1e-300, 1e300, "+1e300"),
    ],
)
def test_a_change_is_a_ratio_or_a_difference(a: float | None, b: float | None, change: str) -> None:
    assert pair(a, b).change == change


def test_a_share_changes_by_a_difference() -> None:
    assert pair(0.999, 0.95, Tolerance(0.9, "", least=True)).change == "-0.049"


def test_verdicts_that_changed_are_named_first(both: Comparison) -> None:
    assert both.changed == {
        "Passed in A, failed in B": ["drift.text_kl"],
        "Failed in A, no tolerance in B": ["graphs.temporal.ring_error"],
        "Failed in A, passed in B": ["graphs.temporal.layer_error", "drift.same_audio"],
    }
    head = both.to_text().split("\n\n")[0]
    assert head.startswith("A: personaplex-7b-int8, FAILED, outside 4 of 9") and "failed in B: drift.text_kl" in head


def test_a_check_that_b_no_longer_makes_is_named() -> None:
    held = Section("s", "S", "?", (Measure("m", 0.5, "", "", Tolerance(1.0, "")),))
    loose = replace(held, measures=(Measure("m", 0.5, "", ""),))
    a, b = (replace(realistic(), sections=(section,)) for section in (held, loose))
    assert compare(a, b).changed == {"Passed in A, no tolerance in B": ["m"]}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"settings": {**realistic().settings, "seed": 1}}, "Different settings (seed: 42 and 1)"),
        ({"reference": {**realistic().reference, "checkpoint": "mine"}}, "Different reference (checkpoint: nvidia"),
        ({"machine": {"gpu": "RTX 4090"}}, "Different machine (gpu: NVIDIA H200 and RTX 4090; driver: 580.65 and none"),
        ({"bundle": {**realistic().bundle, "checkpoint": "mine"}}, "different checkpoints"),
    ],
)
def test_reasons_why_figures_are_incomparable_are_noted(change: dict[str, dict[str, object]], words: str) -> None:
    changed: Report = replace(realistic(), **change)  # type: ignore[arg-type]
    notes = compare(realistic(), changed).notes
    assert len(notes) == 1 and words in notes[0]
    result = compare(realistic(), changed)
    assert notes[0] in result.to_text() and result.to_dict()["notes"] == list(notes)


def test_another_tolerance_is_noted_and_the_same_report_needs_no_note() -> None:
    assert compare(realistic(), realistic()).notes == ()
    assert compare(realistic(), Report.from_dict(realistic().to_dict())).notes == ()
    section = Section("s", "S", "?", (Measure("m", 0.5, "", "", Tolerance(1.0, "")),))
    looser = replace(section, measures=(Measure("m", 0.5, "", "", Tolerance(2.0, "")),))
    a, b = (replace(realistic(), sections=(part,)) for part in (section, looser))
    assert compare(a, b).notes == ("Different tolerances in A and B: m.",)


def test_plots_of_one_title_are_laid_over_each_other_by_series(both: Comparison) -> None:
    plots = {plot.title: plot for group in both.groups for plot in group.plots}
    assert list(plots) == [
        "Error by layer of temporal",
        "Divergence from the reference by frame: text",
        "Divergence from the reference by frame: audio",
        "Same token by codebook: user",
        "Same token by codebook: agent",
    ]
    assert all([series.name for series in plot.series] == ["A", "B"] for plot in plots.values())
    text = realistic().sections[1].plots[0].series[0]
    assert plots["Divergence from the reference by frame: text"].series[0].y[9:] == text.y[9:]


def test_bars_over_other_ticks_are_not_laid_over_each_other() -> None:
    a = realistic()
    graphs = a.sections[0]
    moved = replace(graphs, plots=(replace(graphs.plots[0], ticks=graphs.plots[0].ticks[::-1]),))
    assert compare(replace(a, sections=(graphs,)), replace(a, sections=(moved,))).groups[0].plots == ()


def test_data_is_json_with_both_sides(both: Comparison) -> None:
    data = json.loads(json.dumps(both.to_dict(), allow_nan=False))
    kl = next(m for m in data["measures"] if m["name"] == "drift.text_kl")
    assert (kl["a"], kl["b"], kl["verdict_a"], kl["verdict_b"]) == (0.00021, 0.0013, "passed", "failed")
    assert (
        data["a"]["bundle"]["precision"]["temporal"] == "int8" and data["b"]["bundle"]["precision"]["temporal"] == "fp8"
    )
    only_a = next(m for m in data["measures"] if m["name"] == "speed.frame_ms")
    assert (only_a["b"], only_a["verdict_b"], only_a["ratio"]) == (None, "absent", None)


def test_the_precisions_stand_side_by_side(both: Comparison) -> None:
    assert (
        "temporal",
        "int8, TensorRT-RTX 1.7.1 (H200, sm_90)",
        "fp8, TensorRT-RTX 1.7.1 (H200, sm_90)",
    ) in both.graphs
    assert "| `temporal` | int8, TensorRT-RTX" in both.to_markdown()
    for line in both.to_text().splitlines():
        assert line == line.rstrip()


def test_markdown_folds_measures_without_tolerance_and_escapes(both: Comparison) -> None:
    before, _, folded = both.to_markdown().partition("<details>")
    assert "drift.text_kl" in before and "speed.frame_ms" in folded and "speed.frame_ms" not in before
    text = compare(hostile("a|b <b>"), hostile("a|b <b>")).to_markdown()
    assert "<b>" not in text
