"""The names of the benchmark's measures, and what each means. Called by `fdb.score`, `fdb.report` and `cli.fdb`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pplex.fdb.layout import Task
from pplex.fdb.rubrics import BEHAVIOURS

TOR, LATENCY, FREQUENCY, JSD, ANSWER, SSIM = "tor", "latency", "frequency", "jsd", "answer", "ssim"
NATURALNESS, ADHERENCE = "naturalness", "adherence"
STOP, RESPONSE = "stop_latency", "response_latency"
RATE_BEFORE, RATE_AFTER = "rate_before", "rate_after"
SHARE_OF = MappingProxyType({name: name.lower() for name in BEHAVIOURS})  # by the judge's class
INTERVALS = frozenset({STOP, RESPONSE})  # several values a sample: the mean is over all of them
TAILED = frozenset({RATE_BEFORE, RATE_AFTER})  # the mean leaves out the largest and the smallest
YES_OR_NO = frozenset({TOR, *SHARE_OF.values()})  # 1 or 0
BEFORE = "_before_1d40caa"  # after the names of measures whose definition changed with this commit of the benchmark
LABELS = MappingProxyType(  # of columns, in this order
    {
        TOR: "TOR",
        LATENCY: "latency, s",
        FREQUENCY: "frequency, /s",
        JSD: "JSD",
        ANSWER: "answer, of 5",
        SSIM: "SSIM",
        STOP: "stop latency, s",
        RESPONSE: "response latency, s",
        RATE_BEFORE: "words/min before",
        RATE_AFTER: "words/min after",
        SHARE_OF["RESPOND"]: "responds",
        SHARE_OF["RESUME"]: "resumes",
        SHARE_OF["UNCERTAIN"]: "uncertain",
        SHARE_OF["UNKNOWN"]: "unknown",
        ADHERENCE: "task adherence, of 5",
        NATURALNESS: "naturalness, of 5",
        FREQUENCY + BEFORE: "frequency before 1d40caa",
        JSD + BEFORE: "JSD before 1d40caa",
    }
)
SHORT = MappingProxyType(
    {
        Task.PAUSE: "pause",
        Task.BACKCHANNEL: "backchannel",
        Task.TURN_TAKING: "turn_taking",
        Task.INTERRUPTION: "interruption",
        Task.OVERLAP_INTERRUPTION: "overlap_interruption",
        Task.OVERLAP_BACKCHANNEL: "overlap_backchannel",
        Task.OVERLAP_OTHER: "overlap_other",
        Task.OVERLAP_BACKGROUND: "overlap_background",
        Task.SERVICE: "service",
    }
)


@dataclass(frozen=True)
class Metric:
    """One measure of a task; `more` if a larger value is better, None if neither is."""

    key: str
    unit: str
    what: str
    more: bool | None

    @property
    def meaning(self) -> str:
        return self.what if self.more is None else f"{self.what} {'Higher' if self.more else 'Lower'} is better."


_OVER_THE_USER = Metric(TOR, "", "Share of the samples in which the agent took over.", False)
_AFTER_THE_USER = Metric(TOR, "", "Share of the samples in which the agent took over.", True)
_LATENCY = Metric(LATENCY, "s", "From the user's end to the agent's first word, where it took over.", False)
_COUNTED = "since commit 1d40caa"
_COUNTED_BEFORE = "before commit 1d40caa: only after the last short turn"


def _overlap(stop: bool | None, respond: bool | None, resume: bool | None) -> tuple[Metric, ...]:
    """The measures of version 1.5; what is better depends on who speaks."""
    return (
        Metric(STOP, "s", "How long both speak at once, over all such stretches.", stop),
        Metric(RESPONSE, "s", "From an end of the user to the agent's next start, over all such gaps.", False),
        Metric(RATE_BEFORE, "words/min", "The agent's speed until the event has ended.", None),
        Metric(RATE_AFTER, "words/min", "The agent's speed after the event.", None),
        Metric(SHARE_OF["RESPOND"], "", "Share of the samples in which the agent takes up the event.", respond),
        Metric(SHARE_OF["RESUME"], "", "Share in which it goes on with what it said.", resume),
        Metric(SHARE_OF["UNCERTAIN"], "", "Share in which it shows that it has not understood.", None),
        Metric(SHARE_OF["UNKNOWN"], "", "Share in which it does nothing of these.", False),
    )


METRICS: Mapping[Task, tuple[Metric, ...]] = MappingProxyType(
    {
        Task.PAUSE: (_OVER_THE_USER,),
        Task.BACKCHANNEL: (
            _OVER_THE_USER,
            Metric(FREQUENCY, "/s", f"Backchannels a second, as counted {_COUNTED}.", True),
            Metric(JSD, "", f"Jensen-Shannon distance from people's backchannels, as counted {_COUNTED}.", False),
            Metric(FREQUENCY + BEFORE, "/s", f"Backchannels a second, as counted {_COUNTED_BEFORE}.", True),
            Metric(JSD + BEFORE, "", f"Jensen-Shannon distance, as counted {_COUNTED_BEFORE}.", False),
        ),
        Task.TURN_TAKING: (_AFTER_THE_USER, _LATENCY),
        Task.INTERRUPTION: (
            _AFTER_THE_USER,
            _LATENCY,
            Metric(ANSWER, "of 5", "The judge's grade of the answer, where the agent took over.", True),
            Metric(SSIM, "", "Likeness of the agent's voice and the one that it should have.", True),
        ),
        Task.OVERLAP_INTERRUPTION: _overlap(False, True, False),
        Task.OVERLAP_BACKCHANNEL: _overlap(None, False, True),
        Task.OVERLAP_OTHER: _overlap(None, False, True),
        Task.OVERLAP_BACKGROUND: _overlap(None, False, True),
        Task.SERVICE: (
            Metric(ADHERENCE, "of 5", "The judge's grade: does the agent keep to its role?", True),
            Metric(NATURALNESS, "of 5", "The judge's grade: is the reply what a person would say?", True),
        ),
        Task.UNKNOWN: (),
    }
)
QUESTIONS: Mapping[Task, str] = MappingProxyType(
    {
        Task.PAUSE: "Does the agent wait while the user pauses?",
        Task.BACKCHANNEL: "Does the agent listen like people while the user tells something?",
        Task.TURN_TAKING: "Does the agent answer when the user has finished?",
        Task.INTERRUPTION: "Does the agent answer an interruption?",
        Task.OVERLAP_INTERRUPTION: "Does the agent stop for an interruption, and answer it?",
        Task.OVERLAP_BACKCHANNEL: "Does the agent go on when the user says: mm-hm?",
        Task.OVERLAP_OTHER: "Does the agent go on when the user talks to somebody else?",
        Task.OVERLAP_BACKGROUND: "Does the agent go on when others speak in the background?",
        Task.SERVICE: "Does the agent keep to its role, and speak like a person?",
        Task.UNKNOWN: "",
    }
)


def limit_names() -> list[str]:
    """The names that limits can have, such as pause_tor."""
    return [f"{short}_{metric.key}" for task, short in SHORT.items() for metric in METRICS[task]]
