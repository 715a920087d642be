"""The commands on the shipped weights, and what they say of input and weights that cannot be used."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sd_prompt_reader.image_data_reader import ImageDataReader

from sfumato.cli.main import main
from sfumato.runtime.models.versions import model_version
from sfumato.vista import weights

MOON = "a full moon over mountains and a lake at night"


def sfumato(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of one command, in this process."""
    monkeypatch.setattr(sys, "argv", ["sfumato", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "moon.png"
    status, _, err = sfumato(monkeypatch, capsys, "generate", MOON, "--seed", 7, "-o", path)
    assert status == 0, err
    return path


def test_a_picture_is_painted_scored_and_grounded(
    moon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(moon) as picture:
        assert picture.size == (64, 64)
        assert MOON in picture.info["parameters"]
    status, out, _ = sfumato(monkeypatch, capsys, "score", moon, "--prompt", MOON, "--json")
    (row,) = json.loads(out)["scores"]
    assert status == 0
    assert 1 <= row["aesthetic"] <= 10
    assert {"clip", "pickscore", "mps"} < set(row)
    drawn = tmp_path / "drawn.png"
    options = ("--prompt", MOON, "--draw", drawn, "--backend", "transformers")
    status, out, _ = sfumato(monkeypatch, capsys, "ground", moon, *options)
    entries = json.loads(out)
    assert status == 0
    assert any("moon" in entry["aesthetical description"] for entry in entries)
    assert all(0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64 for x1, y1, x2, y2 in (entry["bbox"] for entry in entries))
    with Image.open(drawn) as page:
        assert page.width >= 512


def test_a_photograph_with_damaged_exif_is_scored_and_grounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orientation 6, and XResolution as text."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI", 0x011A, 2, 4) + b"abc\0"
    exif, path = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4), tmp_path / "photograph.jpg"
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(path, exif=exif)
    status, out, err = sfumato(monkeypatch, capsys, "score", path, "--prompt", MOON, "--metrics", "aesthetic", "--json")
    assert status == 0 and np.isfinite(json.loads(out)["scores"][0]["aesthetic"]), err
    drawn = tmp_path / "drawn.png"
    status, _, err = sfumato(monkeypatch, capsys, "ground", path, "--prompt", MOON, "--draw", drawn, "--backend", "transformers")
    assert status == 0, err


def test_beautiful_words_make_a_more_beautiful_picture(
    moon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "a radiant full moon with a soft glowing halo over majestic snow capped mountains glistening in light at night"
    rich = tmp_path / "rich.png"
    assert sfumato(monkeypatch, capsys, "generate", words, "--seed", 7, "-o", rich)[0] == 0
    _, out, _ = sfumato(monkeypatch, capsys, "score", moon, rich, "--prompt", MOON, "--metrics", "aesthetic", "--json")
    plain, beautiful = (row["aesthetic"] for row in json.loads(out)["scores"])
    assert beautiful > plain + 1


def test_the_same_seed_gives_the_same_picture(
    moon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.png"
    sfumato(monkeypatch, capsys, "generate", MOON, "--seed", 7, "-o", again)
    assert again.read_bytes() == moon.read_bytes()


@pytest.mark.parametrize("end", ["png", "jpg", "webp"])
def test_a_picture_says_how_it_was_made_in_the_format_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    path, advice = tmp_path / f"moon.{end}", '[{"bbox": [0, 0, 32, 32], "prompt": "bright stars"}]'
    more = ("--steps", 3, "--seed", 9, "--regions", advice, "--regional-steps", 0.5, "--upscale", 2)
    status, _, err = sfumato(monkeypatch, capsys, "generate", MOON, *more, "-o", path)
    assert status == 0, err
    with Image.open(path) as picture:
        assert picture.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[end] and picture.size == (128, 128)
    found = ImageDataReader(str(path))
    assert (found.positive, found.parameter["sampler"], found.parameter["seed"], found.parameter["steps"]) == (MOON, "Euler", "9", "3")
    assert (found.parameter["model"], found.parameter["size"]) == ("vista", "64x64")
    assert f"Model hash: {model_version(weights.locate('generator'))[:10]}" in found.setting
    assert "bright stars" in found.setting and "Regional steps: 0.5" in found.setting and "Enlarged: 2" in found.setting


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", MOON, "-o", "moon.gif"), "output: moon.gif ends in no format of pictures"),
        (("ground", "{good}", "--prompt", MOON, "--draw", "boxes.jpg", "--backend", "transformers"), "draw: boxes.jpg would be a PNG file"),
        (("vista", "sample", "-o", "world.webp"), "output: world.webp would be a PNG file"),
        (("generate", "moon " * 100), "prompt: "),
        (("generate", MOON, "--width", 100), "width: "),
        (("generate", MOON, "--steps", 0), "steps: "),
        (("generate", MOON, "--regions", '[{"bbox": [0, 0, 65, 10], "prompt": "a sky"}]'), "regions"),
        (("score", "{text}", "--prompt", MOON), "image: "),
        (("score", "{huge}", "--prompt", MOON), "image: "),
        (("score", "{good}", "--prompt", " "), "prompt: "),
        (("score", "{good}", "--prompt", MOON, "--metrics", "charm"), "metrics: "),
        (("ground", "{text}", "--prompt", MOON), "image: "),
        (("ground", "{huge}", "--prompt", MOON), "image: "),
        (("ground", "{good}", "--prompt", "x" * 5000, "--backend", "transformers"), "prompt: "),
        (("ground", "missing.png", "--prompt", MOON), "image: "),
        (("vista", "evaluate", "--only", "noses"), "only: "),
        (("vista", "train", "--budget", "soon"), "budget: "),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], words: str
) -> None:
    files = {name: tmp_path / f"{name}.png" for name in ("text", "huge", "good")}
    files["text"].write_text("no picture")
    Image.new("1", (8000, 8000)).save(files["huge"])
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(files["good"])
    given = [str(files[a[1:-1]]) if isinstance(a, str) and a[1:-1] in files else a for a in arguments]
    status, _, err = sfumato(monkeypatch, capsys, *given)
    assert status == 2
    assert words in err
    assert "Traceback" not in err


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "weights"
    shutil.copytree(weights.ROOT / "generator", root / "generator")
    monkeypatch.setenv("SFUMATO_WEIGHTS", str(root))
    return root / "generator"


def test_a_broken_weight_file_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    status, _, err = sfumato(monkeypatch, capsys, "generate", MOON)
    assert (status, path.name in err, "damaged" in err) == (2, True, True)


def test_missing_weights_are_named(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    status, _, err = sfumato(monkeypatch, capsys, "generate", MOON)
    assert (status, "missing" in err) == (2, True)
    shutil.rmtree(copied)
    status, _, err = sfumato(monkeypatch, capsys, "generate", MOON)
    assert (status, "vista train" in err) == (2, True)
