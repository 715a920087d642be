"""A process's telemetry: traces over OTLP, metrics for Prometheus, and the context fields of its log (run, iteration, stage, task).

    with observing("scoring", TelemetrySettings()):              # once, where a program starts
        with incoming(message.headers), tracer.start_as_current_span("scoring.score"):
            ...                                                  # continues the sender's trace and context fields
        await client.publish(subject, data, headers=outgoing())  # passes both on

No configuration is required: without a collector spans are no-ops, and incoming context is still passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import structlog.contextvars
from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram

from sfumato.runtime import logs
from sfumato.runtime.probes import PROBES, listening
from sfumato.runtime.proxies import grpc_options
from sfumato.runtime.settings import TelemetrySettings

CARRIED = ("run", "iteration", "stage")
"""The context fields that travel with a message or a call."""
LONGEST_WORD = 200
EXPORT_SECONDS = 2.0
"""Seconds between exports, and the most that a process waits for its collector when it ends."""

_TRACE, _WORDS = TraceContextTextMapPropagator(), W3CBaggagePropagator()
_HEADERS = frozenset(_TRACE.fields | _WORDS.fields)

tracer = trace.get_tracer("sfumato")

# From an image in milliseconds to a training in hours.
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)

requests = Counter("sfumato_requests", "Calls answered, by method and gRPC status.", ["method", "code"])
request_seconds = Histogram("sfumato_request_seconds", "Seconds from a call's arrival to its end.", ["method"], buckets=SECONDS)
waiting = Gauge("sfumato_lane_waiting", "Calls and tasks that wait for the engine.")
in_work = Gauge("sfumato_lane_in_work", "Calls and tasks that the engine is at.")
engine_seconds = Counter("sfumato_engine_seconds", "Seconds in which the engine (and its GPU, where it has one) was at work.")
tasks = Counter("sfumato_tasks", "Tasks by kind and outcome: done, failed, retried (given back to be tried again).", ["kind", "outcome"])
parked = Counter("sfumato_tasks_parked", "Tasks that were set aside as dead letters, by service.", ["service"])
task_seconds = Histogram("sfumato_task_seconds", "Seconds of a task's work.", ["kind"], buckets=SECONDS)
samples = Counter("sfumato_samples", "Samples in tasks that were done.", ["kind"])


def outgoing() -> dict[str, str]:
    """Headers with the current trace and context fields, in ASCII; empty if there are none."""
    carrier: dict[str, str] = {}
    _TRACE.inject(carrier)
    words = structlog.contextvars.get_contextvars()
    carried: Context | None = None
    for name in CARRIED:
        if name in words:
            carried = baggage.set_baggage(name, str(words[name])[:LONGEST_WORD], carried or Context())
    if carried is not None:
        _WORDS.inject(carrier, carried)
    return carrier


@contextmanager
def incoming(headers: Mapping[str, str] | None) -> Iterator[None]:
    """Continue the trace and the context fields in a message's or a call's headers, which are not trusted; names in any letter case."""
    carrier = {name.lower(): value for name, value in (headers or {}).items() if name.lower() in _HEADERS}
    if not carrier:
        yield
        return
    told = baggage.get_all(_WORDS.extract(carrier, Context()))
    words = {name: str(told[name])[:LONGEST_WORD] for name in CARRIED if name in told}
    token = context.attach(_TRACE.extract(carrier, context.get_current()))
    try:
        with bound(**words):
            yield
    finally:
        context.detach(token)


@contextmanager
def bound(**words: object) -> Iterator[None]:
    """Add these context fields to every log line and every span in the block: run, iteration, stage, task."""
    with structlog.contextvars.bound_contextvars(**words):
        yield


@contextmanager
def observing(service: str, settings: TelemetrySettings) -> Iterator[int]:
    """Logs, traces and metrics (with probes) of a process within a ``with`` block; yields the metrics port, 0 for none.

    Raises:
        InvalidInput: the metrics' address cannot be used.
    """
    logs.configure(settings)
    with ExitStack() as stack:
        if settings.telemetry_otlp:
            stack.callback(_exporting(service, settings.telemetry_otlp))
        port = 0
        if settings.metrics_address:
            port = stack.enter_context(listening(settings.metrics_address, PROBES))
        yield port


def _exporting(service: str, address: str) -> Callable[[], None]:
    """Send spans to a collector from now on; returns the function that sends the last spans and ends it."""
    # Imported here: only processes that export need them.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class BoundFields(SpanProcessor):
        """Adds the context fields as attributes to every span."""

        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            """Called before the span sets its own attributes."""
            span.set_attributes({f"sfumato.{name}": str(word) for name, word in structlog.contextvars.get_contextvars().items()})

    options: Any = tuple(grpc_options(address.partition("://")[2] or address))  # the exporter's types are too narrow
    exporter = OTLPSpanExporter(
        endpoint=address, insecure=not address.startswith("https://"), timeout=EXPORT_SECONDS, channel_options=options
    )
    provider = TracerProvider(resource=Resource.create({"service.name": f"sfumato-{service}"}), shutdown_on_exit=False)
    provider.add_span_processor(BoundFields())
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000 * EXPORT_SECONDS))
    trace.set_tracer_provider(provider)
    return provider.shutdown
