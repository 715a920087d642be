"""The command line as a user meets it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest


def _sfumato(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sfumato.cli.main", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=None, timeout=120, check=False)


def test_help_answers_at_once_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, sfumato.cli.main; print([m for m in ('torch', 'diffusers', 'transformers', 'matplotlib') if m in sys.modules])"
    started = time.monotonic()
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)
    assert loaded.stdout.strip() == "[]"
    assert time.monotonic() - started < 30
    assert "generate" in _sfumato("--help", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nowhere.yaml"), "there is no file"),
        (("run",), "either a spec or --resume"),
        (("run", "--resume", "../etc"), "there is no run"),
        (("generate", "  "), "is empty"),
        (("generate", "moon", "--regions", "[{"), "is not JSON"),
        (("generate", "moon", "--model", "nowhere"), "no diffusers pipeline"),
        (("generate", "moon", "-o", "nowhere/out.png"), "cannot be written"),
    ],
)
def test_bad_input_ends_in_a_message_and_status_2(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = _sfumato(*arguments, folder=tmp_path)
    assert (result.returncode, "Traceback" in result.stderr) == (2, False), result.stderr
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
