"""A rendered release as processes: exactly the rendered commands, environments and files, and an iteration of ArtAug through all of it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.registry.client import RegistryClient
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.supervisor import serving
from sfumato.runtime.tasks import Task
from sfumato.vista import weights
from tests.deploy.charts import JOINT, rendered
from tests.deploy.pods import PORTS, Pods, certified

SECONDS = 400.0
RELEASE = ("vista-cpu", "--set", "vlm.kind=in-process", "--set", "tls.enabled=true", "--set", "tls.certManager.enabled=true")


def _probe(pods: Pods, service: str, path: str) -> int:
    return _asked(f"http://127.0.0.1:{pods.ports[PORTS[service] + 100]}{path}")


def _asked(url: str) -> int:
    """The status of an answer; 0 for none."""
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return 0


def _served(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run made is promoted, and the inference service paints with it."""
    address = f"http://127.0.0.1:{pods.ports[3000]}"
    assert _asked(f"{address}/livez") == 200 and _asked(f"{address}/readyz") == 503  # nothing is in production yet
    for variable, value in pods.environment("test").items():
        if variable.startswith("SFUMATO_"):
            monkeypatch.setenv(variable, value)
    with RegistryClient(f"localhost:{pods.ports[PORTS['registry']]}") as registry:
        newest = registry.list(limit=1).versions[0]
        registry.set_alias("production", newest.id, expected="", reason="it is better")
    deadline = time.monotonic() + SECONDS
    while _asked(f"{address}/readyz") != 200:
        assert time.monotonic() < deadline, pods.log("inference")[-3000:]
        time.sleep(0.5)
    wish = json.dumps({"model": "vista@production", "prompt": "a lake by night", "size": "64x64"}).encode()
    asking = urllib.request.Request(f"{address}/v1/images/generations", wish, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asking) as answer:
        assert base64.b64decode(json.load(answer)["data"][0]["b64_json"]).startswith(b"\x89PNG")


@pytest.fixture
def release(tmp_path: Path) -> Iterator[tuple[Pods, dict[str, subprocess.Popen[str]]]]:
    """The bus and all services, each as its pod would be; they end with the test."""
    objects = rendered(*RELEASE)
    pods = Pods(objects, tmp_path, certified(objects, tmp_path))
    running = {"nats": pods.start_bus()}
    try:
        running |= {service: pods.start(service) for service in (*PORTS, "inference")}
        yield pods, running
    finally:
        for process in running.values():  # killed outright, Bento would leave its worker behind
            process.terminate()
        for process in running.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_is_rendered_runs_an_iteration_with_passwords_certificates_and_probes(
    release: tuple[Pods, dict[str, subprocess.Popen[str]]], monkeypatch: pytest.MonkeyPatch
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

    _served(pods, monkeypatch)
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{pods.ports[PORTS['orchestrator'] + 100]}/metrics").read().decode()
    assert 'sfumato_queue_lag{service="generator"} 0.0' in metrics and "sfumato_bus_stored_bytes" in metrics

    # Every secret is a file and nothing else: no log and no environment has it.
    secrets = {path.read_text() for path in Path(pods.mounted("generator")).glob("run/secrets/sfumato/SFUMATO_*")}
    assert len(secrets) == 2
    for service, process in running.items():
        environ = Path(f"/proc/{process.pid}/environ").read_text()
        for secret in secrets:
            assert secret not in environ and secret not in pods.log(service), service

    served = (*PORTS, "inference")
    for service in served:  # told to end, all of them do, in good order
        running[service].terminate()
    assert {service: running[service].wait(60) for service in served} == dict.fromkeys(served, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_two_pods_of_a_rendered_job_train_together_with_what_they_may(tmp_path: Path) -> None:
    objects = rendered(*RELEASE, *JOINT)
    pods = Pods(objects, tmp_path, certified(objects, tmp_path))
    bus = pods.start_bus()
    pods.mounted("orchestrator")
    told = pods.environment("orchestrator")
    password = pods.mounted("orchestrator") / "run/secrets/sfumato/SFUMATO_BUS_PASSWORD"
    settings = BusSettings.model_validate(
        {"url": told["SFUMATO_BUS_URL"], "user": "orchestrator", "password": password.read_text(), "ca": told["SFUMATO_BUS_CA"]}
    )
    artifacts = ArtifactStore(told["SFUMATO_ARTIFACTS"])
    latents = artifacts.put(save({"latents": torch.randn(64, 32, generator=torch.Generator().manual_seed(1))}))
    params = {"rank": 2, "learning_rate": 1e-3, "steps": 2, "pictures": 4, "together": 2, "seed": 3}
    params |= {"width": 64, "height": 64, "adapter": ""}
    model = model_version(weights.locate("generator", weights.ROOT))
    items = ({"prompt": "a lake by night", "latents": latents},)
    task = Task(stage="train", kind="joint.train", items=items, params=params, model=model, model_reference="vista")
    members: list[subprocess.Popen[str]] = []
    try:
        members += [pods.start("joint", JOB_NAME="sfumato-joint-1", JOB_COMPLETION_INDEX=str(index)) for index in range(2)]
        with JetStreamTransport(settings, artifacts) as transport:
            transport.submit(task)
            done = transport.next()
        assert len(done.values[0]["losses"]) == 2 and set(done.files) == {"0.safetensors"}
        assert [member.wait(60) for member in members] == [0, 0], pods.log("joint")
    finally:
        for process in (*members, bus):
            process.kill()
            process.wait()
