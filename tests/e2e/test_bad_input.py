"""What `sfumato run` says when something is wrong: the field or the cause, what to do, and the exit status; finished work stays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = """\
name: bad
batch: 2
prompts: {{file: {root}/configs/prompts/vista.txt, count: 2, seed: 1000}}
paint: {{steps: 2}}
ground: {{backend: vllm, refine: false}}
evaluate: {{file: {root}/configs/prompts/vista-held-out.txt, count: 2, seed: 900000}}
"""
# Runs a program that can write no larger file.
LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])
"""


def _run(folder: Path, spec: str, *, largest_file: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "spec.yaml").write_text(spec.format(root=ROOT))
    line = [sys.executable, "-m", "sfumato.cli.main", "run", str(folder / "spec.yaml"), "--runs", str(folder / "runs")]
    if largest_file is not None:
        line = [sys.executable, "-c", LIMITED, str(largest_file), *line]
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name: bad", "name: bad\nnmae: worse"), "nmae: Extra inputs"),
        (("vista.txt", "nowhere.txt"), "prompts.file: there is no file"),
        (("count: 2, seed: 1000", "count: 9999, seed: 1000"), "prompts.count"),
        (("name: bad", "name: bad\nmodel: nothing-of-the-kind"), "neither a folder nor a name on the hub"),
    ],
)
def test_a_spec_that_cannot_work_is_refused_by_its_key(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    done = _run(tmp_path, SPEC.replace(*change))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_an_unsupported_family_is_refused_by_its_class(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "AudioLDMPipeline"}))
    done = _run(tmp_path, SPEC.replace("name: bad", "name: bad\nmodel: model"), SFUMATO_VLM_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "AudioLDMPipeline" in done.stderr and "Supported" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_vlm_that_is_down_ends_the_run_with_what_to_do_and_what_was_painted_stays(tmp_path: Path) -> None:
    done = _run(tmp_path, SPEC, SFUMATO_VLM_URL="http://127.0.0.1:9", SFUMATO_VLM_WAIT="30")
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr and "sfumato vlm serve" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "runs" / "artifacts" / "manifests").glob("*/*.json"))) == 1


def test_a_full_disk_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    done = _run(tmp_path, SPEC.replace("backend: vllm", "backend: transformers"), largest_file=6000)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr and "Make room" in done.stderr
    assert "Traceback" not in done.stderr
