"""The same service by Bento's own command: its documentation as it stands there, and requests made up from its OpenAPI."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import composite
from openai import OpenAI

from sfumato.registry.client import RegistryClient
from sfumato.runtime.images import decode_image, read_image
from sfumato.runtime.processes import free_ports
from sfumato.runtime.settings import ClientSettings
from tests.docs.samples import samples
from tests.integration.inference.serving import Serving, register, registry_with_a_version, serving
from tests.integration.programs import ROOT, SECONDS

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("bento")
    (port,) = free_ports([0])
    script = str(Path(sys.executable).with_name("bentoml"))
    command = (script, "serve", "services.inference:Inference", "--host", "127.0.0.1", "--port", str(port), "--working-dir", str(ROOT))
    environment = {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder / "bentoml")}
    with registry_with_a_version(folder) as (address, version), serving(address, version, command=command, **environment) as running:
        yield running
        assert running.end() == 0, "".join(running.log)


def test_the_documents_examples_work_as_they_stand_there(served: Serving, tmp_path: Path) -> None:
    examples = {sample.language: sample.text for sample in samples("served")}
    assert len(samples("served")) == 2
    for language, program in (("bash", ["bash", "-euo", "pipefail", "-c"]), ("python", [sys.executable, "-c"])):
        text = examples[language].replace("http://localhost:3000", served.url)
        done = subprocess.run([*program, text], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, env=os.environ)
        assert done.returncode == 0, done.stderr
        if language == "bash":
            assert read_image(tmp_path / "moon.png").shape == (64, 64, 3)
        else:
            assert [line.split()[0] for line in done.stdout.splitlines()] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


def test_probes_and_metrics_leave_no_line_in_the_log(served: Serving) -> None:
    quiet = ("/livez", "/readyz", "/metrics")
    for path in quiet:
        assert served.get(path)[0] == 200
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=SECONDS) as client:
        client.images.generate(prompt="a lake by night")
    while not any('"painted"' in line for line in served.log):
        time.sleep(0.05)
    assert not [line for line in served.log if any(path in line for path in quiet)]


def test_pages_and_descriptions_load_nothing_from_elsewhere(served: Serving) -> None:
    for page in ("/", "/docs"):
        status, text = served.get(page)
        assert status == 200
        links = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert links and not [link for link in links if link.startswith(("http", "//"))]
        for link in links:
            if not link.startswith("data:"):
                assert served.get(f"/{link}")[0] == 200, link


def test_an_alias_that_moves_is_followed_and_no_request_fails(served: Serving) -> None:
    """Forward by a new version, back by a rollback, under load; every answer says which version it is of, and is of that one."""
    seen: list[tuple[str, bytes]] = []
    over = threading.Event()

    def ask() -> None:
        with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client:
            while not over.is_set():
                raw = client.images.with_raw_response.generate(prompt="a moon", extra_body={"seed": 1, "num_inference_steps": 2})
                picture = base64.b64decode((raw.parse().data or [])[0].b64_json or "")
                seen.append((raw.headers["x-sfumato-model-version"], picture))

    def until(version: str) -> None:
        deadline, before = time.monotonic() + SECONDS, len(seen)
        while [each for each, _ in seen[before:]][-8:] != [version] * 8:
            assert time.monotonic() < deadline, served.log[-20:]
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool, RegistryClient(served.registry, ClientSettings()) as registry:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            until(served.version)
            second = register(registry, 2)
            until(second)
            registry.rollback("production", expected=second, reason="a test")
            until(served.version)
        finally:
            over.set()
        for each in asking:
            each.result()
    assert {version for version, _ in seen} == {served.version, second}
    for version in (served.version, second):
        pictures = [decode_image(picture).astype(int) for of, picture in seen if of == version]
        assert all(np.abs(picture - pictures[0]).max() <= 2 for picture in pictures)  # of one version, and not of the other
    one, other = (next(decode_image(picture).astype(int) for of, picture in seen if of == version) for version in (served.version, second))
    assert np.abs(one - other).max() > 10


def test_every_requests_answer_is_as_the_service_describes_it(served: Serving, request: pytest.FixtureRequest) -> None:
    """Schemathesis: good and bad requests made up from the service's own description; `--fuzz 2000` makes up more."""
    seen = fuzzed(served.url, int(request.config.getoption("--fuzz") or 0))
    assert served.get("/readyz")[0] == 200
    assert sum(seen.values()) >= 1000 and seen["2xx"] >= 50, seen


def fuzzed(url: str, cases: int) -> Counter[str]:
    """How many requests of each kind of status were answered; none was with 5xx, nor otherwise than described."""
    import schemathesis
    from schemathesis.checks import CHECKS as KNOWN
    from schemathesis.checks import load_all_checks

    load_all_checks()
    checks: Any = [KNOWN.get_one(name) for name in CHECKS]
    seen: Counter[str] = Counter()
    every = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]
    quiet = settings(max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=every)
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation: Any = found.ok()  # pyright: ignore[reportAttributeAccessIssue] (a description with a defect has none)
        for mode in schemathesis.GenerationMode:

            def ask(case: schemathesis.Case) -> None:
                response = case.call_and_validate(base_url=url, checks=checks)
                seen[f"{response.status_code // 100}xx"] += 1

            with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parameters
                quiet(given(case=drawn(operation.as_strategy(generation_mode=mode)))(ask))()
    return seen


@composite
def drawn(draw: Any, cases: Any) -> Any:
    """A case that asks for one step: what is refused does not depend on them. Some files stumble in Schemathesis's own filters."""
    try:
        case = draw(cases)
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        reject()
    if isinstance(case.body, dict) and isinstance(case.body.get("num_inference_steps"), int | None):
        case.body["num_inference_steps"] = 1
    return case
