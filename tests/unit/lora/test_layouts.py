"""Files as other programs write them: written by the real libraries where they are here, else with the names that the programs publish."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.lora.adapter import Adapter, delta
from sfumato.lora.binding import Loader, denoiser_of
from sfumato.lora.files import Layout, export, layouts_of, load, verify
from sfumato.lora.fuse import Fuser, check_fits
from sfumato.lora.modules import adaptable
from tests.unit.diffusion import tiny
from tests.unit.lora.models import empty

RANK, ALPHA = 3, 5
PIPELINES = {"flux": lambda: tiny.flux(guidance_embeds=True), "sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3}
Updates = dict[str, Tensor]


def trained(denoiser: Any, config: LoraConfig | None = None, seed: int = 0) -> Updates:
    """Adds an adapter "made" by PEFT on every linear and 1x1 convolution, with random numbers; its dense updates by module."""
    names = [name for name, _ in adaptable(denoiser)]
    config = config or LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
    denoiser.add_adapter(config, adapter_name="made")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in denoiser.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return injected(denoiser, "made")


def injected(denoiser: nn.Module, adapter: str) -> Updates:
    """The dense updates ``[out, in]`` of the layers that PEFT has put into a model."""
    updates = {}
    for name, module in denoiser.named_modules():
        if adapter in getattr(module, "lora_A", {}):
            layer: Any = module
            a, b = (half[adapter].weight.detach().flatten(1) for half in (layer.lora_A, layer.lora_B))
            updates[name] = layer.scaling[adapter] * (b @ a)
    return updates


def assert_same(adapter: Adapter, updates: Mapping[str, Tensor]) -> None:
    assert set(adapter.factors) == set(updates)
    for name, update in updates.items():
        torch.testing.assert_close(delta(adapter, name), update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("scale", ["in the header", "one"])
def test_files_of_diffusers_save_lora_weights(tmp_path: Path, kind: str, scale: str) -> None:
    pipeline: Any = PIPELINES[kind]()
    denoiser: Any = denoiser_of(pipeline)
    names = [name for name, _ in adaptable(denoiser)]
    alpha = ALPHA if scale == "in the header" else RANK
    updates = trained(denoiser, LoraConfig(r=RANK, lora_alpha=alpha, target_modules=names))
    part = "unet" if kind in ("sd", "sdxl") else "transformer"
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(denoiser, adapter_name="made")}
    if scale == "in the header":
        layers[f"{part}_lora_adapter_metadata"] = denoiser.peft_config["made"].to_dict()
    pipeline.save_lora_weights(tmp_path, **layers, weight_name="made.safetensors")
    assert_same(load(tmp_path / "made.safetensors"), updates)


@pytest.mark.parametrize("kind", PIPELINES)
def test_files_of_diffusers_save_lora_adapter_have_no_prefix(tmp_path: Path, kind: str) -> None:
    pipeline: Any = PIPELINES[kind]()
    denoiser: Any = denoiser_of(pipeline)
    updates = trained(denoiser)
    denoiser.save_lora_adapter(tmp_path, adapter_name="made", weight_name="made.safetensors")
    assert not any(key.startswith(("transformer.", "unet.")) for key in load_file(tmp_path / "made.safetensors"))
    adapter = load(tmp_path / "made.safetensors")
    assert_same(adapter, updates)
    assert verify(tmp_path / "made.safetensors", PIPELINES[kind](), adapter).loader is Loader.BARE


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("stabilised", [False, True])
def test_folders_of_peft_save_pretrained(tmp_path: Path, kind: str, stabilised: bool) -> None:
    denoiser: Any = denoiser_of(PIPELINES[kind]())
    names = [name for name, _ in adaptable(denoiser)]
    ranks, alphas = {names[0]: 2, names[-1]: 6}, {names[1]: 7}
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=stabilised)
    model: Any = get_peft_model(denoiser, config)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_()
    model.save_pretrained(str(tmp_path))
    assert_same(load(tmp_path), injected(model.base_model.model, "default"))


def test_a_fused_convolution_paints_as_diffusers_paints_with_the_file(tmp_path: Path) -> None:
    pipeline: Any = tiny.sd()
    trained(pipeline.unet)
    layers = get_peft_model_state_dict(pipeline.unet, adapter_name="made")
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="made.safetensors")
    adapter = load(tmp_path / "made.safetensors")
    assert adapter.pointwise
    fused, theirs = tiny.sd(), tiny.sd()
    plain = painted(fused)
    Fuser(fused.unet).fuse(adapter)
    theirs.load_lora_weights(str(tmp_path), weight_name="made.safetensors")
    torch.testing.assert_close(painted(fused), painted(theirs), rtol=1e-3, atol=1e-3)
    assert (painted(fused) - plain).abs().max() > 0.01


def painted(pipeline: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        "a red house", height=32, width=32, num_inference_steps=2, generator=generator, output_type="latent", return_dict=False
    )[0]


def shape_of(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear or a convolution."""
    return tuple(module.weight.shape[:2])


