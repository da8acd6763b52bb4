"""Traces for OpenTelemetry: the real SDK of a real server, and a collector that keeps what it gets."""

import asyncio
import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from callers import call, run, speech
from serving import Running, Serve

service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

PERSONA = "My secret name is Zebedee."
PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
STALL_S = 60.0


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it gets, and the raw requests; answers late if it stalls."""

    daemon_threads = True

    def __init__(self, stalls: bool = False):
        super().__init__(("127.0.0.1", 0), Inlet)
        self.requests: list[bytes] = []
        self.stalls = threading.Event()
        if stalls:
            self.stalls.set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}", **SOON}

    def resources(self) -> list[Any]:
        return [
            each for data in self.requests for each in service.ExportTraceServiceRequest.FromString(data).resource_spans
        ]

    def spans(self) -> list[Any]:
        return [span for each in self.resources() for scope in each.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans() if span.name == name]


class Inlet(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.stalls.is_set():
            time.sleep(STALL_S)
        assert self.path == "/v1/traces"
        self.server.requests.append(gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as running:
        for name, value in running.variables.items():
            monkeypatch.setenv(name, value)
        yield running
        running.shutdown()


def facts(span: Any) -> dict[str, Any]:
    values = {each.key: each.value for each in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def admitted(server: Running) -> list[dict[str, Any]]:
    return [event for event in server.events() if event["event"] == "conversation admitted"]


def test_a_conversation_is_one_trace_without_what_was_said(serve: Serve, collector: Collector) -> None:
    async def visit(url: str, headers: dict[str, str] | None) -> None:
        async with call(url, headers, text_prompt=PERSONA, voice_prompt="NATM1", token="tok-en") as caller:
            await (await caller.handshake()).talk(speech(10))

    with serve("--otel", "--token", "tok-en") as server:
        run(visit(server.url, {"traceparent": PARENT}))
        run(visit(server.url, None))
        server.wait_for(lambda: len(collector.named("conversation")) == 2)
        lines = admitted(server)
    assert [span.name for span in collector.spans()] == 2 * ["queue", "prime", "connection", "conversation"]
    first, second = collector.named("conversation")
    assert first.trace_id.hex() == PARENT.split("-")[1] and first.parent_span_id.hex() == PARENT.split("-")[2]
    assert second.trace_id != first.trace_id and not second.parent_span_id
    for line, whole, connection in zip(lines, (first, second), collector.named("connection"), strict=True):
        assert line["trace"] == whole.trace_id.hex()
        assert facts(whole) == {
            "pplex.conversation": line["conversation"],
            "pplex.audio": "f32",
            "pplex.cause": "client",
        }
        assert connection.parent_span_id == whole.span_id and connection.trace_id == whole.trace_id
        assert facts(connection)["pplex.frames"] == 10 and facts(connection)["pplex.cause"] == "client"
    assert not any(word in data for data in collector.requests for word in (b"Zebedee", b"NATM1", b"tok-en"))
    (resource, *_) = collector.resources()
    assert facts(resource.resource)["service.name"] == "pplex-export"


def test_a_resumed_conversation_is_one_trace_with_two_connections(serve: Serve, collector: Collector) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            await (await caller.handshake()).talk(speech(3))
            key = caller.session["resume"]
            caller.drop()
        async with call(url, resume=key) as again:
            await (await again.handshake()).talk(speech(5))

    with serve("--otel") as server:
        run(visit(server.url))
        server.wait_for(lambda: collector.named("conversation"))
    (whole,), connections = collector.named("conversation"), collector.named("connection")
    assert [facts(each)["pplex.frames"] for each in connections] == [3, 5]
    assert {each.parent_span_id for each in connections} == {whole.span_id}


def test_the_names_of_the_service_are_those_of_the_variables(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "voices")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pplex-1")

    async def visit(url: str) -> None:
        async with call(url) as caller:
            await caller.handshake()

    with serve("--otel") as server:
        run(visit(server.url))
        server.wait_for(lambda: collector.named("conversation"))
    found = facts(collector.resources()[0].resource)
    assert (found["service.name"], found["k8s.pod.name"]) == ("voices", "pplex-1")


@pytest.mark.parametrize("stalls", [True, False], ids=["that stalls", "that is not there"])
def test_a_collector_delays_neither_frames_nor_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, stalls: bool
) -> None:
    async def visit(server: Running) -> None:
        async with call(server.url) as caller:
            assert len(await (await caller.handshake()).talk(speech(10))) == 10
        await asyncio.to_thread(server.wait_for, lambda: server.state()["used"] == 0)

    with Collector(stalls=True) as collector:
        variables = collector.variables if stalls else {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **SOON}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(AssertionError, match="the server ended with 0"), serve("--otel") as server:
            run(visit(server))
            server.process.terminate()
            assert server.process.wait(20) == 0
        collector.shutdown()


MISSING = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_without_the_sdk_it_says_what_to_install(serve: Serve) -> None:
    said = r"(?s)the server did not start.*pip install 'pplex-export\[otel\]'"
    with pytest.raises(AssertionError, match=said), serve("--otel", prelude=MISSING):
        pass


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "console")]
)
def test_another_exporter_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    said = f"(?s)the server did not start.*{variable} is '{value}'"
    with pytest.raises(AssertionError, match=said), serve("--otel"):
        pass


def test_without_the_option_nothing_is_sent(serve: Serve, collector: Collector) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            await (await caller.handshake()).talk(speech(2))

    with serve() as server:
        run(visit(server.url))
        server.wait_for(lambda: server.state()["used"] == 0)
        assert "trace" not in admitted(server)[0]
    assert collector.requests == []
