"""Exports: what is written for another program, that program binds whole and with the same updates."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from sfumato.diffusion.families.catalog import described_of
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora.adapter import Adapter, delta, differences, scale
from sfumato.lora.binding import Loader
from sfumato.lora.files import Layout, component, export, load, save, verify
from tests.unit.lora.models import CONFIGS, empty, random_adapter

TARGETS = [(kind, layout) for kind in CONFIGS for layout in Layout if (kind, layout) != ("sd3", Layout.KOHYA)]


def place(folder: Path, layout: Layout) -> Path:
    return folder / (layout.value if layout is Layout.PEFT else f"{layout.value}.safetensors")


def assert_same_updates(one: Adapter, other: Adapter) -> None:
    assert set(one.factors) == set(other.factors)
    assert max(differences(one, other).values()) < 1e-5
    for name in other.factors:
        if max(other.factors[name][1].shape[0], other.factors[name][0].shape[1]) < 1000:  # dense where that is quick
            torch.testing.assert_close(delta(one, name), delta(other, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "layout"), TARGETS)
def test_every_layout_binds_through_its_library_and_reads_back(tmp_path: Path, kind: str, layout: Layout) -> None:
    pipeline = empty(kind, tmp_path)
    adapter = random_adapter(pipeline)
    path = place(tmp_path, layout)
    assert export(adapter, path, layout, pipeline).difference < 1e-5
    again = load(path)
    assert again.metadata == adapter.metadata
    assert_same_updates(again, adapter)


@pytest.mark.parametrize(("kind", "loader"), [("flux", Loader.CONVERTED), ("flux1", Loader.DIFFUSERS), ("sdxl", Loader.DIFFUSERS)])
def test_kohya_files_go_through_the_converter_of_diffusers_where_it_can_read_them(tmp_path: Path, kind: str, loader: Loader) -> None:
    pipeline = empty(kind, tmp_path)
    assert export(random_adapter(pipeline), tmp_path / "k.safetensors", Layout.KOHYA, pipeline).loader is loader


@pytest.mark.parametrize("kept", [r"\.(to_q|add_v_proj|proj_mlp)$", r"\.(to_k|to_v|proj_out)$", r"proj_mlp$"])
def test_flux_parts_may_be_missing_from_a_fused_linear(tmp_path: Path, kept: str) -> None:
    for kind in ("flux", "flux1"):
        pipeline = empty(kind, tmp_path)
        whole = random_adapter(pipeline)
        adapter = Adapter({name: pair for name, pair in whole.factors.items() if re.search(kept, name)})
        path = tmp_path / f"{kind}.safetensors"
        assert export(adapter, path, Layout.KOHYA, pipeline).difference < 1e-5
        assert_same_updates(load(path), adapter)


class Columns(dict[str, torch.Tensor]):
    """A checkpoint of Flux's published layout that holds ``W x`` of every weight; what is not there is zero."""

    def pop(self, key: str, *_: object) -> torch.Tensor:
        return super().pop(key, torch.zeros(3 * 3072 + 12288, 1))


def test_the_fused_updates_are_those_of_the_published_flux_weights(tmp_path: Path) -> None:
    """The independent way round: apply the kohya file to one input as published weights, let diffusers' checkpoint converter part them."""
    pipeline = empty("flux1", tmp_path)
    adapter = random_adapter(pipeline)
    export(adapter, tmp_path / "k.safetensors", Layout.KOHYA, pipeline)
    tensors = load_file(tmp_path / "k.safetensors")
    inputs = {width: torch.randn(width, 1, generator=torch.Generator().manual_seed(width)) for width in (3072, 12288, 15360)}
    columns = Columns()
    for stem in {key.split(".")[0] for key in tensors}:
        down, up, alpha = (tensors[f"{stem}.{half}"] for half in ("lora_down.weight", "lora_up.weight", "alpha"))
        match = re.fullmatch(r"lora_unet_((?:double|single)_blocks)_(\d+)_(.+)", stem)
        assert match
        rest = re.sub(r"^(img|txt)_(attn|mlp|mod)_", r"\1_\2.", match[3]).replace("modulation_lin", "modulation.lin")
        columns[f"{match[1]}.{match[2]}.{rest}.weight"] = up @ (down @ inputs[down.shape[1]]) * (alpha / down.shape[0])
    parted = convert_flux_transformer_checkpoint_to_diffusers(columns)
    for name, (a, b) in adapter.factors.items():
        torch.testing.assert_close(parted[f"{name}.weight"], b @ (a @ inputs[a.shape[1]]), rtol=1e-4, atol=1e-3)


