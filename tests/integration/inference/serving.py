"""The real service: `sfumato serve` as a process, on a registry of its own with a version of Vista in it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.diffusion.families.flux import FluxFamily
from sfumato.lora.adapter import Adapter
from sfumato.registry.bases import base_modules
from sfumato.registry.client import RegistryClient
from sfumato.registry.records import Base, WeightedAdapter
from sfumato.runtime.models.adapters import encode_adapter
from sfumato.runtime.settings import ClientSettings
from sfumato.vista import weights
from tests.integration.programs import ROOT, SECONDS, program

PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(eq=False)
class Serving:
    """A process that serves, its log, and the registry that it follows."""

    url: str
    registry: str
    version: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    audit: Path = Path("audit.jsonl")
    closing: list[Callable[[], object]] = field(default_factory=list)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Its exit status once it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=SECONDS) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def adapter_file(seed: int, size: float = 0.05) -> tuple[str, bytes]:
    """SHA-256 and bytes of an adapter with random factors on Vista's attention."""
    generator, factors = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in sorted(base_modules(weights.locate("generator")).items()):
        module = name.removeprefix("transformer.")
        if re.fullmatch(FluxFamily.lora_targets, module) and module.endswith(("to_q", "to_k", "to_v")):
            a = torch.randn(2, columns, generator=generator)
            factors[module] = (a, size * torch.randn(rows, 2, generator=generator))
    data = encode_adapter(Adapter(factors))
    return hashlib.sha256(data).hexdigest(), data


def register(registry: RegistryClient, seed: int, alias: str = "production") -> str:
    """The id of a version with such an adapter, to which the alias points from now on."""
    folder, (digest, data) = weights.locate("generator"), adapter_file(seed)
    version = registry.register(Base(model_version(folder), "vista", base_modules(folder)), [WeightedAdapter(digest)], files={digest: data})
    registry.set_alias(alias, version.id, expected=registry.aliases().get(alias, ""), reason="a test")
    return version.id


@contextmanager
def registry_with_a_version(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a registry's process, and the version that production is."""
    database = f"sqlite:///{folder / 'registry.sqlite'}"
    with program("registry", folder / "artifacts", SFUMATO_REGISTRY_URL=database, SFUMATO_GRPC_TOKEN="") as (running, _):
        address = f"127.0.0.1:{running.port}"
        with RegistryClient(address, ClientSettings()) as registry:
            version = register(registry, 1)
        yield address, version


@contextmanager
def serving(
    registry: str, version: str, *options: str, command: Sequence[str] = (), **environment: str
) -> Iterator[Serving]:
    """`sfumato serve`, or another command that says where it listens, ready."""
    line = [*(command or (sys.executable, "-m", "sfumato.cli.main", "serve", "--port", "0")), *options]
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SFUMATO_INFERENCE_REGISTRY": registry, "SFUMATO_LOG_FORMAT": "json"}
    given["SFUMATO_INFERENCE_GOLDEN"] = str(Path(__file__).with_name("golden.txt"))  # one picture: it is to be ready soon
    process = subprocess.Popen(
        line, env=os.environ | given | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    served, listening = Serving("", registry, version, process), threading.Event()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                served.log.append(line)
                if not served.url and (found := PORT.search(line)):
                    served.url = f"http://127.0.0.1:{found[1]}"
                    listening.set()
        listening.set()

    reading = threading.Thread(target=read)
    reading.start()
    try:
        assert listening.wait(SECONDS)
        wait_until_ready(served)
        yield served
    finally:
        for close in served.closing:
            close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reading.join()


def wait_until_ready(served: Serving) -> None:
    """Until `/readyz` answers 200."""
    deadline = time.monotonic() + SECONDS
    while True:
        assert served.process.poll() is None and time.monotonic() < deadline, "".join(served.log)
        try:
            if served.get("/readyz")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
