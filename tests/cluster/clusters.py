"""A release of the chart on a real cluster, for tests."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.binaries import HELM, KUBECTL, binary, run
from deploy.manifests import CHART

ROOT = Path(__file__).parents[2]
MINUTES = 60.0
LABEL = "app.kubernetes.io/component"
CONNECTING = """
import socket, sys
name, address, port = sys.argv[1:]
socket.getaddrinfo(name, port)
try:
    socket.create_connection((address, int(port)), 5)
except OSError:
    print("not reached")
else:
    print("reached")
"""


@dataclass(frozen=True)
class Release:
    """The chart in a namespace of its own, with the preset for small clusters."""

    context: str
    namespace: str

    def kubectl(self, *words: str) -> str:
        return run(KUBECTL, "--context", self.context, "--namespace", self.namespace, *words)

    def helm(self, *words: str) -> str:
        return run(HELM, "--kube-context", self.context, "--namespace", self.namespace, *words)

    def install(self, act: str = "install", *more: str) -> None:
        """Install or upgrade it, and wait until everything but inference is there (inference waits for a promotion)."""
        values = str(CHART / "values-vista-cpu.yaml")
        self.helm(act, "sfumato", str(CHART), "--create-namespace", "--values", values, *more)
        for name in self.names("deployment", f"{LABEL}!=inference") + self.names("statefulset"):
            self.kubectl("rollout", "status", name, "--timeout=20m")

    def names(self, kind: str, selector: str = "") -> list[str]:
        """Objects as ``kind/name``."""
        return self.kubectl("get", kind, "--selector", selector, "--output", "name").split()

    def remove(self) -> None:
        """Its namespace and all that is in it."""
        self.kubectl("delete", "namespace", self.namespace, "--wait=true", "--timeout=5m")

    def secret(self, name: str, key: str) -> str:
        """A key of one of its secrets."""
        found = self.kubectl("get", "secret", name, "--output", "json")
        return base64.b64decode(json.loads(found)["data"][key]).decode()

    @contextmanager
    def forwarded(self, service: str, port: int) -> Iterator[str]:
        """A service of it on this machine, as host:port."""
        line = [binary(KUBECTL), "--context", self.context, "--namespace", self.namespace]
        line += ["port-forward", f"service/sfumato-{service}", f":{port}"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
                assert found is not None
                yield f"127.0.0.1:{found[1]}"
            finally:
                process.terminate()

    @contextmanager
    def trial(self, name: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """The chart's own trial, from outside, while a test does what it likes to the cluster."""
        with self.forwarded("orchestrator", 7106) as address:
            token = self.secret("sfumato-auth", "grpc-token")
            given = {"ORCHESTRATOR": address, "TRIAL": name, "SFUMATO_CLIENT_TOKEN": token, "PYTHONPATH": str(ROOT)} | more
            line = [sys.executable, str(CHART / "files" / "trial.py")]
            with subprocess.Popen(line, env=os.environ | given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                try:
                    yield process
                finally:
                    process.kill()

    def made(self, run_id: str, file: str = "adapter.safetensors") -> str:
        """The SHA-256 of what a run made, out of the artifact store itself."""
        path = f"/var/lib/sfumato/artifacts/runs/{run_id}/outcome.json"
        outcome = json.loads(self.kubectl("exec", "deployment/sfumato-orchestrator", "--", "cat", path))
        return outcome["files"][file]

    def may(self, account: str, *words: str) -> bool:
        """Whether a service account of it may do something, as ``kubectl auth can-i`` puts it."""
        line = [binary(KUBECTL), "--context", self.context, "--namespace", self.namespace, "auth", "can-i", *words]
        line += ["--as", f"system:serviceaccount:{self.namespace}:{account}"]
        said = subprocess.run(line, capture_output=True, text=True).stdout.strip()
        assert said in ("yes", "no"), said
        return said == "yes"

    def reaches(self, source: str, target: str, port: int) -> bool:
        """Whether a pod of one component can open a connection to another's."""
        return self._connects(["exec", f"deployment/sfumato-{source}", "--"], target, port)

    def stranger_reaches(self, target: str, port: int, image: str) -> bool:
        """Whether a pod that is none of the release's can."""
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}
        container = {"name": "stranger", "image": image, "securityContext": security | {"runAsNonRoot": True}}
        words = ["run", "stranger", f"--image={image}", "--rm", "--attach", "--restart=Never", "--override-type=strategic"]
        words += ["--overrides", json.dumps({"apiVersion": "v1", "spec": {"containers": [container]}})]
        return self._connects([*words, "--command", "--"], target, port)

    def _connects(self, words: list[str], target: str, port: int) -> bool:
        """By the pod's own address: a service whose pods are not ready refuses whatever the policies say. What cannot look up names is
        an error and no answer, for it would reach nothing with no policy either."""
        address = self.kubectl("get", "pod", "--selector", f"{LABEL}={target}", "--output", "jsonpath={.items[0].status.podIP}")
        said = self.kubectl(*words, "python", "-c", CONNECTING, f"sfumato-{target}", address, str(port))
        assert said.count("reached") == 1, said
        return "not reached" not in said


def run_of(trial: subprocess.Popen[str]) -> str:
    """The run's id, the first word that a trial says."""
    assert trial.stdout is not None
    return trial.stdout.readline().strip()


def ended(trial: subprocess.Popen[str]) -> None:
    """Wait for the end of a trial, a good one."""
    assert trial.stdout is not None
    told = trial.stdout.read()
    assert trial.wait(20 * MINUTES) == 0, told


def wait_until(met: Callable[[], Any], what: str, minutes: float = 10.0) -> None:
    deadline = time.monotonic() + minutes * MINUTES
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(2.0)