def kohya(modules: Mapping[str, nn.Module], stem: str = "lora_unet_{}", *, alpha: float | None = 2.0, seed: int = 0) -> dict[str, Tensor]:
    """A file of sd-scripts with random factors: the given prefix and flattened names, convolutions' factors with four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in modules.items():
        out, width = shape_of(module)
        down, up = torch.randn(RANK, width, generator=generator), torch.randn(out, RANK, generator=generator) * 0.1
        deep = (1, 1) if isinstance(module, nn.Conv2d) else ()
        key = stem.format(name.replace(".", "_"))
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down.view(*down.shape, *deep), up.view(*up.shape, *deep)
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def expected(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], stem: str = "lora_unet_{}") -> Updates:
    """The dense updates of such a file, by its own numbers."""
    updates = {}
    for name in modules:
        key = stem.format(name.replace(".", "_"))
        down, up = (tensors[f"{key}.lora_{half}.weight"].flatten(1) for half in ("down", "up"))
        updates[name] = float(tensors.get(f"{key}.alpha", torch.tensor(float(RANK)))) / RANK * (up @ down)
    return updates


def test_stable_diffusions_kohya_files_with_1x1_convolutions_as_diffusers_reads_them(tmp_path: Path) -> None:
    """sd-scripts adapts the transformer blocks' linears and their proj_in and proj_out, which are convolutions in SD 1.5."""
    pipeline: Any = tiny.sd()
    modules = {name: module for name, module in adaptable(pipeline.unet) if "attentions" in name}
    assert any(isinstance(module, nn.Conv2d) for module in modules.values())
    tensors = kohya(modules)
    save_file(tensors, tmp_path / "k.safetensors")
    adapter = load(tmp_path / "k.safetensors")
    assert_same(adapter, expected(tensors, modules))
    pipeline.load_lora_weights(str(tmp_path), weight_name="k.safetensors", adapter_name="theirs")
    assert_same(adapter, injected(pipeline.unet, "theirs"))
    found = verify(tmp_path / "k.safetensors", tiny.sd(), adapter)
    assert (found.loader, found.unread) == (Loader.DIFFUSERS, "")
    check_fits(adapter, tiny.sd().unet)


@pytest.mark.parametrize("kind", PIPELINES)
def test_onetrainers_flattened_names_are_those_of_the_models_own_modules(tmp_path: Path, kind: str) -> None:
    pipeline = PIPELINES[kind]()
    modules = dict(adaptable(denoiser_of(pipeline)))
    stem = "lora_unet_{}" if kind in ("sd", "sdxl") else "lora_transformer_{}"
    tensors = kohya(modules, stem)
    save_file(tensors, tmp_path / "o.safetensors")
    for adapter in (load(tmp_path / "o.safetensors"), load(tmp_path / "o.safetensors", denoiser_of(pipeline))):
        assert_same(adapter, expected(tensors, modules, stem))
    assert verify(tmp_path / "o.safetensors", pipeline, adapter).difference < 1e-5


def test_a_models_own_names_are_read_where_no_family_has_them(tmp_path: Path) -> None:
    model = nn.ModuleDict({"odd_part": nn.ModuleDict({"inner_one": nn.Linear(4, 4)})})
    modules = dict(adaptable(model))
    tensors = kohya(modules)
    save_file(tensors, tmp_path / "k.safetensors")
    assert_same(load(tmp_path / "k.safetensors", model), expected(tensors, modules))


