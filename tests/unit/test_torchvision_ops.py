"""Any program of the environment imports diffusers, whether it has imported sfumato or not."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from sfumato import torchvision_ops


@pytest.mark.parametrize(
    "script",
    ["import diffusers\nfrom diffusers import FluxPipeline", "from torchvision.transforms import v2"],
    ids=["diffusers", "torchvision"],
)
def test_a_script_that_does_not_import_sfumato_first_runs_in_the_environment_of_make_setup(tmp_path: Path, script: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(script)
    ended = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_python_starts_without_torch_and_without_sfumato(tmp_path: Path) -> None:
    script = "import sys; print(sorted({'torch', 'sfumato', 'torchvision'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_file_of_make_setup_is_there_and_current() -> None:
    assert (Path(sysconfig.get_path("purelib")) / torchvision_ops.PTH).read_text() == torchvision_ops.LINE
