"""The conversation section: with the same user, voice, persona and seeds, does the agent take turns like the reference?

Called by `validate.sections.names` and `validate.validation`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pplex.runtime.arrays import Pcm
from pplex.runtime.precision import FP32
from pplex.runtime.token_path import USER
from pplex.validate.parting import Judge, Parting
from pplex.validate.recording import ScenarioRecording
from pplex.validate.report.schema import Measure, Plot, Section, Series, Table, Tolerance
from pplex.validate.speech.scenarios import SYNTHETIC, Scenario
from pplex.validate.speech.turns import Dialogue, Segment, Values, backchannel_profile, divergence, measure_turns

QUESTION = "With the same user and the same seeds, does the agent take turns like the reference?"
LATENCY_MARGIN_S = 0.16  # two frames
STANDARD_ERRORS = 2

Detect = Callable[[Pcm], list[Segment]]


@dataclass(frozen=True)
class Metric:
    """A metric of `turns` in the report: its `name` and `factor`; `better` is higher, lower, or "" for neither."""

    name: str
    what: str
    better: str = ""
    unit: str = "share"
    factor: float = 1.0

    @property
    def is_rate(self) -> bool:
        return self.unit == "share"


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "takeover_rate": Metric("takeover_rate", "User's turns after which the agent takes over", "higher"),
        "latency_s": Metric("latency_ms", "From the user's last word to the agent's turn", "lower", "ms", 1000),
        "pause_takeover_rate": Metric("pause_takeover_rate", "User's pauses in which the agent takes over", "lower"),
        "long_turn_takeover_rate": Metric(
            "long_turn_takeover_rate", "User's long turns in which the agent takes over", "lower"
        ),
        "backchannel_frequency": Metric(
            "backchannel_frequency", "Backchannels per second of the user's long turns", "", "1/s"
        ),
        "stop_latency_s": Metric("stop_ms", "From the user's interruption to the agent's silence", "lower", "ms", 1000),
        "interruption_takeover_rate": Metric(
            "interruption_takeover_rate", "Interruptions that the agent answers with a turn", "higher"
        ),
        "interruption_latency_s": Metric(
            "interruption_latency_ms", "From the interruption's end to the agent's turn", "lower", "ms", 1000
        ),
        "overlap_s": Metric("overlap_s", "Both speak at once, for each recording", "", "s"),
    }
)


def conversation_section(
    engine: Sequence[ScenarioRecording],
    reference: Sequence[ScenarioRecording],
    precision: Mapping[str, str],
    detect: Detect,
    judge: Judge,
) -> Section:
    """Compare turns in recordings of the same scenarios and runs, in the same order.

    `precision` of the engine's graphs, by name. If all are float32, and so are the rings, the tokens must equal the
    reference's until a near tie; `judge` distinguishes near ties from faults. Otherwise tokens may differ, and only metrics
    of turns have tolerances.
    """
    assert [r.name for r in engine] == [r.name for r in reference], "recordings of different scenarios or runs"
    ours, theirs = ([_dialogue(recording, detect) for recording in side] for side in (engine, reference))
    heard = any(dialogue.agent for dialogue in (*ours, *theirs))
    values, expected = measure_turns(ours), measure_turns(theirs)
    difference = divergence(backchannel_profile(ours), backchannel_profile(theirs))
    exact = judge.exact and all(precision[graph] == name for graph, name in FP32.items())
    pairs = zip(engine, reference, strict=True) if exact else ()
    partings = [judge.parting(ours.trace, theirs.trace) for ours, theirs in pairs]
    plausible = judge.plausible([recording.trace for recording in reference]) if exact else None
    measures = [_measure(METRICS[name], values[name], expected[name], heard) for name in METRICS]
    return Section(
        key="conversation",
        title="Conversation",
        question=QUESTION,
        measures=(
            *measures,
            _divergence_measure(difference),
            *_token_measures(engine, reference, partings, plausible),
        ),
        tables=(_metrics_table(values, expected), _tokens_table(engine, reference), *_partings_table(partings)),
        plots=tuple(_plots(engine, theirs, ours)),
        notes=tuple(_notes((r.scenario for r in engine), values, expected, measures, heard)),
    )


def _dialogue(recording: ScenarioRecording, detect: Detect) -> Dialogue:
    return Dialogue(recording.scenario.speech, detect(recording.pcm), recording.scenario.events)


# Measures.


def _measure(metric: Metric, ours: Sequence[float], theirs: Sequence[float], heard: bool) -> Measure:
    """The engine's mean; its tolerance is relative to the reference's mean."""
    value = _mean(ours)
    tolerance = _tolerance(metric, ours, theirs) if metric.better and heard and ours and theirs else None
    what = f"{metric.what} (engine; reference: {_shown(_mean(theirs), metric)}; {len(ours)} events)"
    return Measure(f"conversation.{metric.name}", _scaled(value, metric), metric.unit, what, tolerance)


def _tolerance(metric: Metric, ours: Sequence[float], theirs: Sequence[float]) -> Tolerance | None:
    """None if every rate would pass: events are too few, or the reference already has the worst rate."""
    least, words = (1 / len(ours), f"one event of {len(ours)}") if metric.is_rate else (LATENCY_MARGIN_S, "two frames")
    error = math.hypot(_standard_error(ours), _standard_error(theirs))
    margin = metric.factor * max(least, STANDARD_ERRORS * error)
    reason = f"{margin:.3g} worse than the reference: {words}, or {STANDARD_ERRORS} standard errors of the difference"
    expected, higher = metric.factor * float(np.mean(theirs)), metric.better == "higher"
    limit = round(expected - margin if higher else expected + margin, 4)
    if metric.is_rate and (limit <= 0 if higher else limit >= 1):
        return None
    return Tolerance(limit, reason, least=higher)


def _divergence_measure(value: float | None) -> Measure:
    what = "Jensen-Shannon divergence of the times of backchannels (0: equal, 1: no overlap; none without backchannels)"
    return Measure("conversation.backchannel_divergence", value, "bits", what)


def _token_measures(
    engine: Sequence[ScenarioRecording],
    reference: Sequence[ScenarioRecording],
    partings: Sequence[Parting | None],
    plausible: int | None,
) -> Iterator[Measure]:
    """Measures of the tokens of free-running conversations.

    `plausible`: the number of near ties that may differ; None if the precisions differ, because then tokens differ.
    """
    pairs = [*zip(engine, reference, strict=True)]
    if plausible is None:
        what = "Share of the agent's text and audio tokens, running freely, that equal the reference's"
        share = float(np.concatenate([_same(*pair) for pair in pairs]).mean())
        yield Measure("conversation.tokens_equal", share, "share", what)
        return
    equal = [ours.tokens == theirs.tokens for ours, theirs in pairs]  # [F, 17] with the codes of the user
    explained = [parting for parting in partings if parting and parting.explained]
    compared = [
        same[: parting.equal_frames] if parting in explained else same
        for same, parting in zip(equal, partings, strict=True)
    ]
    yield Measure(
        "conversation.tokens_equal",
        float(np.concatenate(compared).mean()) if any(map(len, compared)) else 1.0,
        "share",
        "Share of all streams' tokens, running freely, that equal the reference's, up to a near tie "
        f"({sum(map(len, compared))} of {sum(map(len, equal))} frames)",
        Tolerance(1.0, "both run in float32 with the same noise: only near ties may differ", least=True),
        str(next((parting for parting in partings if parting and not parting.explained), "")),
    )
    yield Measure(
        "conversation.near_ties",
        sum(parting.is_of_a_draw for parting in explained),
        "draws",
        "Conversations whose first different draw was a near tie (see the table of first differences)",
        Tolerance(plausible, "within tolerance, rounding changes more draws than this in 1 of 1,000 validations only"),
    )


def _same(ours: ScenarioRecording, theirs: ScenarioRecording) -> npt.NDArray[np.bool_]:
    """Equal tokens of the agent's streams [F, 1 + 8]."""
    return ours.tokens[:, :USER] == theirs.tokens[:, :USER]


