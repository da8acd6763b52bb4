"""The report of a load: makes figures and a table from the times of all sessions. No I/O; called by `server.load`."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np

from pplex.server.wire import FRAME_S

GAP_S = FRAME_S + 0.04  # between two replies; a listener hears a longer gap
WARM_UP_S = 1.0  # after each handshake; reported separately
LATE, DROPPED, LAG = "pplex_late_frames_total", "pplex_dropped_frames_total", "pplex_event_loop_lag_seconds_bucket"
NO_LOAD = 0.001  # cores
NOTES = {  # about the figures, by protocol
    "all": "Latency: from the sending of a frame's last sample to the arrival of its reply.",
    "live": "live: an unpaired reply answers silence, which the server fed after 200 ms without audio from us. "
    "Frames that the server dropped are missing: it does not tell us.",
    "twilio": "twilio: frames that the server dropped are missing: it does not tell us.",
    "realtime": "realtime: audio comes only in responses. It is unpaired, without a latency. Gaps are within a response.",
}
THREAD, MEMORY = "pplex_thread_seconds_total", "process_resident_memory_bytes"

Sample = tuple[str, tuple[tuple[str, str], ...]]  # name, labels


@dataclass
class SessionLog:
    """The events of one session, in seconds of one clock.

    asked ---- ready --- warm-up 1 s ---|
                 sent   0   1   2   3 ...            when the last sample of a frame went out
                 replied    0   1       2 ...        the n-th reply answers the n-th frame not dropped until then

    The server reports drops a moment after they happen. Until then, replies count for older frames and seem too late.

    answers_all: whether each frame has a reply; otherwise no reply has a frame, and there is no latency. has_pauses: whether
    replies without a frame are no fault: the server has put silence into a pause of the client.
    """

    protocol: str = "chat"
    answers_all: bool = True
    has_pauses: bool = False
    asked_s: float | None = None
    ready_s: float | None = None
    sent_s: list[float] = field(default_factory=list)
    replied_s: list[float] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)  # the frame that each reply answers
    beginnings: set[int] = field(default_factory=set)  # replies after a pause that is no gap
    answered: int = 0
    lags_s: list[float] = field(default_factory=list)  # delays of our own messages
    dropped: int = 0  # as reported by the server
    refused: str | None = None
    failed: str | None = None
    finished: bool = False  # nothing more will be sent

    def replied(self, now_s: float, frames: int = 1, begins: bool = False) -> None:
        if begins:
            self.beginnings.add(len(self.replied_s))
        for _ in range(frames):
            answers = self.answers_all and not (self.has_pauses and self.deficit <= 0)
            self.answers.append(self.answered + self.dropped if answers else None)
            self.answered += answers
            self.replied_s.append(now_s)

    @property
    def deficit(self) -> int:
        """Frames that were sent but neither answered nor reported as dropped; negative if too many replies came."""
        return len(self.sent_s) - self.answered - self.dropped if self.answers_all else 0

    @property
    def unpaired(self) -> int:
        """Replies that belong to none of our frames, without a fault."""
        return len(self.replied_s) - self.answered

    @property
    def warm_s(self) -> float:
        """The moment that ends the warm-up."""
        return math.inf if self.ready_s is None else self.ready_s + WARM_UP_S


@dataclass(frozen=True)
class Spread:
    """Milliseconds: the number of values and their percentiles; None without values."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        if not seconds:
            return cls(0, None, None, None, None)
        milliseconds = 1000 * np.asarray(seconds)
        return cls(len(seconds), *(round(float(q), 2) for q in np.percentile(milliseconds, (50, 95, 99, 100))))


@dataclass(frozen=True)
class Gaps:
    """Pauses between two replies: the number of too long ones, and the longest."""

    count: int
    largest_ms: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        largest = round(1000 * max(seconds), 2) if seconds else None
        return cls(sum(pause > GAP_S for pause in seconds), largest)


@dataclass(frozen=True)
class ServerSide:
    """The server's own counts in the same time; None if it does not report them."""

    late_frames: int | None
    late_after_warm_up: int | None  # from a second after all had joined; None if they join one by one
    dropped_frames: dict[str, int]  # by reason
    event_loop_lag_p99_ms: float | None  # upper bound of its bucket; None also above the last bucket
    thread_cores: dict[str, float]  # processor time by thread: 1 is a whole core
    resident_mb: tuple[float, float] | None  # before and after


