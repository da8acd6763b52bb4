"""Sends the traces of conversations to a collector, by OpenTelemetry's SDK. Called by `server.app` for `serve --otel`.

The SDK reads its standard variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_TRACES_SAMPLER, OTEL_BSP_*. Spans have no voice, no persona, no token and no address of a client.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from pplex.runtime.errors import ConfigError
from pplex.server.tracing import Facts, Trace, Tracing

NAME = "pplex-export"
CLOSE_S = 3.0  # for the last spans, even if the collector does not answer
OUR_FAULTS = ("engine", "defect")  # causes of an end
SUPPORTED = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}


class OtelTracing(Tracing):
    """Spans in batches, sent by a thread of the SDK. Raises ConfigError if a variable asks for another exporter."""

    def __init__(self) -> None:
        for variable, value in SUPPORTED.items():
            if os.environ.get(variable, value) != value:
                raise ConfigError(
                    f"{variable} is {os.environ[variable]!r}, but --otel supports only {value!r}. Unset it."
                )
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(NAME)

    def accept(self, headers: Mapping[str, str]) -> None:
        context.attach(propagate.extract(headers, context=context.Context()))

    def begin(self, conversation: str, audio: str) -> Trace:
        facts = {"pplex.conversation": conversation, "pplex.audio": audio}
        return OtelTrace(self._tracer, self._tracer.start_span("conversation", kind=SpanKind.SERVER, attributes=facts))

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class OtelTrace(Trace):
    """A conversation's span, with a span for each stage."""

    def __init__(self, tracer: trace.Tracer, span: Span):
        self._tracer, self._span = tracer, span
        found = span.get_span_context()
        self.identity = trace.format_trace_id(found.trace_id) if found.is_valid else ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Facts]:
        facts: Facts = {}
        span = self._tracer.start_span(name, trace.set_span_in_context(self._span))
        try:
            yield facts
        finally:
            span.set_attributes({f"pplex.{key}": value for key, value in facts.items()})
            span.end()

    def end(self, cause: str) -> None:
        if not self._span.is_recording():
            return
        self._span.set_attribute("pplex.cause", cause)
        if cause in OUR_FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, cause))
        self._span.end()


def _resource() -> Resource:
    """The SDK's, from its variables. Without a name there, the service has ours."""
    found = Resource.create()
    is_named = not str(found.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
    return found if is_named else found.merge(Resource({SERVICE_NAME: NAME}))
