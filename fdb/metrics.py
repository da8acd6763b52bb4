"""The names of the benchmark's measures, and what each means. Called by `fdb.score`, `fdb.report` and `cli.fdb`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pplex.fdb.layout import Task

TOR, LATENCY, FREQUENCY, JSD, ANSWER = "tor", "latency", "frequency", "jsd", "answer"
BEFORE = "_before_1d40caa"  # after the names of measures whose definition changed with this commit of the benchmark
LABELS = MappingProxyType(  # of columns, in this order
    {
        TOR: "TOR",
        LATENCY: "latency, s",
        FREQUENCY: "frequency, /s",
        JSD: "JSD",
        ANSWER: "answer, of 5",
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
    }
)


@dataclass(frozen=True)
class Metric:
    """One measure of a task; `more` if a larger value is better."""

    key: str
    unit: str
    what: str
    more: bool

    @property
    def meaning(self) -> str:
        return f"{self.what} {'Higher' if self.more else 'Lower'} is better."


_OVER_THE_USER = Metric(TOR, "", "Share of the samples in which the agent took over.", False)
_AFTER_THE_USER = Metric(TOR, "", "Share of the samples in which the agent took over.", True)
_LATENCY = Metric(LATENCY, "s", "From the user's end to the agent's first word, where it took over.", False)
_COUNTED = "since commit 1d40caa"
_COUNTED_BEFORE = "before commit 1d40caa: only after the last short turn"
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
        Task.UNKNOWN: "",
    }
)


def limit_names() -> list[str]:
    """The names that limits can have, such as pause_tor."""
    return [f"{short}_{metric.key}" for task, short in SHORT.items() for metric in METRICS[task]]
