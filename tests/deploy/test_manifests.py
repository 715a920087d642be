"""The plain manifests are the chart: as `make manifests` writes them, and as kubectl puts them together."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.binaries import KUBECTL, binary, run
from deploy.manifests import GIVEN, PRESETS, TARGET, plain, rendered, write


def test_they_are_as_the_chart_writes_them_now(tmp_path: Path) -> None:
    write(tmp_path)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.yaml")}
    assert fresh == {path.relative_to(TARGET): path.read_text() for path in TARGET.rglob("*.yaml")}, "run `make manifests`"


@pytest.mark.parametrize("preset", ["", *PRESETS])
def test_kustomize_makes_of_them_what_helm_makes_of_the_chart(preset: str) -> None:
    built = run(KUBECTL, "kustomize", str(TARGET / (f"overlays/{preset}" if preset else "base")))
    objects = {(found["kind"], found["metadata"]["name"]): found for found in yaml.load_all(built, Loader=yaml.CSafeLoader)}
    assert objects == plain(rendered(preset, *GIVEN))


def test_the_script_makes_the_secrets_that_they_name() -> None:
    line = [str(TARGET / "secrets.sh"), "--dry-run=client", "-o", "json"]
    told = subprocess.run(line, env=os.environ | {"KUBECTL": binary(KUBECTL)}, capture_output=True, text=True, check=True).stdout
    auth, bus = (yaml.safe_load(part) for part in told.replace("}\n{", "}\n---\n{").split("---\n"))
    assert auth["metadata"]["name"] == "sfumato-auth" and len(base64.b64decode(auth["data"]["grpc-token"])) == 40
    values = {name: base64.b64decode(value).decode() for name, value in bus["data"].items()}
    users = values.keys() - {"passwords.conf"}
    assert users == {"generator", "grounding", "scoring", "trainer", "orchestrator"} and len({values[user] for user in users}) == 5
    assert set(values["passwords.conf"].splitlines()) == {f'{user}_password: "{values[user]}"' for user in users}
