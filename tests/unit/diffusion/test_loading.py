"""Saved pipelines come back; what is damaged or foreign is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import family_of
from sfumato.diffusion.loading import load_pipeline
from sfumato.diffusion.sampling import paint
from sfumato.errors import BrokenWeights, MissingWeights
from sfumato.types import GenerateRequest
from tests.unit.diffusion import tiny
from tests.unit.diffusion.brute import KINDS, PROMPT, layouts


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_pipeline_of_every_class_paints_the_same_bytes(tmp_path: Path, name: str) -> None:
    saved = KINDS[name].make()
    saved.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert type(loaded) is type(saved)
    wanted = GenerateRequest(PROMPT, 3, 32, 32, 2, KINDS[name].guidance, layouts(32, 32)["apart"])
    one, other = (paint(family, [wanted], RowBudget(family, 8))[0] for family in (family_of(saved), family_of(loaded)))
    assert torch.equal(one.latents, other.latents)
    assert (one.image == other.image).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd")
    tiny.sd().save_pretrained(path)
    return path


def test_an_unsupported_class_is_refused_with_those_supported(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(BrokenWeights, match="KandinskyPipeline.*FluxPipeline, StableDiffusionPipeline, .*XLPipeline, .*3Pipeline"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"FluxPipeline"', "{}", '{"_class_name": ["FluxPipeline"]}', "\x00"])
def test_an_index_that_says_nothing_is_broken(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(BrokenWeights):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("unet/diffusion_pytorch_model.safetensors", None, MissingWeights),
        ("unet/diffusion_pytorch_model.safetensors", "cut", BrokenWeights),
        ("unet/config.json", None, MissingWeights),
        ("unet/config.json", "{", BrokenWeights),
        ("unet/config.json", {"block_out_channels": [16, 16]}, BrokenWeights),
        ("vae/config.json", {"down_block_types": ["NoSuchBlock"]}, BrokenWeights),
        ("model_index.json", {"unet": ["diffusers", "NoSuchModel"]}, BrokenWeights),
        ("model_index.json", {"scheduler": ["diffusers", "NoSuchScheduler"]}, BrokenWeights),
        ("scheduler/scheduler_config.json", None, MissingWeights),
        ("tokenizer/tokenizer.json", "{", BrokenWeights),
    ],
)
def test_damage_is_named(folder: Path, file: str, text: str | dict | None, error: type[Exception]) -> None:
    path = folder / file
    whole = path.read_bytes()
    try:
        if text is None:
            path.unlink()
        elif isinstance(text, dict):
            path.write_text(json.dumps(json.loads(whole) | text))
        else:
            path.write_text(text)
        with pytest.raises(error, match=str(folder)):
            load_pipeline(folder)
    finally:
        path.write_bytes(whole)
