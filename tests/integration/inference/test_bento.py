"""The same service by Bento's own command: what its documentation says, as it stands there, and thousands of requests made up from its OpenAPI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sfumato.runtime.images import decode_image, read_image
from sfumato.runtime.processes import free_ports
from tests.integration.inference.serving import Serving, registry_with_a_version, serving
from tests.integration.programs import ROOT, SECONDS

PAGE = ROOT / "docs" / "services" / "inference.md"
EXAMPLE = re.compile(r"<!-- tested: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)
# With more steps than a few, thousands of pictures would take an hour; what a request is refused for does not depend on it.
QUICK = {"num_inference_steps": 1}


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
    examples = dict(EXAMPLE.findall(PAGE.read_text()))
    assert set(examples) == {"curl", "python"}
    for name, program in (("curl", ["bash", "-euo", "pipefail", "-c"]), ("python", [sys.executable, "-c"])):
        text = examples[name].replace("http://localhost:3000", served.url)
        done = subprocess.run([*program, text], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, env=os.environ)
        assert done.returncode == 0, done.stderr
        if name == "curl":
            assert read_image(tmp_path / "moon.png").shape == (64, 64, 3)
        else:
            assert [line.split()[0] for line in done.stdout.splitlines()] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


def test_pages_and_descriptions_load_nothing_from_elsewhere(served: Serving) -> None:
    for page in ("/", "/docs"):
        status, text = served.get(page)
        assert status == 200
        links = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert links and not [link for link in links if link.startswith(("http", "//"))]
        for link in links:
            if not link.startswith("data:"):
                assert served.get(f"/{link}")[0] == 200, link


def test_every_requests_answer_is_as_the_service_describes_it(served: Serving, request: pytest.FixtureRequest) -> None:
    """Schemathesis: good and bad requests from the service's own description, in its order and in none."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    seen: Counter[str] = Counter()
    cases = request.config.getoption("--fuzz")
    quiet = settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with httpx.Client(base_url=served.url, timeout=SECONDS) as session:
        for operation in described.get_all_operations():
            for mode in schemathesis.GenerationMode:
                strategy = operation.ok().as_strategy(generation_mode=mode)

                @quiet
                @given(case=strategy)
                def ask(case: Any, mode: Any = mode) -> None:
                    if isinstance(case.body, dict):
                        case.body |= QUICK if isinstance(case.body.get("num_inference_steps"), int) else {}
                        case.body["n"] = 1 if isinstance(case.body.get("n"), int) and case.body["n"] in range(1, 11) else case.body.get("n")
                    response = case.call(base_url=served.url)
                    assert response.status_code < 500, (response.status_code, response.text, case.as_curl_command())
                    seen[f"{mode.name} {response.status_code // 100}xx"] += 1

                ask()
        assert session.get("/readyz").status_code == 200
    assert sum(seen.values()) >= 1000, seen
    assert decode_image
