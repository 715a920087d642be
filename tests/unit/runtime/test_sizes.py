"""Sizes of saved models: an architecture that no family knows is refused; the sizes themselves need no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.errors import InvalidInput
from sfumato.runtime.models.sizes import KNOWN, measured


def saved(folder: Path, pipeline: str, denoiser: str) -> Path:
    """The configuration of a pipeline, as far as sizes are read from it."""
    for part, config in {
        "transformer": {"_class_name": denoiser, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "patch_size": 2},
        "vae": {"block_out_channels": [8, 16]},
    }.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "transformer": ["diffusers", denoiser]}))
    return folder


def test_a_pipeline_that_no_family_knows_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="SanaPipeline is of no supported family.*FluxPipeline.*StableDiffusion3Pipeline"):
        measured(saved(tmp_path, "SanaPipeline", "SanaTransformer2DModel"))


def test_a_denoiser_of_another_architecture_is_refused_with_the_known_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="SanaTransformer2DModel.*SD3Transformer2DModel"):
        measured(saved(tmp_path, "StableDiffusion3Pipeline", "SanaTransformer2DModel"))


def test_the_known_denoiser_has_its_blocks(tmp_path: Path) -> None:
    (blocks,) = measured(saved(tmp_path, "StableDiffusion3Pipeline", "SD3Transformer2DModel")).blocks
    assert (blocks.count, blocks.width, blocks.cell, blocks.text) == (3, 32, 4, 333)


def test_the_published_sizes_of_all_families_are_known() -> None:
    published = ("black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-xl-base-1.0")
    assert all(KNOWN[name].blocks and KNOWN[name].decoder_channels for name in published)


def test_families_and_sizes_are_imported_without_pytorch() -> None:
    code = (
        "import sys, sfumato.runtime.models.sizes as sizes\n"
        "from sfumato.diffusion.families.catalog import families\n"
        "from sfumato.scoring.preference import win_probability\n"
        "print(len(families()), [m for m in ('torch', 'diffusers', 'transformers', 'peft') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split(maxsplit=1)[1].strip() == "[]"