def test_our_reader_and_the_converter_of_diffusers_agree(tmp_path: Path) -> None:
    pipeline = empty("flux1", tmp_path)
    export(random_adapter(pipeline), tmp_path / "k.safetensors", Layout.KOHYA, pipeline)
    tensors = load_file(tmp_path / "k.safetensors")
    tensors = {key: value * 0.5 if key.endswith("alpha") else value for key, value in tensors.items()}  # a scale that is not one
    save_file(tensors, tmp_path / "half.safetensors")
    ours = load(tmp_path / "half.safetensors")
    theirs = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    names = {key.removeprefix("transformer.").split(".lora_")[0] for key in theirs}
    pairs = {n: (theirs[f"transformer.{n}.lora_A.weight"], theirs[f"transformer.{n}.lora_B.weight"]) for n in names}
    assert_same_updates(ours, Adapter(pairs))


def test_sd3_has_no_kohya_layout_and_says_what_comfyui_reads(tmp_path: Path) -> None:
    pipeline = empty("sd3", tmp_path)
    with pytest.raises(InvalidInput, match="diffusers"):
        export(random_adapter(pipeline), tmp_path / "k.safetensors", Layout.KOHYA, pipeline)
    assert not (tmp_path / "k.safetensors").exists()


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_component_told_by_names_is_the_familys(tmp_path: Path, kind: str) -> None:
    pipeline = empty(kind, tmp_path)
    assert component(random_adapter(pipeline)) == described_of(type(pipeline)).denoiser_part


def test_sdxl_has_its_first_names(tmp_path: Path) -> None:
    pipeline = empty("sdxl", tmp_path)
    export(random_adapter(pipeline), tmp_path / "k.safetensors", Layout.KOHYA, pipeline)
    stems = {key.split(".")[0] for key in load_file(tmp_path / "k.safetensors")}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in stems  # sd-scripts' name of the first attention
    assert "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj" in stems
    assert "lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_out_0" in stems


def test_verify_refuses_unbound_keys_and_other_updates_in_every_layout(tmp_path: Path) -> None:
    pipeline = empty("flux", tmp_path)
    adapter = random_adapter(pipeline)
    name = "transformer_blocks.0.attn.to_q"
    fewer = Adapter({key: value for key, value in adapter.factors.items() if key != name})
    for layout in Layout:
        path = place(tmp_path, layout)
        export(adapter, path, layout, pipeline)
        with pytest.raises(BrokenWeights, match="differs"):
            verify(path, pipeline, scale(adapter, 1.01))
        with pytest.raises(BrokenWeights, match="unexpected.*to_q"):
            verify(path, pipeline, fewer)
        export(fewer, path, layout, pipeline)
        with pytest.raises(BrokenWeights, match="missing.*to_q"):
            verify(path, pipeline, adapter)


def test_an_adapter_of_another_model_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no weight of"):
        export(random_adapter(empty("sd", tmp_path)), tmp_path / "x.safetensors", Layout.DIFFUSERS, empty("flux", tmp_path))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_peft_folder_has_one_rank_and_one_alpha(tmp_path: Path) -> None:
    pipeline = empty("flux", tmp_path)
    export(random_adapter(pipeline), tmp_path / "p", Layout.PEFT, pipeline)
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "p" / "adapter_model.safetensors")
    assert config["r"] == config["lora_alpha"] == 4
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {4}
    assert all(key.startswith("base_model.model.") for key in tensors)
    assert {key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors} == set(config["target_modules"])


def test_a_file_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """The hash seed differs between processes, and with it the order of a map's keys."""
    code = """if True:
        import hashlib, sys, torch, sfumato
        from pathlib import Path
        from sfumato.lora.adapter import Adapter
        from sfumato.lora.files import save
        pair = (torch.ones(1, 2), torch.ones(2, 1))
        one = Adapter({name: pair for name in "abc"}, {key: key for key in "zyxwvutsr"})
        save(one, Path(sys.argv[1]))
        print(hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest())
    """
    line = [sys.executable, "-c", code, str(tmp_path / "other.safetensors")]
    other = subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout.strip()
    pair = (torch.ones(1, 2), torch.ones(2, 1))
    save(Adapter({name: pair for name in "cab"}, {key: key for key in "rstuvwxyz"}), tmp_path / "mine.safetensors")
    assert hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest() == other
