"""Plots as SVG: well-formed for any values, with all peaks, and with ids and colours for a page."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import HOSTILE, hostile, realistic

from pplex.runtime.errors import ReportError
from pplex.validate.report.plots import BINS, COLOURS, to_svg
from pplex.validate.report.schema import PLOT_KINDS, Plot, Series

PLOTS = {plot.title: plot for section in realistic().sections for plot in section.plots}
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def line(y: tuple[float, ...], **options: object) -> Plot:
    series = Series("s", tuple(float(i) for i in range(len(y))), y)
    return replace(Plot("t", "line", "x", "y", (series,)), **options)


def highest(svg: str, colour: int = 1) -> float:
    """The highest point (smallest y) of everything in a series' colour.

    A referenced path, such as a band, counts at the place of its use.
    """
    root = ElementTree.fromstring(svg)
    used = {use.get("href", "")[1:]: float(use.get("y", "0")) for use in root.iter(f"{SVG}use")}
    paths = [path for path in root.iter(f"{SVG}path") if f"--plot-{colour}" in path.get("style", "")]
    drawn = [(path, used.get(path.get("id", ""), 0.0)) for path in paths]
    return min(float(y) + offset for path, offset in drawn for y in re.findall(r"[ML] \S+ (\S+)", path.get("d", "")))


@pytest.mark.parametrize("title", PLOTS)
def test_a_plot_is_one_image_with_labels_for_screen_readers(title: str) -> None:
    svg = to_svg(PLOTS[title], "p7")
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    labels = [root.find(f".//*[@id='{name}']") for name in (root.get("aria-labelledby") or "").split()]
    assert next(label.text for label in labels if label is not None) == title
    assert all(series.name in (labels[1].text or "") for series in PLOTS[title].series if labels[1] is not None)
    assert svg == to_svg(PLOTS[title], "p7")
    assert len(svg) < 60_000


@pytest.mark.parametrize("title", PLOTS)
def test_a_plot_does_not_affect_the_page(title: str) -> None:
    """Ids start with the key and all references resolve; the SVG has no style sheets, dates or fixed colours."""
    svg = to_svg(PLOTS[title], "p7")
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids) and all(str(name).startswith("p7-") for name in ids)
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    assert referred and referred <= set(ids)
    assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {"style", "metadata", "script", "image"}
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)
    assert colours and all(colour == "none" or colour.startswith("var(--plot-") for colour in colours)
    assert re.search(r"20\d\d-\d\d", svg) is None


def test_text_in_a_plot_is_never_markup() -> None:
    words = ["$\\frac{", "_hidden", HOSTILE, "\x1b[31mred\x00", "中文", 'id="x" url(#y) #01f001']
    series = tuple(Series(word, (0.0, 1.0), (0.0, 1.0)) for word in words)
    svg = to_svg(Plot("$x$", "line", "$y$ \u202e", "$z$", series, marks=((0.5, "$m$"),)))
    shown = texts(svg)
    instead = "\N{REPLACEMENT CHARACTER}"
    assert {*words[:3], f"{instead}[31mred{instead}", *words[4:]} <= set(shown)
    assert {f"$y$ {instead}", "$z$", "$m$"} <= set(shown)
    for plot in hostile().sections[0].plots:
        assert "<img" not in to_svg(plot)


def test_series_differ_in_more_than_colour() -> None:
    series = tuple(Series(f"s{i}", (0.0, 1.0), (float(i), 1.0)) for i in range(4))
    svg = to_svg(Plot("t", "line", "x", "y", series))
    looks = [
        (dashes[0] if (dashes := re.findall(r"stroke-dasharray: [^;\"]+", style)) else "")
        for i in range(1, 5)
        for style in re.findall(rf'<path [^>]*style="([^"]*stroke: var\(--plot-{i},[^"]*)"', svg)[:1]
    ]
    assert len(set(looks)) == 4
    bars = to_svg(Plot("t", "bar", "x", "y", series[:3]))
    assert {"0.9", "0.45", "0.12"} == set(re.findall(r"fill-opacity: ([\d.]+)", bars))


def test_a_single_peak_of_a_long_line_is_still_the_highest_point() -> None:
    y = [1.0] * 30_000
    y[17_321] = 50.0
    level = Series("", (0.0, 29_999.0), (50.0, 50.0))  # nameless, or a legend would be highest
    svg = to_svg(replace(line(()), series=(Series("", tuple(map(float, range(len(y)))), tuple(y)), level)))
    assert highest(svg, 1) == pytest.approx(highest(svg, 2), abs=0.2)
    assert len(svg) < 40_000 and len(y) > 10 * BINS


def test_a_gap_stays_a_gap() -> None:
    y = np.ones(6000)
    y[2000:4000] = math.nan
    for values in (y, y[::100]):
        paths = re.findall(
            r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--plot-1', to_svg(line(tuple(values)))
        )
        assert max(path.count("M") for path in paths) == 2


def test_a_value_between_two_gaps_is_a_dot() -> None:
    svg = to_svg(line((math.nan,) * 50 + (1.0,) + (math.nan,) * 50))
    assert len(re.findall(r"<use [^>]*--plot-1", svg)) == 1


@pytest.mark.parametrize("kind", ["line", "bar"])
def test_a_note_counts_values_that_cannot_be_drawn(kind: str) -> None:
    plot = line((1.0, 0.0, -1.0, math.nan, math.inf, 1e-3), kind=kind, log_y=True)
    assert any("not drawn: 4 of 6 values (not finite or not positive)" in text for text in texts(to_svg(plot)))
    assert any("not drawn: 2 of 6 values (not finite)" in text for text in texts(to_svg(replace(plot, log_y=False))))
    assert not any("not drawn" in text for text in texts(to_svg(line((1.0, 2.0), kind=kind))))


def test_an_infinite_value_is_marked_at_the_upper_edge() -> None:
    marked, plain = (
        len(re.findall(r"<use [^>]*--plot-1", to_svg(line((1.0,) * 50 + (y,))))) for y in (math.inf, math.nan)
    )
    assert marked == plain + 1


def test_powers_of_ten_label_a_log_axis() -> None:
    assert {"10⁻³", "10⁻²", "10⁻¹"} <= set(texts(to_svg(line((1e-4, 1.0, 0.3), log_y=True))))
    assert len([t for t in texts(to_svg(line((0.4, 0.5, 0.6), log_y=True))) if re.fullmatch(r"0\.\d+", t)]) >= 1


def test_some_of_many_bars_are_named() -> None:
    names = tuple(f"layers.{i}.gating" for i in range(300))
    bars = Series("s", tuple(map(float, range(300))), (1.0,) * 300)
    svg = to_svg(Plot("t", "bar", "x", "y", (bars,), ticks=names))
    assert 15 <= sum(text in names for text in texts(svg)) <= 32
    few = to_svg(Plot("t", "bar", "x", "y", (Series("s", (0.0, 1.0), (1.0, 2.0)),), ticks=("one", "two")))
    assert {"one", "two"} <= set(texts(few))


def test_a_timeline_has_a_row_for_each_and_shows_the_shortest_word() -> None:
    svg = to_svg(PLOTS["Who speaks when"])
    assert {"user", "agent, reference", "agent, bundle", "nobody", "interruption"} <= set(texts(svg))
    short = Plot("t", "spans", "s", "", (Series("a", (0.0, 500.0), (0.001, 1000.0)),))
    boxes = re.findall(r"M (\S+) \S+ L (\S+)", re.findall(r'd="([^"]+)"[^>]*--plot-1', to_svg(short))[0])
    assert len(boxes) == 2 and float(boxes[0][1]) > float(boxes[0][0])
    odd = Series("a", (5.0, math.nan, 3.0), (1.0, 2.0, math.inf))
    assert "--plot-1" not in to_svg(Plot("t", "spans", "s", "", (odd,)))


def test_labels_of_marks_do_not_overlap() -> None:
    svg = to_svg(line((1.0,) * 100, marks=tuple((50.0 + i / 10, f"event {i}") for i in range(20))))
    shown = [text for text in texts(svg) if text.startswith("event")]
    assert len(shown) == 3 and "event 19 at 51.9" in svg


@pytest.mark.parametrize("kind", PLOT_KINDS)
@pytest.mark.parametrize("series", [(), (Series("", (), ()),), (Series("a", (), ()), Series("b", (1.0,), (2.0,)))])
@pytest.mark.parametrize("log", [False, True])
def test_empty_series_are_drawn(kind: str, series: tuple[Series, ...], log: bool) -> None:
    assert to_svg(Plot("t", kind, "x", "y", series, log)).startswith("<svg")


ANY = st.sampled_from([0.0, -1.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf]) | st.floats()


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(PLOT_KINDS),
    log=st.booleans(),
    points=st.lists(st.lists(st.tuples(ANY, ANY), max_size=6), max_size=3),
    words=st.lists(st.text(max_size=60), min_size=4, max_size=4),
    mark=ANY,
)
def test_any_series_are_drawn_as_valid_svg(
    kind: str, log: bool, points: list[list[tuple[float, float]]], words: list[str], mark: float
) -> None:
    title, x_label, name, tick = words
    series = tuple(Series(name, tuple(x for x, _ in pairs), tuple(y for _, y in pairs)) for pairs in points)
    svg = to_svg(Plot(title, kind, x_label, name, series, log, (tick,) if tick else (), ((mark, tick),)))
    ElementTree.fromstring(svg)
    assert "nan" not in " ".join(re.findall(r' (?:d|x|y|viewBox|transform)="([^"]*)"', svg))


def test_an_unknown_kind_of_plot_is_refused() -> None:
    with pytest.raises(ReportError, match=r"'pie'.*line, bar, spans"):
        to_svg(Plot("t", "pie", "", "", ()))


def test_six_series_have_six_colours() -> None:
    assert len(set(COLOURS)) == 6
