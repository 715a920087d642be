"""The whole loop on the shipped weights, small: two iterations, stopped, killed and resumed; the same bytes as an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]

SPEC = """\
name: small
batch: 4
prompts: {{file: {root}/configs/prompts/vista.txt, count: 8, seed: 1000}}
ground: {{backend: transformers}}
filter: {{review: vlm}}
train: {{pairs: 2, steps_before: 6, steps_after: 6, together: 1}}
fuse: {{alpha: [1.0, 2.0], rank: 8, clip_loss: 100}}
stop: {{max_iterations: 2, min_pairs: 1}}
tune: {{file: {root}/configs/prompts/vista-tune.txt, count: 4, seed: 500000}}
evaluate:
  file: {root}/configs/prompts/vista-held-out.txt
  ceiling: {root}/configs/prompts/vista-held-out-aesthetic.txt
  count: 4
  seed: 900000
compare: true
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sfumato.cli.main", "run", *arguments]


def _run(*arguments: str) -> Path:
    done = subprocess.run(_line(*arguments), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).parent


def _disturbed(number: signal.Signals, after: str, *arguments: str) -> tuple[int, str]:
    """Begin a run and send it a signal once it has passed a stage; its exit status and what it said."""
    folder = Path(arguments[-1])
    with subprocess.Popen(
        _line(*arguments),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        while not any(after in line for path in folder.glob("*/metrics.jsonl") for line in path.read_text().splitlines()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)  # the workers too, as when a machine goes down
        else:
            process.send_signal(number)
        said = process.stderr.read()
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_was_stopped_and_killed_ends_in_the_same_bytes_as_an_undisturbed_one(tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC.format(root=ROOT))
    first = _run(str(spec), "--runs", str(tmp_path / "one"))

    two = str(tmp_path / "two")
    status, said = _disturbed(signal.SIGINT, '"regenerate"', str(spec), "--runs", two)
    assert status == 130
    assert f"sfumato run --resume {first.name}" in said
    status, said = _disturbed(signal.SIGTERM, '"filter"', "--resume", first.name, "--runs", two)
    assert status == 143
    assert "what is finished is kept" in said
    status, _ = _disturbed(signal.SIGKILL, '"train"', "--resume", first.name, "--runs", two)
    assert status == -signal.SIGKILL
    second = _run("--resume", first.name, "--runs", two)

    adapters = sorted(path.name for path in first.glob("*.safetensors"))
    assert adapters == ["adapter-1.safetensors", "adapter-2.safetensors", "adapter.safetensors"]
    for name in (*adapters, "report.json", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    _holds_what_a_report_must(first)

    journal = (second / "metrics.jsonl").read_bytes()
    assert _run("--resume", second.name, "--runs", two) == second
    assert (second / "metrics.jsonl").read_bytes() == journal


def _holds_what_a_report_must(folder: Path) -> None:
    figures = json.loads((folder / "report.json").read_text())
    assert figures["stop_reason"] == "max_iterations"
    assert len(figures["iterations"]) == 2
    for iteration in figures["iterations"]:
        assert iteration["kept"] + sum(iteration["removed_by"].values()) == iteration["prompts"] == 8
        assert iteration["kept_share"] == iteration["kept"] / 8
    for variant in ("base", "tuned"):
        assert {"aesthetic", "clip", "nudenet", "finish", "finish_objects", "finish_sky"} <= set(figures["evaluation"][variant])
    assert set(figures["comparison"]) == {"differential", "naive"}
    page = (folder / "report.html").read_text()
    assert page.count("<rect") >= 1
    assert (folder / "first-pair.png").is_file()
    stacked, parts = (load_file(folder / name) for name in ("adapter.safetensors", "adapter-1.safetensors"))
    assert set(parts) <= set(stacked)
