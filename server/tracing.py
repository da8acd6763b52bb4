"""Traces of conversations. `Tracing` and `Trace` record nothing; `server.otel` has those that send to OpenTelemetry.

A conversation has one trace: its time in the queue, its priming, and each of its connections. Frames get no spans, because
a conversation has 750 a minute: a connection's span has their number, and the number of late ones.
Called by `server.app`, `server.calls` and `server.conversation`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

Facts = dict[str, str | int | float | bool]


class Trace:
    """The trace of one conversation."""

    identity = ""  # the id of the trace, for the log

    @contextmanager
    def stage(self, name: str) -> Iterator[Facts]:
        """A part of the conversation. Facts that are added inside become attributes of its span."""
        yield {}

    def end(self, cause: str) -> None:
        """The conversation is over. A second call does nothing."""


class Tracing:
    """The traces of a server."""

    def accept(self, headers: Mapping[str, str]) -> None:
        """Continue the trace of a request (W3C `traceparent`), if it has one, in the rest of this task."""

    def begin(self, conversation: str, audio: str) -> Trace:
        """The trace of a new conversation."""
        return Trace()

    def close(self) -> None:
        """Send what is left, and stop. Waits a few seconds at most."""
