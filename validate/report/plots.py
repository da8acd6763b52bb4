"""Plots as inline SVG with real text, and CSS variables as colours for light and dark pages.

A page may set --plot-1 .. --plot-6, --plot-ink (text) and --plot-grid; each has a default.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplex.runtime.arrays import Floats
from pplex.runtime.environment import MATPLOTLIB_CACHES, MATPLOTLIB_OWN_FONTS, temporary_cache
from pplex.runtime.errors import ReportError
from pplex.validate.report import wording
from pplex.validate.report.inline_svg import inline
from pplex.validate.report.schema import PLOT_KINDS, Plot, Series

# On import, matplotlib lists fonts and caches the list in the home folder. Its own fonts are enough here.
with temporary_cache(MATPLOTLIB_CACHES, **{MATPLOTLIB_OWN_FONTS: "1"}):
    import matplotlib.font_manager
    import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, NullLocator

WIDTH, HEIGHT, ROW, LINE = 760, 250, 30, 18  # in CSS pixels; a ROW of a timeline, a LINE of text
DPI = 72  # a point of matplotlib is then a pixel
BINS = 300  # longer lines become the median of each bin, with a band from minimum to maximum
LABELS = 32  # with more bars, only some get a label
LEVELS = 3  # rows of mark labels; a label that would cover another label is left out
LETTER = 6.6  # pixels, its approximate width
LARGEST = 1e200  # leaves room for margins

# Hues that colour-blind readers can distinguish. Plots are drawn in placeholder colours; CSS variables replace them.
COLOURS = ("#0068a8", "#c2500a", "#00805c", "#a23f86", "#7a6a00", "#4a4f4d")
VARIABLES = {f"#0{i}f00{i}": f"var(--plot-{i}, {colour})" for i, colour in enumerate(COLOURS, 1)} | {
    (INK := "#08f008"): "var(--plot-ink, #585e5b)",
    (GRID := "#09f009"): "var(--plot-grid, #d5d8d4)",
}
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
FILLS = (0.9, 0.45, 0.12)  # of bars, like the dashes of lines
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollars
    "path.simplify": False,  # would drop peaks; lines are thinned here
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{axis}tick.{part}": colour for axis in "xy" for part, colour in (("color", GRID), ("labelcolor", INK))},
}


def to_svg(plot: Plot, key: str = "plot") -> str:
    """An <svg> whose ids start with `key`; equal plots give equal text. Raises ReportError for an unknown kind."""
    if plot.kind not in PLOT_KINDS:
        raise ReportError(f"A plot of kind {plot.kind!r}: the kinds are {', '.join(PLOT_KINDS)}.")
    with matplotlib.style.context(["default", SETTINGS | {"svg.hashsalt": key}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's own fonts draw it
        FigureCanvasSVG(_figure(plot)).print_svg(file := io.StringIO())
    return inline(file.getvalue(), key, VARIABLES, wording.plain_line(plot.title), _description(plot))


def _figure(plot: Plot) -> Figure:
    figure = Figure(dpi=DPI, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_axisbelow(True)
    axes.grid(axis="x" if plot.kind == "spans" else "y", color=GRID, linewidth=0.6)
    height = {"line": _lines, "bar": _bars, "spans": _spans}[plot.kind](axes, plot)
    height += _marks(axes, plot)
    height += 0 if plot.kind == "spans" else _legend(figure, plot)
    missing = _missing(plot)
    axes.set_xlabel("\n".join([_short(plot.x_label, 90), missing] if missing else [_short(plot.x_label, 90)]))
    axes.set_ylabel(_short(plot.y_label, 34))
    figure.set_size_inches(WIDTH / DPI, (height + LINE * bool(missing)) / DPI)
    return figure


def _lines(axes: Axes, plot: Plot) -> float:
    for i, series in enumerate(plot.series):
        colour, (x, y) = _colour(i), _drawn(series, plot.log_y)
        if len(y) > 2 * BINS:
            x, low, y, high = binned(x, y)
            axes.fill_between(x, low, high, facecolor=(colour, 0.3), edgecolor=colour, linewidth=0.6)
        alone = np.isfinite(y) & ~np.isfinite(np.r_[np.nan, y[:-1]]) & ~np.isfinite(np.r_[y[1:], np.nan])
        dots = np.flatnonzero(alone | (len(y) <= 40)).tolist()
        axes.plot(x, y, **_line_style(i), marker="o", markersize=3.5, markevery=dots)
        above = [x for x, y in zip(series.x, series.y, strict=False) if y == math.inf and abs(x) < LARGEST][:BINS]
        if above:  # at the upper edge, on any scale
            edge = np.ones(len(above))
            axes.plot(above, edge, "^", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
    _scale(axes, plot)
    return HEIGHT


def binned(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """BINS bins of a long line: mean x; minimum, median and maximum of y. Peaks stay visible."""
    parts = [part[np.isfinite(y[part])] for part in np.array_split(np.arange(len(y)), BINS)]
    parts = [part if len(part) else np.array([i * len(y) // BINS]) for i, part in enumerate(parts)]  # a gap stays a gap
    low, middle, high = (np.array([measure(y[part]) for part in parts]) for measure in (np.min, np.median, np.max))
    return np.array([np.mean(x[part]) for part in parts]), low, middle, high


def _bars(axes: Axes, plot: Plot) -> float:
    drawn = [_drawn(series, plot.log_y) for series in plot.series]
    heights = np.concatenate([y[np.isfinite(y)] for _, y in drawn] or [np.zeros(0)])
    low = 10.0 ** math.floor(math.log10(heights.min() / 1.5)) if plot.log_y and len(heights) else 0.0
    width = 0.8 / max(1, len(drawn))
    edge = 0.8 if len(heights) <= 100 else 0.0  # edges would cover narrow bars
    for i, (x, y) in enumerate(drawn):
        left = x - 0.4 + width * i
        boxes = [(a, low, a + width, b) for a, b in zip(left, y, strict=True) if math.isfinite(b)]
        _add_boxes(axes, boxes, _fill_style(i, edge))
    _scale(axes, plot)
    axes.set_ylim(bottom=low) if plot.log_y and len(heights) else axes.autoscale(axis="y")
    return HEIGHT + _name_bars(axes, plot)


def _name_bars(axes: Axes, plot: Plot) -> float:
    """Label the bars, or every n-th of many; returns the height of slanted labels."""
    if not plot.ticks:
        return 0
    shown = range(0, len(plot.ticks), math.ceil(len(plot.ticks) / LABELS))
    names = [_short(plot.ticks[i], 26) for i in shown]
    longest = max(map(len, names)) * LETTER
    slanted = longest * len(names) > WIDTH - 120
    how: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(list(shown), names, **how)
    axes.set_xlim(-0.6, len(plot.ticks) - 0.4)
    return 0.64 * longest if slanted else 0


def _spans(axes: Axes, plot: Plot) -> float:
    rows = [_valid_spans(series) for series in plot.series]
    edges = [edge for spans in rows for span in spans for edge in span]
    least = (max(edges) - min(edges)) / WIDTH / 2 if edges else 0.0  # half a pixel
    for row, spans in enumerate(rows):
        boxes = [(start, row - 0.32, end, row + 0.32) for start, end in _merged(spans, least)]
        _add_boxes(axes, boxes, {"facecolor": _colour(row), "linewidth": 0})
    axes.autoscale_view()
    if edges:  # from the beginning to the last mark, so that silence shows
        marked = [at for at, _ in plot.marks if math.isfinite(at)]
        first, last = min(0.0, *edges, *marked), max(0.0, *edges, *marked)
        if 1e-3 < last - first < 1e7:  # seconds that a recording can last
            axes.set_xlim(first, last + 0.01 * (last - first))
    axes.set_yticks(range(len(rows)), [_short(series.name, 26) for series in plot.series])
    axes.set_ylim(max(0, len(rows) - 1) + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: wording.figure(value, 6))
    return 70 + ROW * max(1, len(rows))


def _merged(spans: Sequence[tuple[float, float]], least: float) -> list[tuple[float, float]]:
    """Extend spans to at least `least`, and join those with a shorter pause between them."""
    drawn = list[tuple[float, float]]()
    for start, end in spans:
        if drawn and start - drawn[-1][1] <= least:
            drawn[-1] = drawn[-1][0], max(drawn[-1][1], end)
        else:
            drawn.append((start, max(end, start + least)))
    return drawn


def _valid_spans(series: Series) -> list[tuple[float, float]]:
    """Spans by start, without those that end before they start."""
    return sorted(span for span in zip(series.x, series.y, strict=False) if _is_span(*span))


def _is_span(start: float, end: float) -> bool:
    return start <= end and max(abs(start), abs(end)) < LARGEST


def _add_boxes(axes: Axes, boxes: Sequence[tuple[float, float, float, float]], style: dict[str, Any]) -> None:
    """Add many rectangles (left, bottom, right, top) as one path. A path for each would make the page much larger."""
    if not boxes:
        return
    corners = [point for a, b, c, d in boxes for point in ((a, b), (c, b), (c, d), (a, d), (a, b))]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    axes.add_patch(PathPatch(Path(np.array(corners), codes), **style))


def _drawn(series: Series, log: bool) -> tuple[Floats, Floats]:
    """x and y as arrays. Points that x cannot show are left out; values that y cannot show are NaN."""
    points = np.array(list(zip(series.x, series.y, strict=False)), dtype=np.float64).reshape(-1, 2)
    x, y = points[np.isfinite(points[:, 0]) & (np.abs(points[:, 0]) < LARGEST)].T
    drawn = np.isfinite(y) & (np.abs(y) < LARGEST) & ((y > 1 / LARGEST) | (not log))
    return x, np.where(drawn, y, np.nan)


def _missing(plot: Plot) -> str:
    """A note on values that cannot be drawn."""
    if plot.kind == "spans":
        return ""
    given = sum(min(len(series.x), len(series.y)) for series in plot.series)
    drawn = sum(int(np.isfinite(_drawn(series, plot.log_y)[1]).sum()) for series in plot.series)
    why = "not finite or not positive" if plot.log_y else "not finite"
    return f"not drawn: {given - drawn} of {given} values ({why})" if given > drawn else ""


def _scale(axes: Axes, plot: Plot) -> None:
    axes.margins(x=0.01)
    axes.autoscale_view()
    axes.xaxis.set_major_formatter(lambda value, _: wording.figure(value, 6))
    log = plot.log_y and any(np.isfinite(_drawn(series, True)[1]).any() for series in plot.series)
    if log:
        axes.set_yscale("log", nonpositive="mask")
        low, high = axes.get_ylim()
        subs = (1, 2, 5) if high / low < 50 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: _power(value) if log else wording.figure(value, 6))


def _power(value: float) -> str:
    """10⁻³ for 0.001."""
    if value <= 0 or not math.log10(value).is_integer():
        return wording.figure(value, 6)
    return "10" + f"{math.log10(value):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _marks(axes: Axes, plot: Plot) -> float:
    """Draw vertical lines with labels above the axes; returns the height of the labels."""
    marks = sorted((x, _short(word, 26)) for x, word in plot.marks if abs(x) < LARGEST)
    for x, _ in marks:
        axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (2, 2)))
    left, right = axes.get_xlim()
    ends, highest = [-math.inf] * LEVELS, 0
    for x, word in marks:
        place = (x - left) / (right - left) * (WIDTH - 90)
        width = len(word) * LETTER + 8
        level = next((i for i, end in enumerate(ends) if place >= end), None)
        if not word or level is None or not left <= x <= right:
            continue
        flipped = place + width > WIDTH - 90
        ends[level], highest = place + width, max(highest, level + 1)
        axes.annotate(
            word,
            (x, 1),
            (-2 if flipped else 2, 4 + 14 * level),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if flipped else "left",
            fontsize=11,
            annotation_clip=False,
        )
    return 14 * highest


def _legend(figure: Figure, plot: Plot) -> float:
    """Draw the names of the series above the axes, unless the title has them; returns their height."""
    names = [_short(series.name, 40) for series in plot.series]
    if not any(names) or (len(names) == 1 and names[0] in plot.title):
        return 0
    columns = min(len(names), max(1, int((WIDTH - 60) / (max(map(len, names)) * LETTER + 50))))
    handles = [
        Patch(**_fill_style(i)) if plot.kind == "bar" else Line2D([], [], **_line_style(i)) for i in range(len(names))
    ]
    legend = figure.legend(
        handles,
        ["x" * len(name) for name in names],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.6,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # set here, because matplotlib leaves out a label that starts with _
    return LINE * math.ceil(len(names) / columns)


def _description(plot: Plot) -> str:
    """The plot in words, for screen readers."""
    axes = f"{plot.kind} plot of {wording.plain_line(plot.y_label)} over {wording.plain_line(plot.x_label)}"
    series = (f"{wording.plain_line(series.name)}: {_extent(plot, series)}" for series in plot.series)
    marks = (f"{wording.plain_line(word)} at {wording.figure(x)}" for x, word in plot.marks)
    return "; ".join((axes, *series, *marks)) + "."


def _extent(plot: Plot, series: Series) -> str:
    if plot.kind == "spans":
        spans = _valid_spans(series)
        return f"{len(spans)} spans, {wording.figure(sum(end - start for start, end in spans))} in all"
    values = [y for y in series.y if math.isfinite(y)]
    between = f", {wording.figure(min(values))} to {wording.figure(max(values))}" if values else ""
    return f"{len(series.y)} values{between}"


def _short(text: str, most: int) -> str:
    """Shorten a long name in the middle, because its ends say more."""
    line = wording.plain_line(text)
    return line if len(line) <= most else f"{line[: most // 2 - 1]}…{line[-(most - most // 2) :]}"


def _line_style(index: int) -> dict[str, Any]:
    return {"color": _colour(index), "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.6}


def _fill_style(index: int, edge: float = 0.8) -> dict[str, Any]:
    colour = _colour(index)
    return {"facecolor": (colour, FILLS[index % len(FILLS)]), "edgecolor": colour, "linewidth": edge}


def _colour(index: int) -> str:
    return list(VARIABLES)[index % len(COLOURS)]
