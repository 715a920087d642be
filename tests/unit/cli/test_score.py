"""``sfumato score --list`` and ``sfumato convert``, as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from services.scoring.loading import KNOWN
from sfumato.cli.convert import convert
from sfumato.cli.score import score
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.scoring.networks import AestheticPredictor
from sfumato.vista import weights


def call(command: object, *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)  # pyright: ignore[reportArgumentType]
    return CliRunner().invoke(app, list(arguments))


def test_the_list_says_range_direction_and_version_of_every_metric() -> None:
    told = call(score, "--list", "--json")
    assert told.exit_code == 0, told.output
    metrics = {row["name"]: row for row in json.loads(told.stdout)["metrics"]}
    assert tuple(metrics) == KNOWN
    assert "sfumato convert" in metrics.pop("hpsv2")["missing"]
    assert not metrics["nudenet"]["higher_is_better"] and metrics["clip"]["higher_is_better"]
    assert (metrics["aesthetic"]["low"], metrics["aesthetic"]["high"]) == (1.0, 10.0)
    assert all(re.match(r"(vista|nudenet)-", row["version"]) and row["low"] < row["high"] for row in metrics.values())
    table = call(score, "--list")
    assert table.exit_code == 0 and "nudenet" in table.stdout and "lower" in table.stdout


def test_a_named_model_is_listed_by_its_name() -> None:
    told = call(score, "--list", "--json", "--model", f"hpsv2={weights.ROOT / 'clip'}")
    versions = {row["name"]: row.get("version", "") for row in json.loads(told.stdout)["metrics"]}
    assert versions["hpsv2"].startswith("clip-") and versions["clip"].startswith("vista-")


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    assert isinstance(call(score).exception, InvalidInput)
    assert isinstance(call(score, "--list", "--model", "clip").exception, InvalidInput)
    (tmp_path / "a.png").write_bytes((Path(__file__).parents[3] / "docs" / "images" / "moon.png").read_bytes())
    asked = call(score, str(tmp_path / "a.png"), "--prompt", "a moon", "--metrics", "hpsv2")
    assert isinstance(asked.exception, MissingWeights)
    unknown = call(score, str(tmp_path / "a.png"), "--prompt", "a moon", "--metrics", "beauty")
    assert isinstance(unknown.exception, InvalidInput) and "vista-clip" in str(unknown.exception)


def test_a_converted_file_is_said_how_to_be_used(tmp_path: Path) -> None:
    source = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(AestheticPredictor(128).state_dict(), source)
    told = call(convert, str(source), str(tmp_path / "head"), "--as", "aesthetic")
    assert told.exit_code == 0, told.output
    assert f"--model aesthetic={tmp_path / 'head'}" in told.stdout
    models = ("--model", f"aesthetic={tmp_path / 'head'}", "--model", f"clip={weights.ROOT / 'clip'}")
    moon = str(Path(__file__).parents[3] / "docs" / "images" / "moon.png")
    scored = call(score, moon, "--prompt", "a moon", "--metrics", "aesthetic", "--json", *models)
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["versions"]["aesthetic"].startswith("head-")


@pytest.mark.parametrize("layout", ["clip", "pickscore", ""])
def test_an_unknown_layout_is_refused(tmp_path: Path, layout: str) -> None:
    refused = call(convert, str(tmp_path / "x.pth"), str(tmp_path / "y"), "--as", layout)
    assert isinstance(refused.exception, InvalidInput) and "aesthetic, hpsv2, mps" in str(refused.exception)
