"""A rendered release as processes: exactly the rendered commands, environments and files, and an iteration of ArtAug through all of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.runtime.supervisor import serving
from tests.deploy.charts import rendered
from tests.deploy.pods import PORTS, Pods, certified

SECONDS = 300.0
RELEASE = ("vista-cpu", "--set", "vlm.kind=in-process", "--set", "tls.enabled=true", "--set", "tls.certManager.enabled=true")


def _probe(pods: Pods, service: str, path: str) -> int:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{pods.ports[PORTS[service] + 100]}{path}").status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return 0


@pytest.fixture
def release(tmp_path: Path) -> Iterator[tuple[Pods, dict[str, subprocess.Popen[str]]]]:
    """The bus and all services, each as its pod would be; they end with the test."""
    objects = rendered(*RELEASE)
    pods = Pods(objects, tmp_path, certified(objects, tmp_path))
    running = {"nats": pods.start_bus()}
    try:
        running |= {service: pods.start(service) for service in PORTS}
        yield pods, running
    finally:
        for process in running.values():
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_rendered_runs_an_iteration_with_passwords_certificates_and_probes(
    release: tuple[Pods, dict[str, subprocess.Popen[str]]]
) -> None:
    pods, running = release
    deadline = time.monotonic() + SECONDS
    while not all(_probe(pods, service, "/readyz") == 200 for service in PORTS):
        ended = {service: pods.log(service)[-2000:] for service, process in running.items() if process.poll() is not None}
        assert not ended and time.monotonic() < deadline, ended
        time.sleep(0.5)
    assert {_probe(pods, service, "/livez") for service in PORTS} == {200}

    # A stranger is turned away by the certificate before a token counts.
    assert not serving(f"localhost:{pods.ports[PORTS['orchestrator']]}")

    pods.mounted("test")
    environment = pods.environment("test") | {"TRIAL": "chart"}
    trial = subprocess.run(
        [sys.executable, pods.here("test", "/trial/trial.py")], env=environment, cwd="/", capture_output=True, text=True, timeout=SECONDS
    )
    assert trial.returncode == 0, trial.stderr + pods.log("orchestrator")[-2000:]
    told = json.loads(trial.stdout.splitlines()[-1])
    assert told["run"].startswith("chart-") and {"report.html", "report.json", "adapter.safetensors"} <= told["files"].keys()

    metrics = urllib.request.urlopen(f"http://127.0.0.1:{pods.ports[PORTS['orchestrator'] + 100]}/metrics").read().decode()
    assert 'sfumato_queue_lag{service="generator"} 0.0' in metrics and "sfumato_bus_stored_bytes" in metrics

    # Every secret is a file and nothing else: no log and no environment has it.
    secrets = {path.read_text() for path in Path(pods.mounted("generator")).glob("run/secrets/sfumato/SFUMATO_*")}
    assert len(secrets) == 2
    for service, process in running.items():
        environ = Path(f"/proc/{process.pid}/environ").read_text()
        for secret in secrets:
            assert secret not in environ and secret not in pods.log(service), service

    for service in PORTS:  # told to end, all of them do, in good order
        running[service].terminate()
    assert {service: running[service].wait(60) for service in PORTS} == dict.fromkeys(PORTS, 0)
