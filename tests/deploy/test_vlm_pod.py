"""The rendered pods of vLLM and of grounding as processes, under TLS: the one is believed by its certificate and not otherwise."""

from __future__ import annotations

import platform
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from services.grounding.engine import Query
from services.grounding.http_backend import HttpBackend, model_served
from sfumato.errors import Unavailable
from tests.deploy.charts import Object, component, rendered, templates
from tests.deploy.pods import PORTS, Pods, certified

# Where `make setup` installs vLLM this runs, and fails if it is missing; elsewhere there is no CPU build of it.
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
RELEASE = ("vista-cpu", "--set", "tls.enabled=true", "--set", "tls.certManager.enabled=true", "--set", "vlm.threads=1")
SECONDS = 600.0


def _probed(pods: Pods, name: str, probe: Object) -> int:
    """The status that the kubelet would see: it shows no certificate and looks at none."""
    look = probe["httpGet"]
    port = pods.ports[{"https": 8000, "metrics": PORTS.get(name, 0) + 100}[look["port"]]]
    try:
        with urllib.request.urlopen(
            f"{look.get('scheme', 'HTTP').lower()}://localhost:{port}{look['path']}", context=ssl._create_unverified_context()
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not SUPPORTED, reason="no vLLM for this platform")
@pytest.mark.timeout(1500)
def test_grounding_asks_vllm_over_tls_and_believes_its_authority_only(tmp_path: Path) -> None:
    objects = rendered(*RELEASE)
    pods = Pods(objects, tmp_path, certified(objects, tmp_path))
    probes = {component(template): template["spec"]["containers"][0].get("readinessProbe") for _, template in templates(objects)}
    running = {"nats": pods.start_bus()}
    try:
        deadline = time.monotonic() + SECONDS
        for name in ("vlm", "grounding"):
            running[name] = pods.start(name)
            while _probed(pods, name, probes[name]) != 200:
                assert running[name].poll() is None and time.monotonic() < deadline, pods.log(name)[-3000:]
                time.sleep(0.5)
        environment = pods.environment("grounding")
        url, ca = environment["SFUMATO_VLM_URL"], Path(environment["SFUMATO_VLM_CA"])
        assert url.startswith("https://")
        backend = HttpBackend(url, model_served(url, ["vista"], ca=ca), ca=ca)
        assert backend.answer(Query((), "a lake by night", max_tokens=4))
        backend.close()
        for address, others in ((url, None), (url.replace("https", "http"), ca)):  # another authority, and in the clear
            with pytest.raises(Unavailable, match="does not answer"):
                model_served(address, ["vista"], ca=others)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(60)