@dataclass(frozen=True)
class Part:
    """The figures of the sessions of one protocol, if a load has several. Names as in LoadReport."""

    sessions: dict[str, int]
    frames: dict[str, int]
    gaps: dict[str, Gaps]
    latency: dict[str, Spread]


@dataclass(frozen=True)
class LoadReport:
    """Figures of a whole load. `to_dict` is the JSON, `to_text` the table."""

    title: str
    protocol: str  # or several, divided by commas
    parts: dict[str, Part]  # by protocol, if there are several
    sessions: dict[str, int]  # asked, ready, refused, failed
    refused: dict[str, int]  # by reason
    failed: dict[str, int]
    frames: dict[str, int]  # sent, answered, dropped, missing, surplus, unpaired
    gaps: dict[str, Gaps]  # warm-up, speech
    latency: dict[str, Spread]
    handshake: Spread
    send_lag: Spread
    server: ServerSide | None
    interrupted: bool
    machine: dict[str, Any]

    @property
    def passed(self) -> bool:
        frames, sessions = self.frames, self.sessions
        return not (frames["missing"] or frames["surplus"] or sessions["refused"] or sessions["failed"])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def to_text(self) -> str:
        gaps = self.gaps
        rows = {
            "response latency": self.latency["speech"],
            "  first second": self.latency["warm-up"],
            **{f"  {name}": part.latency["speech"] for name, part in self.parts.items()},
            "handshake": self.handshake,
            "our own send lag": self.send_lag,
        }
        lines = [self.title, f"{'ms':<18}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'count':>9}"]
        lines += [
            f"{name:<18}{_ms(s.p50_ms):>9}{_ms(s.p95_ms):>9}{_ms(s.p99_ms):>9}{_ms(s.max_ms):>9}{s.count:>9}"
            for name, s in rows.items()
        ]
        facts = {
            "sessions": _listed(self.sessions),
            "refused": _reasons(self.refused),
            "failed": _reasons(self.failed),
            "frames": _listed(self.frames),
            **{f"frames of {name}": _listed(part.frames) for name, part in self.parts.items()},
            f"gaps above {1000 * GAP_S:g} ms": f"{gaps['speech'].count}, largest {_ms(gaps['speech'].largest_ms)} ms; "
            f"in the first second {gaps['warm-up'].count}, largest {_ms(gaps['warm-up'].largest_ms)} ms",
            "server's metrics": _server(self.server),
            "measured from": ", ".join(f"{name} {value}" for name, value in self.machine.items()),
        }
        lines += [f"{name}: {value}" for name, value in facts.items() if value]
        lines += [NOTES[name] for name in ("all", *self.protocol.split(",")) if name in NOTES]
        lines += ["The load was ended early. The figures are for the time until then."] if self.interrupted else []
        return "\n".join(lines)


def summarize(
    title: str, logs: Sequence[SessionLog], server: ServerSide | None, interrupted: bool, machine: dict[str, Any]
) -> LoadReport:
    """The figures of all sessions together, and of each protocol."""
    protocols = tuple(dict.fromkeys(log.protocol for log in logs))
    parts = {name: _part([log for log in logs if log.protocol == name]) for name in protocols}
    handshakes = [log.ready_s - log.asked_s for log in logs if log.asked_s is not None and log.ready_s is not None]
    whole = _part(logs)
    return LoadReport(
        title=title,
        protocol=",".join(protocols),
        parts=parts if len(parts) > 1 else {},
        sessions=whole.sessions,
        refused=dict(Counter(log.refused for log in logs if log.refused)),
        failed=dict(Counter(log.failed for log in logs if log.failed)),
        frames=whole.frames,
        gaps=whole.gaps,
        latency=whole.latency,
        handshake=Spread.of(handshakes),
        send_lag=Spread.of([lag for log in logs for lag in log.lags_s]),
        server=server,
        interrupted=interrupted,
        machine=machine,
    )


