"""``sfumato lora`` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from sfumato.cli.main import app, main
from sfumato.lora.adapter import Adapter, delta
from sfumato.lora.files import load, save
from tests.unit.lora.models import empty, random_adapter, write_model


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the model ``flux`` and the adapters ``one`` and ``two`` of it."""
    pipeline = empty("flux", tmp_path)
    for seed, name in enumerate(("one", "two")):
        save(random_adapter(pipeline, one_rank=2 + seed, seed=seed), tmp_path / f"{name}.safetensors")
    return tmp_path


def lora(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["lora", *map(str, arguments)], catch_exceptions=False)


def test_the_commands_do_what_the_algebra_does(files: Path) -> None:
    one, two = files / "one.safetensors", files / "two.safetensors"
    name = "transformer_blocks.0.attn.to_q"
    first, second = delta(load(one), name), delta(load(two), name)
    for line, expected in (
        (("average", one, two), (first + second) / 2),
        (("stack", one, two), first + second),
        (("stack", one, two, "--scales", "0.5,-2"), 0.5 * first - 2 * second),
        (("scale", one, "--factor", "0.7"), 0.7 * first),
    ):
        result = lora(*line, "-o", files / "out.safetensors")
        assert "modules" in result.stdout
        torch.testing.assert_close(delta(load(files / "out.safetensors"), name), expected, rtol=1e-4, atol=1e-5)


def test_compress_says_what_it_cost(files: Path) -> None:
    lora("average", files / "one.safetensors", files / "two.safetensors", "-o", files / "mean.safetensors")
    free = json.loads(lora("compress", files / "mean.safetensors", "--rank", 5, "-o", files / "same.safetensors", "--json").stdout)
    assert free["error"] < 1e-6
    assert "relative error" in lora("compress", files / "mean.safetensors", "--rank", 1, "-o", files / "small.safetensors").stdout
    small = load(files / "small.safetensors")
    assert set(small.ranks.values()) == {1}
    assert float(small.metadata["compression_error"]) > 0.1


def test_info_tells_modules_ranks_norm_and_origin(files: Path) -> None:
    report = json.loads(lora("info", files / "two.safetensors", "--json").stdout)
    assert (report["modules"], report["denoiser"]) == (26, "transformer")
    assert report["ranks"] == {"smallest": 3, "largest": 3, "sum": 78}
    assert report["metadata"]["run"] == "test"
    words = lora("info", files / "two.safetensors").stdout
    assert "26 modules" in words and "rank 3" in words and "run: test" in words


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya"])
def test_an_export_is_verified_and_verifies_again(files: Path, layout: str) -> None:
    out = files / (layout if layout == "peft" else f"{layout}.safetensors")
    assert "26 modules" in lora("export", files / "one.safetensors", "--as", layout, "--model", files / "flux", "-o", out).stdout
    report = json.loads(lora("verify", out, "--model", files / "flux", "--json").stdout)
    assert report["modules"] == 26
    assert report["difference"] < 1e-6


def test_convert_writes_any_layout_in_the_plain_one(files: Path) -> None:
    lora("export", files / "two.safetensors", "--as", "kohya", "--model", files / "flux", "-o", files / "k.safetensors")
    assert "26 modules" in lora("convert", files / "k.safetensors", "-o", files / "plain.safetensors").stdout
    assert all(key.startswith("transformer.") for key in load_file(files / "plain.safetensors"))
    one, other = load(files / "two.safetensors"), load(files / "plain.safetensors")
    for name in one.factors:
        torch.testing.assert_close(delta(one, name), delta(other, name), rtol=1e-4, atol=1e-5)


def test_convert_leaves_text_encoders_out_where_it_is_told(files: Path) -> None:
    both = load_file(files / "one.safetensors") | {"text_encoder.text_model.x.lora_A.weight": torch.ones(1, 2)}
    save_file(both, files / "both.safetensors")
    lora("convert", files / "both.safetensors", "--without-text-encoders", "-o", files / "plain.safetensors")
    assert load_file(files / "plain.safetensors").keys() == load_file(files / "one.safetensors").keys()


def test_verify_says_what_keeps_diffusers_from_reading_a_file(files: Path) -> None:
    """ComfyUI's prefix, for another width than FLUX.1's, which diffusers refuses without a word."""
    lora("export", files / "one.safetensors", "--as", "kohya", "--model", files / "flux", "-o", files / "k.safetensors")
    tensors = {comfyui(key): tensor for key, tensor in load_file(files / "k.safetensors").items()}
    save_file(tensors, files / "c.safetensors")
    report = json.loads(lora("verify", files / "c.safetensors", "--model", files / "flux", "--json").stdout)
    assert (report["modules"], report["loader"]) == (26, "diffusers, after conversion")
    assert report["unread"] and report["difference"] < 1e-5
    words = lora("verify", files / "c.safetensors", "--model", files / "flux").stdout
    assert "26 modules bound" in words and "diffusers itself does not read it whole" in words and "sfumato lora convert" in words


def comfyui(key: str) -> str:
    """sd-scripts' key of a Flux block under the prefix that ComfyUI saves with."""
    stem, half = key.removeprefix("lora_unet_").split(".", 1)
    stem = re.sub(r"^(double|single)_blocks_(\d+)_", r"\1_blocks.\2.", stem)
    stem = re.sub(r"(img|txt)_(attn|mlp|mod)_", r"\1_\2.", stem).replace("modulation_lin", "modulation.lin")
    return f"diffusion_model.{stem}.{half}"


def test_the_built_in_model_needs_no_folder(tmp_path: Path) -> None:
    size = 128  # the built-in generator's width
    save(Adapter({"transformer_blocks.0.attn.to_q": (torch.ones(1, size), torch.ones(size, 1))}), tmp_path / "a.safetensors")
    assert "1 modules" in lora("verify", tmp_path / "a.safetensors").stdout


def test_help_shows_an_example_of_every_command() -> None:
    for command in ("export", "convert", "verify", "info", "average", "stack", "compress", "scale"):
        assert f"Example: sfumato lora {command}" in " ".join(lora(command, "--help").stdout.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("info nowhere.safetensors", "no adapter at"),
        ("info broken.safetensors", "not a readable safetensors"),
        ("export one.safetensors --as gguf -o x", "diffusers, peft, kohya"),
        ("export one.safetensors --as kohya --model nowhere -o x", "no diffusers pipeline"),
        ("export one.safetensors --as kohya --model sd -o x", "another model"),
        ("verify one.safetensors --model sd", "another model"),
        ("stack one.safetensors two.safetensors --scales 1 -o x", "1 for 2 files"),
        ("stack one.safetensors --scales a -o x", "not a list of numbers"),
        ("compress one.safetensors --rank 0 -o x", "below 1"),
        ("scale one.safetensors --factor nan -o x", "not a finite number"),
        ("average one.safetensors -o one.safetensors/x", "cannot be written"),
    ],
)
def test_bad_input_ends_in_a_message_and_status_2(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    (files / "broken.safetensors").write_bytes(b"{}")
    write_model("sd", files / "sd")
    monkeypatch.chdir(files)
    monkeypatch.setattr("sys.argv", ["sfumato", "lora", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not (files / "x").exists()
