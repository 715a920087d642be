"""The images' sources: one for each deployable, which starts what the chart starts, without a fixed user, with its own extra only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from deploy.images import DEPLOYABLES
from deploy.manifests import ROOT
from tests.deploy.charts import ALL, component, rendered, templates

FILES = {path.name.removesuffix(".Dockerfile"): path.read_text() for path in (ROOT / "docker").glob("*.Dockerfile")}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_image_of_the_chart_has_a_source_and_every_source_is_built() -> None:
    ours = set()
    for preset in ALL:
        for _, template in templates(rendered(preset)):
            for container in template["spec"]["containers"]:
                found = re.fullmatch(r"sfumato/([\w-]+):([\w.]+)", container["image"])
                ours |= {found[1]} if found else set()
                assert found or container["image"].startswith(("nats:", "vllm/")), container["image"]
    assert ours == set(DEPLOYABLES) == set(FILES) - {"torch"}


@pytest.mark.parametrize("name", DEPLOYABLES)
def test_an_image_starts_what_the_chart_starts_and_nothing_as_root(name: str) -> None:
    stages = re.split(r"^FROM ", FILES[name], flags=re.MULTILINE)
    assert len(stages) == 3 and not re.search(r":latest|HEALTHCHECK|ADD ", FILES[name])
    last = stages[-1]
    assert "USER 10001:10001" in last and "RUN" not in last  # nothing is installed in what is shipped
    for label in ("title", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in last
    base = re.search(r"^ARG (BASE|TORCH)=(\S+:[\w.-]+)$", FILES[name], re.MULTILINE)
    computes = name == "registry" or any("torch" in need or "vllm" in need for need in EXTRAS[_extra(name)])
    assert base is not None and base[1] == ("TORCH" if computes else "BASE")
    pods = {component(template): template["spec"]["containers"][0] for _, template in templates(rendered("vista-cpu"))}
    pod = pods["vlm" if name == "vlm-cpu" else name]
    command = json.loads(re.findall(r"^CMD (\[.*\])$", last, re.MULTILINE)[0])
    assert pod["command"][: len(command)] == command
    exposed = re.findall(r"^EXPOSE (.*)$", last, re.MULTILINE)[0].split()
    assert exposed == [str(port["containerPort"]) for port in pod["ports"]]


# What an image does not have, for its extra does not ask for it: of those that have least.
ABSENT = {
    "grounding": "diffusers peft nudenet sqlalchemy bentoml matplotlib jinja2 vllm",
    "scoring": "diffusers peft accelerate sqlalchemy bentoml matplotlib jinja2 vllm",
    "registry": "diffusers peft transformers torchvision nudenet bentoml matplotlib jinja2 vllm",
    "orchestrator": "torch diffusers peft transformers torchvision nudenet sqlalchemy bentoml vllm",
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_program_starts_without_what_only_others_need(name: str) -> None:
    module = "orchestrator.app" if name == "orchestrator" else f"services.{name}.app"
    lines = f"import sys\nfor name in {ABSENT[name].split()!r}: sys.modules[name] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", lines], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _extra(name: str) -> str:
    """The extra of its own that an image installs."""
    (extras,) = re.findall(r"install\.sh ([\w,]+)", FILES[name])
    own, *shared = extras.split(",")
    assert shared in ([], ["grpc"]) and own == ("vlm" if name == "vlm-cpu" else name)
    return own
