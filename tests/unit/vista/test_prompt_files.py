"""The shipped files of prompts that are not trained on are what their first line says."""

import contextlib
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sfumato.cli.vista import app

PROMPTS = Path(__file__).parents[3] / "configs" / "prompts"


@pytest.mark.parametrize("path", sorted(PROMPTS.glob("vista-*.txt")), ids=lambda path: path.stem)
def test_a_prompt_file_is_made_by_the_command_in_its_first_line(path: Path) -> None:
    first, _, rest = path.read_text().partition("\n")
    command = shlex.split(first.split(": ")[1])
    assert command[:2] == ["sfumato", "vista"]
    with contextlib.chdir(PROMPTS):
        assert CliRunner().invoke(app, command[2:]).stdout == rest