# Flux's linears by their first names, as sd-scripts, ai-toolkit and BFL's own files have them: inputs and outputs in widths of the block.
ENDS = {
    "img_in": ("in", 1), "txt_in": ("text", 1), "time_in.in_layer": ("time", 1), "time_in.out_layer": (1, 1),
    "vector_in.in_layer": ("pooled", 1), "vector_in.out_layer": (1, 1), "guidance_in.in_layer": ("time", 1),
    "guidance_in.out_layer": (1, 1), "final_layer.linear": (1, "in"), "final_layer.adaLN_modulation.1": (1, 2),
}  # fmt: skip
BLOCKS = {
    **{f"double_blocks.0.{s}_{part}": shape for s in ("img", "txt")
       for part, shape in {"attn.qkv": (1, 3), "attn.proj": (1, 1), "mlp.0": (1, 4), "mlp.2": (4, 1), "mod.lin": (1, 6)}.items()},
    "single_blocks.0.linear1": (1, 7), "single_blocks.0.linear2": (5, 1), "single_blocks.0.modulation.lin": (1, 3),
}  # fmt: skip


def published(
    pipeline: FluxPipeline, names: Mapping[str, tuple[Any, Any]], key: str, halves: tuple[str, str], alpha: bool
) -> dict[str, Tensor]:
    """A file with dense random factors on linears of Flux's first names; ``key`` makes a key of a name."""
    config: Any = pipeline.transformer.config
    block = config.num_attention_heads * config.attention_head_dim
    widths = {"in": config.in_channels, "text": config.joint_attention_dim, "pooled": config.pooled_projection_dim, "time": 256}
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, shape in names.items():
        width, height = (widths[size] if isinstance(size, str) else size * block for size in shape)
        stem = key.format(name.replace(".", "_") if key.startswith("lora_unet") else name)
        tensors[f"{stem}.{halves[0]}"] = torch.randn(4, width, generator=generator)
        tensors[f"{stem}.{halves[1]}"] = torch.randn(height, 4, generator=generator) * 0.1
        if alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    return tensors


A_B, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
SPELLINGS = {
    "sd-scripts": ("lora_unet_{}", DOWN_UP, True),
    "ai-toolkit": ("diffusion_model.{}", A_B, False),
    "ComfyUI": ("diffusion_model.{}", DOWN_UP, True),
    "BFL": ("{}", A_B, False),
    "checkpoint": ("model.diffusion_model.{}", A_B, True),
}


@pytest.mark.parametrize("program", SPELLINGS)
def test_fluxs_first_names_of_any_width_in_every_spelling(tmp_path: Path, program: str) -> None:
    pipeline: Any = tiny.flux(guidance_embeds=True)
    tensors = published(pipeline, ENDS | BLOCKS, *SPELLINGS[program])
    save_file(tensors, tmp_path / "f.safetensors")
    adapter = load(tmp_path / "f.safetensors")
    check_fits(adapter, pipeline.transformer)
    whole = {name for name, _ in adaptable(pipeline.transformer)}
    assert set(adapter.factors) == {name for name in whole if not name.startswith("single_transformer_blocks.1")}
    found = verify(tmp_path / "f.safetensors", pipeline, adapter)
    assert found.difference < 1e-5
    assert (found.loader, bool(found.unread)) == (Loader.CONVERTED, True)
    plain = {key: value for key, value in tensors.items() if not key.endswith("alpha")}
    key, halves, alpha = SPELLINGS[program]
    scale = 0.5 if alpha else 1.0
    name = "double_blocks.0.img_attn.qkv"
    stem = key.format(name.replace(".", "_") if program == "sd-scripts" else name)
    fused = scale * plain[f"{stem}.{halves[1]}"] @ plain[f"{stem}.{halves[0]}"]
    rows = [delta(adapter, f"transformer_blocks.0.attn.{name}") for name in ("to_q", "to_k", "to_v")]
    torch.testing.assert_close(torch.cat(rows), fused)


class Columns(dict[str, Tensor]):
    """A checkpoint of Flux's published layout that holds ``W x`` of every weight; what is not there is zero."""

    def pop(self, key: str, *_: object) -> Tensor:
        return super().pop(key, torch.zeros(3 * 3072 + 12288, 1))


