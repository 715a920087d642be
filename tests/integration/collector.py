"""A collector of traces for tests: OTLP over gRPC, as any of them speaks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Told:
    """A span as it arrived: who told it, what of, and its place in its trace."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    attributes: dict[str, str | int]
    events: dict[str, dict[str, str | int]]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Told] = []
        self._news = threading.Condition()

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any) -> Any:
        with self._news:
            for part in request.resource_spans:
                (service,) = (a.value.string_value for a in part.resource.attributes if a.key == "service.name")
                self.spans += [_told(service, span) for scope in part.scope_spans for span in scope.spans]
            self._news.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, wanted: Callable[[Told], bool], seconds: float = 30.0) -> Told:
        """The first span like that."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for span in self.spans:
                    if wanted(span):
                        return span
                assert self._news.wait(deadline - time.monotonic()), [(span.service, span.name) for span in self.spans]


def _told(service: str, span: Any) -> Told:
    events = {event.name: _values(event.attributes) for event in span.events}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Told(service, span.name, span.kind, *ids, _values(span.attributes), events)


def _values(attributes: Any) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on this machine; ``url`` is where."""
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
