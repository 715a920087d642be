"""The images of all deployed programs: ``python -m deploy.images build`` and ``smoke``, with Docker's engine on this machine.

    build [NAME...]   build them, the common layer first, and print their sizes
    smoke [NAME...]   start each as a pod does, wait until it reports ready, and call it over gRPC or HTTP

The base is an argument: ``BASE=...`` names another image with Python 3.11, ``TORCH_INDEX=...`` an index with PyTorch's CPU build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.processes import HOST, free_ports
from sfumato.runtime.supervisor import serving

ROOT = Path(__file__).parents[1]
GRPC = ("generator", "grounding", "scoring", "trainer", "registry", "orchestrator")
DEPLOYABLES = (*GRPC, "inference", "vlm-cpu")
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of an image, and the bytes that are not in the PyTorch image."""

    whole: int
    own: int


def build(names: Sequence[str], base: str, torch_index: str) -> dict[str, Size]:
    """Build images and their base; returns their sizes.

    Raises:
        Unavailable: Docker's engine does not answer, or a build fails; the message holds the end of its log.
    """
    tag = version("sfumato")
    given = {"BASE": base} if base else {}
    torch = f"sfumato/torch:{tag}"
    _build("torch", torch, given | ({"TORCH_INDEX": torch_index} if torch_index else {}))
    common = _bytes(torch)
    sizes = {"torch": Size(common, common)}
    own = {"VERSION": tag, "REVISION": _revision()}
    for name in names:
        on_torch = "ARG TORCH" in (ROOT / "docker" / f"{name}.Dockerfile").read_text()
        _build(name, f"sfumato/{name}:{tag}", own | ({"TORCH": torch} if on_torch else given))
        whole = _bytes(f"sfumato/{name}:{tag}")
        sizes[name] = Size(whole, whole - common if on_torch else whole)
    return sizes


def smoke(names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Start every image with only what a pod gives it; yields its name and the seconds until it was ready.

    Raises:
        Unavailable: one ended, or was not ready in time; the message holds the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as nats:
        for name in names:
            yield name, _started(name, nats.url)


def _started(name: str, bus: str) -> float:
    port, metrics = free_ports([0, 0])
    environment = {
        "SFUMATO_GRPC_ADDRESS": f"{HOST}:{port}",
        "SFUMATO_METRICS_ADDRESS": f"{HOST}:{metrics}",
        "SFUMATO_RUNS": "/tmp/runs",
        "SFUMATO_BUS_URL": bus,
        "SFUMATO_GROUNDING_BACKEND": "transformers",
        "HOME": "/tmp",
        "USER": "sfumato",
        "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": "/tmp/bentoml",
    }
    command = {
        "inference": ["bentoml", "serve", "services.inference:Inference", "--host", HOST, "--port", str(port)],
        "vlm-cpu": ["sfumato", "vlm", "serve", "--profile", "vista", "--host", HOST, "--port", str(port)],
    }.get(name, [])
    look = {"inference": f"http://{HOST}:{port}/livez", "vlm-cpu": f"http://{HOST}:{port}/health"}.get(name, f"http://{HOST}:{metrics}/readyz")
    container = _run(f"sfumato/{name}:{version('sfumato')}", environment, command)
    began = time.monotonic()
    try:
        while not _answers(look):
            state = json.loads(_docker("inspect", "--format", "{{json .State}}", container))
            if not state["Running"] or time.monotonic() - began > SECONDS:
                logs = subprocess.run(["docker", "logs", "--tail", "40", container], capture_output=True, text=True)
                raise Unavailable(f"{name} is not ready (exit status {state['ExitCode']}):\n{logs.stdout}{logs.stderr}")
            time.sleep(0.5)
        took = time.monotonic() - began
        if name in GRPC and not serving(f"{HOST}:{port}"):
            raise Unavailable(f"{name} is ready and does not say SERVING over gRPC.")
        return took
    finally:
        _docker("rm", "--force", container)


def _run(image: str, environment: Mapping[str, str], command: Sequence[str]) -> str:
    """As a pod: a read-only root, nothing but scratch to write to, no capabilities, not root."""
    line = ["run", "--detach", "--network", "host", "--read-only", "--tmpfs", "/tmp:mode=1777", "--shm-size", "1g"]
    line += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    for variable, value in environment.items():
        line += ["--env", f"{variable}={value}"]
    return _docker(*line, image, *command).strip()


def _build(name: str, image: str, arguments: Mapping[str, str]) -> None:
    print(f"building {image}", file=sys.stderr, flush=True)
    line = ["build", "--quiet", "--network", "host", "--file", str(ROOT / "docker" / f"{name}.Dockerfile"), "--tag", image]
    for argument, value in arguments.items():
        line += ["--build-arg", f"{argument}={value}"]
    _docker(*line, str(ROOT))


def _docker(*words: str) -> str:
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unavailable("docker is not installed.", hint="Install Docker's engine.") from error
    if done.returncode:
        raise Unavailable(f"docker {words[0]} failed: {(done.stdout + done.stderr)[-2000:].strip()}")
    return done.stdout


def _bytes(image: str) -> int:
    return int(_docker("image", "inspect", "--format", "{{.Size}}", image))


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2.0).status == 200
    except (urllib.error.URLError, OSError):
        return False


def main(words: Sequence[str]) -> None:
    """The command line.

    Raises:
        InvalidInput: neither build nor smoke, or an image that there is not.
    """
    act, *names = words or ("",)
    unknown = set(names) - set(DEPLOYABLES)
    if act not in ("build", "smoke") or unknown:
        raise InvalidInput("command", "say build or smoke, and names of images if not all.", hint=f"They are {', '.join(DEPLOYABLES)}.")
    if act == "build":
        for name, size in build(names or DEPLOYABLES, os.environ.get("BASE", ""), os.environ.get("TORCH_INDEX", "")).items():
            print(f"{name:14}{size.whole / 1e6:8.0f} MB, of its own {size.own / 1e6:6.0f} MB")
    else:
        for name, seconds in smoke(names or DEPLOYABLES):
            print(f"{name:14} ready after {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