def first_difference(ours: ScenarioRecording, theirs: ScenarioRecording) -> int | None:
    """The first frame in which the tokens of two recordings differ; None if all are equal."""
    frames = np.flatnonzero(~_same(ours, theirs).all(axis=1))
    return int(frames[0]) if len(frames) else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _scaled(value: float | None, metric: Metric) -> float | None:
    return None if value is None else metric.factor * value


def _shown(value: float | None, metric: Metric) -> str:
    return "none" if value is None else f"{metric.factor * value:.3g}"


# Tables, plots and notes.


def _metrics_table(values: Values, expected: Values) -> Table:
    rows = []
    for key, metric in METRICS.items():
        ours, theirs = (_scaled(_mean(side[key]), metric) for side in (values, expected))
        difference = None if ours is None or theirs is None else ours - theirs
        rows.append((metric.what, metric.unit, len(expected[key]), theirs, ours, difference))
    return Table("Turn-taking", ("metric", "unit", "events", "reference", "engine", "difference"), tuple(rows))


def _tokens_table(engine: Sequence[ScenarioRecording], reference: Sequence[ScenarioRecording]) -> Table:
    rows = []
    for ours, theirs in zip(engine, reference, strict=True):
        same = float(_same(ours, theirs).mean())
        rows.append((ours.scenario.name, ours.run, len(ours.tokens), first_difference(ours, theirs), same))
    columns = ("scenario", "run", "frames", "first frame that differs", "share of equal tokens")
    return Table("Tokens, running freely", columns, tuple(rows))


