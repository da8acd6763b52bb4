"""The server's metrics for Prometheus: one registry per server."""

import threading
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.32, 0.64, 1.28)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
PRIMING_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Every metric as an attribute; `text` makes the page."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"pplex_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(f"pplex_{name}", help_text, registry=registry)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"pplex_{name}", help_text, labels, registry=registry, buckets=buckets)

        self.frame_seconds = histogram(
            "frame_seconds",
            "A frame's time by stage: wait (until its call began), step (the call; its graphs by name), encode (Opus and "
            "the queues before and after it), total (from its due time to the socket).",
            LATENCY_S,
            "stage",
        )
        self.batch_size = histogram("batch_size", "Conversations stepped in one call.", BATCHES)
        self.priming_seconds = histogram(
            "priming_seconds", "Seconds between getting a slot and the handshake.", PRIMING_S
        )
        self.loop_lag = histogram("event_loop_lag_seconds", "Delay of the event loop when it wakes a task.", LATENCY_S)
        self.slots = gauge("slots", "Slots in total.")
        self.slots_used = gauge(
            "slots_used", "Slots in use: in a conversation, being primed, or kept for a lost client."
        )
        self.slots_kept = gauge("slots_kept", "Slots kept for clients that lost their connection.")
        self.queue_length = gauge("queue_length", "Clients waiting for a slot.")
        self.connections = gauge("connections", "Open connections of any kind.")
        self.cut = counter(
            "connections_cut", "Connections cut: no request in time, too many, or too many bytes.", "reason"
        )
        self.frames = counter("frames", "Frames answered.")
        self.late_frames = counter("late_frames", "Frames answered later than 80 ms after they were due.")
        self.dropped_frames = counter(
            "dropped_frames",
            "Frames dropped, by reason: backlog (the client's frames), outbox (the agent's).",
            "reason",
        )
        self.bad_audio = counter(
            "bad_audio", "Damaged Ogg pages and Opus packets received, and messages that hold no audio."
        )
        self.ignored = counter(
            "ignored", "Input from clients without effect: parameters, and messages by kind.", "what"
        )
        self.orders = counter(
            "orders", "Orders of clients to their conversations, by order and result: done, refused.", "order", "result"
        )
        self.rebuilds = counter(
            "rebuilds", "Memories that were rebuilt, by cause: order, window (--memory-window).", "cause"
        )
        self.utterances = counter(
            "utterances",
            "Utterances of users, by result: heard, empty (no words in it), dropped (too many waited), failed.",
            "result",
        )
        self.words_seconds = histogram(
            "words_seconds", "Seconds between the end of an utterance and its words.", PRIMING_S
        )
        self.transcriber_restarts = counter("transcriber_restarts", "Times that the transcriber was started again.")
        self.snapshots = gauge("snapshots", "Snapshots that are kept.")
        self.snapshot_bytes = gauge("snapshot_bytes", "Bytes of the snapshots that are kept.")
        self.bytes = counter("bytes", "Bytes of messages, by direction: in, out.", "direction")
        self.conversations = counter("conversations", "Conversations begun, by name in --protocols.", "protocol")
        self.resumed = counter("resumed", "Conversations resumed over a new connection.")
        self.refused = counter("refused", "Requests for a conversation that were refused, by HTTP status.", "status")
        self.partings = counter("partings", "Ended connections of conversations, by cause.", "cause")
        ProcessCollector(registry=registry)
        registry.register(_ThreadTimes())

    def text(self) -> bytes:
        """The page in Prometheus' format."""
        return generate_latest(self.registry)


class _ThreadTimes(Collector):
    """Processor seconds of this process's Python threads: scheduler, hearing, speech, event loop."""

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily("pplex_thread_seconds", "Processor seconds by thread.", labels=["thread"])
        for thread in threading.enumerate():
            if thread.ident is not None and hasattr(time, "pthread_getcpuclockid"):  # not on Windows
                name = "event loop" if thread is threading.main_thread() else thread.name
                family.add_metric([name], time.clock_gettime(time.pthread_getcpuclockid(thread.ident)))
        return [family]