def _part(logs: Sequence[SessionLog]) -> Part:
    latencies: dict[str, list[float]] = {"speech": [], "warm-up": []}
    pauses: dict[str, list[float]] = {"speech": [], "warm-up": []}
    for log in logs:
        for now_s, frame in zip(log.replied_s, log.answers, strict=True):
            if frame is not None and frame < len(log.sent_s):
                sent_s = log.sent_s[frame]
                latencies["speech" if sent_s >= log.warm_s else "warm-up"].append(now_s - sent_s)
        for reply, (before_s, now_s) in enumerate(pairwise(log.replied_s), 1):
            if reply not in log.beginnings:
                pauses["speech" if now_s >= log.warm_s else "warm-up"].append(now_s - before_s)
    return Part(
        sessions={
            "asked": sum(log.asked_s is not None for log in logs),
            "ready": sum(log.asked_s is not None and log.ready_s is not None for log in logs),
            "refused": sum(log.refused is not None for log in logs),
            "failed": sum(log.failed is not None for log in logs),
        },
        frames={
            "sent": sum(len(log.sent_s) for log in logs),
            "answered": sum(log.answered for log in logs),
            "dropped": sum(log.dropped for log in logs),
            "missing": sum(max(0, log.deficit) for log in logs),
            "surplus": sum(max(0, -log.deficit) for log in logs),
            "unpaired": sum(log.unpaired for log in logs),
        },
        gaps={part: Gaps.of(seconds) for part, seconds in pauses.items()},
        latency={part: Spread.of(seconds) for part, seconds in latencies.items()},
    )


def server_side(before: str, after: str, seconds: float, warm: str | None = None) -> ServerSide:
    """The increase of the counters between two readings of /metrics, `seconds` apart; `warm` is a reading in between."""
    old, new = _samples(before), _samples(after)
    late = {name: value for (name, _), value in new.items() if name == LATE}
    warm_late = {name: value for (name, _), value in _samples(warm or "").items() if name == LATE}
    memory = [value for values in (old, new) for (name, _), value in values.items() if name == MEMORY]
    rise = {sample: value - old.get(sample, 0) for sample, value in new.items()}
    return ServerSide(
        late_frames=next((int(value) for (name, _), value in rise.items() if name == LATE), None),
        late_after_warm_up=int(late[LATE] - warm_late[LATE]) if late and warm_late else None,
        dropped_frames={
            dict(labels).get("reason", ""): int(value)
            for (name, labels), value in rise.items()
            if name == DROPPED and value
        },
        event_loop_lag_p99_ms=_percentile_bound(
            {float(dict(labels)["le"]): value for (name, labels), value in rise.items() if name == LAG}
        ),
        thread_cores={
            dict(labels)["thread"]: round(value / seconds, 3)
            for (name, labels), value in rise.items()
            if name == THREAD and value / seconds >= NO_LOAD
        },
        resident_mb=(round(memory[0] / 1e6, 1), round(memory[1] / 1e6, 1)) if len(memory) == 2 else None,
    )


def _samples(text: str) -> dict[Sample, float]:
    """The samples; those of several replicas (docs/scale.md) are added up."""
    from prometheus_client.parser import text_string_to_metric_families

    found = defaultdict[Sample, float](float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ((name, value) for name, value in sample.labels.items() if name != "replica")
            found[sample.name, tuple(sorted(labels))] += sample.value
    return found


def _percentile_bound(buckets: Mapping[float, float], share: float = 0.99) -> float | None:
    """Upper bound in ms of the first bucket with at least `share` of the observations; buckets are cumulative."""
    total = max(buckets.values(), default=0)
    bound = min((le for le, count in buckets.items() if count >= share * total), default=math.inf)
    return round(1000 * bound, 3) if total and math.isfinite(bound) else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _reasons(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in counts.items())


def _server(server: ServerSide | None) -> str:
    if server is None:
        return "unknown, its /metrics cannot be read"
    dropped = _listed(server.dropped_frames) or "0"
    lag = "unknown" if server.event_loop_lag_p99_ms is None else f"at most {server.event_loop_lag_p99_ms:g} ms"
    cores = ", ".join(f"{name} {cores:.2f}" for name, cores in server.thread_cores.items())
    memory = " -> ".join(f"{mb:g} MB" for mb in server.resident_mb or ())
    warm = "" if server.late_after_warm_up is None else f" ({server.late_after_warm_up} after the first second)"
    facts = [f"{server.late_frames} late frames{warm}, {dropped} dropped, p99 of the event loop's lag {lag}"]
    facts += [f"cores: {cores}"] if cores else []
    facts += [f"memory {memory}"] if memory else []
    return "; ".join(facts)