def _partings_table(partings: Sequence[Parting | None]) -> Iterator[Table]:
    rows = [
        (p.conversation, p.frame, p.stream, p.expected, p.got, p.distance, p.allowed, p.unit, p.explained)
        for p in partings
        if p
    ]
    columns = (
        "conversation",
        "frame",
        "stream",
        "reference",
        "engine",
        "distance from a tie",
        "allowed",
        "unit",
        "explained",
    )
    if rows:
        yield Table("First differences of conversations", columns, tuple(rows))


def _plots(engine: Sequence[ScenarioRecording], theirs: Sequence[Dialogue], ours: Sequence[Dialogue]) -> list[Plot]:
    """Who speaks when, in the first run of every scenario."""
    plots: dict[str, Plot] = {}
    for recording, expected, got in zip(engine, theirs, ours, strict=True):
        name = recording.scenario.name
        if name not in plots:
            rows = {"user": expected.user, "reference": expected.agent, "engine": got.agent}
            series = tuple(_spans(who, segments) for who, segments in rows.items())
            marks = _marks(recording.scenario)
            plots[name] = Plot(f"Who speaks when: {recording.name}", "spans", "s", "", series, marks=marks)
    return list(plots.values())


def _spans(who: str, segments: Sequence[Segment]) -> Series:
    return Series(who, tuple(start for start, _ in segments), tuple(end for _, end in segments))


def _marks(scenario: Scenario) -> tuple[tuple[float, str], ...]:
    return (*((event.start_s, event.kind) for event in scenario.events), (scenario.seconds, "end"))


def _notes(
    scenarios: Iterable[Scenario], values: Values, expected: Values, measures: Sequence[Measure], heard: bool
) -> Iterator[str]:
    if any(scenario.material == SYNTHETIC for scenario in scenarios):
        yield (
            "The user is synthetic: a voice activity detector detects speech, but the speech has no words to answer. "
            "For rates like those of real conversations, give recordings: --wavs FOLDER."
        )
    if not heard:
        yield (
            "No speech was detected in the sound of either agent, so the rates mean nothing and have no limits. "
            "An agent with random weights babbles."
        )
    sides = {"both": (False, False), "the engine": (True, False), "the reference": (False, True)}
    for side, there in sides.items():
        if missing := [METRICS[key].name for key in METRICS if (bool(expected[key]), bool(values[key])) == there]:
            yield f"No value for {side}, so no limit: {', '.join(missing)}."
    if loose := [m.name for m, key in zip(measures, METRICS, strict=True) if heard and _is_loose(m, METRICS[key])]:
        yield (
            f"No limit, because no value could fail: {', '.join(loose)}. Either there are too few events (more seeds give "
            "more), or the reference already has the worst possible rate."
        )


def _is_loose(measure: Measure, metric: Metric) -> bool:
    return bool(metric.better) and metric.is_rate and measure.value is not None and measure.tolerance is None