def test_updates_of_first_names_are_those_of_the_published_weights(tmp_path: Path) -> None:
    """The independent way round: apply the file to one input as published weights, let diffusers' checkpoint converter part them."""
    pipeline: Any = empty("flux1", tmp_path)
    tensors = published(pipeline, ENDS | BLOCKS, "diffusion_model.{}", A_B, False)
    save_file(tensors, tmp_path / "f.safetensors")
    adapter = load(tmp_path / "f.safetensors")
    inputs = {}
    columns = Columns()
    for name in ENDS | BLOCKS:
        down, up = (tensors[f"diffusion_model.{name}.{half}"] for half in A_B)
        width = down.shape[1]
        inputs[width] = torch.randn(width, 1, generator=torch.Generator().manual_seed(width))
        columns[f"{name}.weight"] = up @ (down @ inputs[width])
    parted = convert_flux_transformer_checkpoint_to_diffusers(columns)
    for name, (a, b) in adapter.factors.items():
        torch.testing.assert_close(parted[f"{name}.weight"], b @ (a @ inputs[a.shape[1]]), rtol=1e-4, atol=1e-3)


def test_sd_scripts_files_of_flux_as_diffusers_reads_them(tmp_path: Path) -> None:
    pipeline: Any = empty("flux1", tmp_path)
    save_file(published(pipeline, BLOCKS, *SPELLINGS["sd-scripts"]), tmp_path / "f.safetensors")
    found = verify(tmp_path / "f.safetensors", pipeline, load(tmp_path / "f.safetensors"))
    assert (found.loader, found.unread) == (Loader.DIFFUSERS, "")


def test_what_diffusers_leaves_out_is_said(tmp_path: Path) -> None:
    """diffusers maps kohya's img_in to x_embedder without its prefix and then drops it."""
    pipeline: Any = empty("flux1", tmp_path)
    save_file(published(pipeline, ENDS | BLOCKS, *SPELLINGS["sd-scripts"]), tmp_path / "f.safetensors")
    found = verify(tmp_path / "f.safetensors", pipeline, load(tmp_path / "f.safetensors"))
    assert found.loader is Loader.CONVERTED
    assert re.search("context_embedder|x_embedder|norm_out|proj_out", found.unread)


@pytest.mark.parametrize("kind", ["flux", "sd", "sdxl"])
def test_every_module_of_a_model_exports_to_kohya_and_back(tmp_path: Path, kind: str) -> None:
    pipeline: DiffusionPipeline = empty(kind, tmp_path)
    generator = torch.Generator().manual_seed(4)
    factors = {}
    for name, module in adaptable(denoiser_of(pipeline)):
        rank = 1 + len(factors) % 3
        out, width = shape_of(module)
        factors[name] = (torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator))
    for layout in Layout:
        path = tmp_path / layout.value / ("peft" if layout is Layout.PEFT else "x.safetensors")
        assert export(Adapter(factors), path, layout, pipeline).difference < 1e-5
        again = load(path)
        assert_same(again, {name: b @ a for name, (a, b) in factors.items()})


@pytest.mark.parametrize("kind", ["flux", "sd", "sdxl", "sd3"])
def test_mixed_ranks_paint_the_same_in_diffusers_and_peft(tmp_path: Path, kind: str) -> None:
    """diffusers before 0.42 scales every module whose rank is not the first one's, where a file has several ranks and no alphas."""
    fused: Any = PIPELINES[kind]()
    denoiser = denoiser_of(fused)
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for name, module in adaptable(denoiser):
        rank = (1, 4, 2)[len(factors) % 3]
        out, width = shape_of(module)
        factors[name] = (torch.randn(rank, width, generator=generator) * 0.3, torch.randn(out, rank, generator=generator) * 0.1)
    adapter = Adapter(factors)
    plain = painted(fused)
    made = {layout: export(adapter, tmp_path / place(layout), layout, fused) for layout in layouts_of(fused)}
    Fuser(denoiser).fuse(adapter)
    wanted = painted(fused)
    assert (wanted - plain).abs().max() > 0.01
    for layout, found in made.items():
        theirs: Any = PIPELINES[kind]()
        if layout is Layout.PEFT:
            PeftModel.from_pretrained(denoiser_of(theirs), str(tmp_path / place(layout)))
        elif found.loader is Loader.DIFFUSERS:
            theirs.load_lora_weights(str(tmp_path), weight_name=place(layout))
        else:
            continue
        torch.testing.assert_close(painted(theirs), wanted, rtol=1e-3, atol=1e-3)


def place(layout: Layout) -> str:
    return layout.value if layout is Layout.PEFT else f"{layout.value}.safetensors"
