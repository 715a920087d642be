"""The whole loop on the shipped weights, small: pictures, advice, pairs, an adapter, a report; twice with the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SPEC = """\
name: small
batch: 4
prompts: {{file: {root}/configs/prompts/vista.txt, count: 8, seed: 1000}}
ground: {{backend: transformers}}
filter: {{keep: 2}}
train: {{steps_before: 6, steps_after: 6, together: 1}}
evaluate: {{file: {root}/configs/prompts/vista-held-out.txt, count: 4, seed: 900000}}
"""


def _run(*arguments: str) -> Path:
    line = [sys.executable, "-m", "sfumato.cli.main", "run", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_run_ends_in_a_report_and_a_second_one_in_the_same_bytes(tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC.format(root=ROOT))
    first, second = (_run(str(spec), "--runs", str(tmp_path / name)) for name in ("one", "two"))
    figures = json.loads((first.parent / "report.json").read_text())
    assert figures["prompts"] == 8
    assert sum(figures["filter"].values()) == 8
    assert 1 <= figures["kept"] <= 2
    assert set(figures["held_out"]["scores"]) == {"clip", "aesthetic", "pickscore", "mps"}
    assert set(figures["judge"]) == {"base", "tuned"}
    page = first.read_text()
    assert page.count("<rect") >= 1
    assert (first.parent / "first-pair.png").is_file()
    for name in ("report.json", "adapter.safetensors"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()
    assert _run("--resume", first.parent.name, "--runs", str(tmp_path / "one")) == first
