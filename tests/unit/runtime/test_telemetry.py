"""Telemetry: headers that carry traces and context fields, a log with them, metrics over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from sfumato.runtime import telemetry
from sfumato.runtime.telemetry import bound, incoming, outgoing, tracer

ROOT = Path(__file__).parents[3]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def program(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The log of a subprocess whose standard error is not a terminal."""
    given = {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", text], env=given, capture_output=True, text=True, timeout=60, check=True)


def test_without_context_there_are_no_headers() -> None:
    assert outgoing() == {}
    with incoming(None), incoming({}), incoming({"Nats-Msg-Id": "1"}):
        assert outgoing() == {}


def test_a_trace_and_its_context_fields_continue_in_the_receiver() -> None:
    with incoming({"Traceparent": PARENT}), bound(run="r1", iteration=2, stage="pairs", task="not carried"):
        headers = outgoing()
    assert headers["traceparent"] == PARENT and outgoing() == {}
    with incoming(headers):
        assert structlog.contextvars.get_contextvars() == {"run": "r1", "iteration": "2", "stage": "pairs"}
        with tracer.start_as_current_span("no exporter records it, and the trace continues"):
            assert outgoing() == headers
    assert structlog.contextvars.get_contextvars() == {} and not trace.get_current_span().get_span_context().is_valid


@given(st.dictionaries(st.sampled_from(telemetry.CARRIED), st.text(max_size=300)))
def test_context_fields_are_cut_to_the_limit(words: dict[str, str]) -> None:
    with bound(**words):
        headers = outgoing()
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    with incoming(headers):
        assert {name: str(word).strip() for name, word in structlog.contextvars.get_contextvars().items()} == {
            name: word[:200].strip() for name, word in words.items()
        }


@given(st.dictionaries(st.sampled_from(["traceparent", "tracestate", "baggage", "BAGGAGE"]), st.text(max_size=200)))
def test_untrusted_headers_bind_only_known_context_fields(headers: dict[str, str]) -> None:
    with incoming(headers):
        assert set(structlog.contextvars.get_contextvars()) <= set(telemetry.CARRIED)
        outgoing()


LOGGING = """
import logging, sys
from sfumato.runtime.settings import TelemetrySettings
from sfumato.runtime.telemetry import bound, incoming, observing
with observing("test", TelemetrySettings()), incoming({"traceparent": "%s"}), bound(run="r1", task="t"):
    logging.getLogger("some.part").info("painted %%d", 3, extra={"seconds": 1.5})
    logging.getLogger("some.part").debug("not wanted")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("some.part").exception("it failed")
"""


def test_a_log_without_a_terminal_is_json_with_the_context_fields() -> None:
    lines = [json.loads(line) for line in program(LOGGING % PARENT).stderr.splitlines()]
    assert [line["message"] for line in lines] == ["painted 3", "it failed"]
    assert {"run": "r1", "task": "t", "level": "info", "logger": "some.part", "seconds": 1.5}.items() <= lines[0].items()
    assert lines[0]["trace"] == PARENT[3:35] and "ZeroDivisionError" in lines[1]["exception"]


def test_a_log_can_be_text() -> None:
    told = program(LOGGING % PARENT, SFUMATO_LOG_FORMAT="text", SFUMATO_LOG_LEVEL="ERROR").stderr
    assert "it failed" in told and "ZeroDivisionError" in told and "run=r1" in told and "painted" not in told and "\x1b" not in told


SERVING = """
import urllib.request
from sfumato.runtime import telemetry
from sfumato.runtime.settings import TelemetrySettings
telemetry.tasks.labels("scoring.score", "done").inc()
with telemetry.observing("test", TelemetrySettings()) as port:
    print(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
"""


def test_metrics_are_served_where_the_settings_say() -> None:
    told = program(SERVING, SFUMATO_METRICS_ADDRESS="127.0.0.1:0").stdout
    assert 'sfumato_tasks_total{kind="scoring.score",outcome="done"} 1.0' in told and "process_cpu_seconds_total" in told


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999999", "192.0.2.1:80"])
def test_an_address_that_cannot_be_used_is_named(address: str) -> None:
    lines = """
from sfumato.errors import InvalidInput
from sfumato.runtime.settings import TelemetrySettings
from sfumato.runtime.telemetry import observing
try:
    observing("test", TelemetrySettings()).__enter__()
except InvalidInput as error:
    print(error)
"""
    said = program(lines, SFUMATO_METRICS_ADDRESS=address).stdout
    refused = (
        "metrics_address: 192.0.2.1:80 cannot be listened on" if address == "192.0.2.1:80" else "SFUMATO_METRICS_ADDRESS: must be host:port"
    )
    assert said.startswith(refused)
