"""`sfumato ground` and `sfumato vlm` as a user meets them, with a model behind HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image

from sfumato.advice import DESCRIPTION
from sfumato.cli.main import main
from tests.unit.scripted_vlm import Reply, ScriptedVlm

LAKE = json.dumps([{"bbox": [100, 200, 500, 900], DESCRIPTION: "a calm lake"}])


class Said:
    """What a command left: its status and its words."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Command: TypeAlias = Callable[..., Said]


@pytest.fixture
def sfumato(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""
    for name in ("URL", "API_KEY", "TIMEOUT", "WAIT"):
        monkeypatch.delenv(f"SFUMATO_VLM_{name}", raising=False)

    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["sfumato", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return Said(int(stop.value.code or 0), out, err)

    return command


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((100, 100, 3), 90, np.uint8)).save(path)
    return path


def test_a_given_server_is_asked_in_its_profiles_convention(vlm: ScriptedVlm, sfumato: Command, picture: Path) -> None:
    vlm.script = [LAKE]
    said = sfumato("ground", picture, "--prompt", "a lake", "--url", vlm.url, "--profile", "qwen3-vl", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out) == [{"bbox": [10, 20, 50, 90], DESCRIPTION: "a calm lake"}]
    assert f"answered by the server at {vlm.url}" in said.err.replace("\n", "")


def test_three_turns_and_a_key_from_the_environment(
    vlm: ScriptedVlm, sfumato: Command, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm.key, vlm.script = "secret", ["A lake.", "It could glow.", LAKE]
    monkeypatch.setenv("SFUMATO_VLM_API_KEY", "secret")
    monkeypatch.setenv("SFUMATO_VLM_URL", f"{vlm.url}/v1")
    said = sfumato("ground", picture, "--prompt", "a lake", "--profile", "qwen2-vl", "--strategy", "three-turn")
    assert (said.status, len(vlm.requests)) == (0, 3), said.err
    assert "secret" not in said.out + said.err


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--strategy", "three-turn"), 2, "knows single-turn only"),
        (("--strategy", "seven-turn"), 2, "single-turn, three-turn"),
        (("--profile", "gpt"), 2, "vista, qwen2-vl, qwen2.5-vl, qwen3-vl"),
        (("--profile", "qwen2-vl", "--backend", "vllm"), 2, "no built-in model"),
        (("--profile", "qwen2-vl", "--backend", "transformers", "--model", "nowhere"), 2, "holds no model"),
        (("--backend", "transformers", "--url", "http://127.0.0.1:1"), 2, "url: "),
        (("--url", "http://127.0.0.1:9"), 1, "sfumato vlm serve"),
        (("--url", "nonsense"), 1, "does not answer"),
    ],
)
def test_what_cannot_be_done_is_said_with_what_to_do(
    sfumato: Command, picture: Path, options: tuple[str, ...], status: int, words: str
) -> None:
    said = sfumato("ground", picture, "--prompt", "a lake", *options)
    assert (said.status, "Traceback" in said.err) == (status, False), said.err
    assert words in " ".join(said.err.split())


def test_a_model_that_talks_nonsense_is_quoted_in_no_traceback(vlm: ScriptedVlm, sfumato: Command, picture: Path) -> None:
    vlm.script = ["I like it."] * 2
    said = sfumato("ground", picture, "--prompt", "a lake", "--url", vlm.url)
    assert said.status == 1 and "The answer is not JSON." in said.err and "Traceback" not in said.err


def test_a_server_that_sends_web_pages_is_doubted(vlm: ScriptedVlm, sfumato: Command, picture: Path) -> None:
    vlm.script = [Reply(body=b"<html>")]
    said = sfumato("ground", picture, "--prompt", "a lake", "--url", vlm.url)
    assert said.status == 1 and "OpenAI-compatible" in said.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--profile", "qwen2-vl"), "no built-in model"),
        (("--profile", "qwen2-vl", "--model", "no/such/folder"), "holds no model"),
        (("--profile", "gpt"), "vista, qwen2-vl"),
        (("--host", "192.0.2.1"), "cannot be used"),
        (("--certificate", "tls.crt"), "both a certificate and a key"),
        (("--certificate", "no/tls.crt", "--key", "no/tls.key"), "no/tls.crt does not exist"),
    ],
)
def test_a_server_that_cannot_start_says_why(sfumato: Command, options: tuple[str, ...], words: str) -> None:
    said = sfumato("vlm", "serve", *options)
    assert (said.status, "Traceback" in said.err) == (2, False), said.err
    assert words in " ".join(said.err.split())
