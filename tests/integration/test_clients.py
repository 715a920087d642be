"""The program of docs/clients.md, as it is written there, against a real system; and its run once more, without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from sfumato.runtime.images import decode_image
from sfumato.runtime.system import System

ROOT = Path(__file__).parents[2]
PICTURES = {"first-pair.png", "latest-pair.png"}


def sfumato(folder: Path, *words: str) -> str:
    line = [sys.executable, "-m", "sfumato.cli.main", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SFUMATO_RUNS": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documented_client_runs_as_written_and_its_run_has_the_same_files_as_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL)
    there, here = tmp_path / "there", tmp_path / "here"
    told = sfumato(there, "up", "--backend", "transformers", "--ports", "auto", "--workers", "1", "--detach", "--json")
    try:
        system = System.model_validate_json(told)
        for service in ("orchestrator", "generator"):
            monkeypatch.setenv(service.upper(), system.address(service))
        monkeypatch.setenv("TARGET", str(tmp_path))
        names: dict = {"__name__": "client"}
        exec(compile(program, "clients.md", "exec"), names)
        assert load_file(tmp_path / "adapter.safetensors")
        assert decode_image((tmp_path / "moon.png").read_bytes()).shape == (64, 64, 3)
        # The same spec from the command line is the same run: nothing is computed again, its files are fetched.
        spec = yaml.safe_load(names["SPEC"])
        for part, name in (("prompts", "train"), ("evaluate", "heldout")):
            (tmp_path / f"{name}.txt").write_text("\n".join(names["INPUTS"][name]) + "\n")
            spec[part]["file"] = f"{name}.txt"
        (tmp_path / "spec.yaml").write_text(json.dumps(spec))
        # Its model was registered automatically; registering it again finds it there.
        kept = json.loads(sfumato(there, "models", "ls", "--json"))
        assert names["run"].id in json.dumps(kept)
        registered = json.loads(sfumato(there, "models", "register", names["run"].id, "--json"))["versions"]
        assert registered[-1]["id"] in json.dumps(kept)
        fetched = Path(json.loads(sfumato(there, "run", str(tmp_path / "spec.yaml"), "--json"))["report"]).parent
    finally:
        sfumato(there, "down")
    assert fetched.name == names["run"].id
    alone = Path(sfumato(here, "run", str(tmp_path / "spec.yaml"), "--local").strip()).parent
    assert alone.name == fetched.name
    files = {path.name for path in alone.iterdir()} - PICTURES - {"metrics.jsonl"}
    assert files == {path.name for path in fetched.iterdir()} - PICTURES
    assert {"adapter.safetensors", "report.html", "report.json"} <= files
    for name in files:
        assert (fetched / name).read_bytes() == (alone / name).read_bytes(), name
