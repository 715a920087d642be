"""An exported adapter in other programs: each has the same updates, and paints the same picture, as the model with it fused in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from sfumato.lora.adapter import delta
from tests.unit.export.conftest import Sample, painted, vista

ROOT = Path(__file__).parents[3]
Updates = Mapping[str, Tensor]


def assert_same(updates: Updates, sample: Sample) -> None:
    """The same modules, each with the same dense update, which are changes that can be seen."""
    assert set(updates) == set(sample.whole.factors)
    for name, update in updates.items():
        torch.testing.assert_close(update, delta(sample.whole, name), rtol=1e-4, atol=1e-6)
    assert np.abs(sample.plain.astype(int) - sample.wanted).max() > 20


def assert_paints_the_same(pipeline: Any, sample: Sample, within: int = 1) -> None:
    assert np.abs(painted(pipeline).astype(int) - sample.wanted).max() <= within


def added(pipeline: Any, updates: Updates) -> Any:
    """The pipeline with dense updates added to its weights."""
    with torch.no_grad():
        for name, update in updates.items():
            pipeline.transformer.get_parameter(f"{name}.weight").add_(update)
    return pipeline


def injected(model: Any, adapter: str) -> dict[str, Tensor]:
    """Dense updates of the layers that PEFT has put into a model."""
    layers = {name: layer for name, layer in model.named_modules() if adapter in getattr(layer, "lora_A", {})}
    return {name: (m.lora_B[adapter].weight @ m.lora_A[adapter].weight).detach() * m.scaling[adapter] for name, m in layers.items()}


def test_diffusers_load_lora_weights(sample: Sample) -> None:
    pipeline = vista()
    pipeline.load_lora_weights(str(sample.folder / "lora"), weight_name="diffusers.safetensors", adapter_name="mine")
    assert_same(injected(pipeline.transformer, "mine"), sample)
    assert_paints_the_same(pipeline, sample)
    pipeline.set_adapters(["mine"], [0.0])
    assert np.abs(painted(pipeline).astype(int) - sample.plain).max() <= 1


def test_peft_from_pretrained(sample: Sample) -> None:
    pipeline = vista()
    model: Any = PeftModel.from_pretrained(pipeline.transformer, str(sample.folder / "lora" / "peft"))
    assert_same(injected(model.base_model.model, "default"), sample)
    assert_paints_the_same(pipeline, sample)


# ComfyUI's package asks for a newer Python than this one, so its loader is not run here. What follows is the layout it documents in
# comfy/utils.py and comfy/lora.py: Flux's weights under their first names, q, k and v (and a single block's MLP) as rows of one.
BLOCK = {
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj", "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
}  # fmt: skip
SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}


def comfy_place(module: str, width: int) -> tuple[str, int, int | None]:
    """Where ComfyUI has a linear of diffusers: the name of its weight, its first row there, and how many (None: all)."""
    kind, index, rest = module.split(".", 2)
    if kind == "transformer_blocks":
        block = f"diffusion_model.double_blocks.{index}"
        for stream, parts in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
            if rest.removeprefix("attn.") in parts:
                return f"{block}.{stream}_attn.qkv", width * parts.index(rest.removeprefix("attn.")), width
        return f"{block}.{BLOCK[rest]}", 0, None
    block = f"diffusion_model.single_blocks.{index}"
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    if rest in parts:
        return f"{block}.linear1", width * parts.index(rest), 4 * width if rest == "proj_mlp" else width
    return f"{block}.{SINGLE[rest]}", 0, None


def comfy_updates(tensors: Mapping[str, Tensor], modules: Mapping[str, Any], width: int) -> dict[str, Tensor]:
    """What ComfyUI adds to its weights for a file, in diffusers' modules again; every key of the file must be found by one it looks for.

    It looks for ``lora_unet_<name with _>`` (``lora_up``, ``lora_down``, ``alpha``) of each of its own weights, and for
    ``transformer.<diffusers' name>`` (``lora_B``, ``lora_A``) of each part; an update is ``up @ down * alpha / rank``.
    """
    places = {module: comfy_place(module, width) for module in modules}
    heights: dict[str, int] = {}
    for module, (weight, first, _) in places.items():
        heights[weight] = max(heights.get(weight, 0), first + modules[module].out_features)
    patches: dict[str, Tensor] = {}
    used = set()

    def patch(stem: str, up: str, down: str, weight: str, first: int, count: int | None) -> None:
        if f"{stem}.{up}" not in tensors:
            return
        used.update({f"{stem}.{up}", f"{stem}.{down}", f"{stem}.alpha"} & set(tensors))
        a, b = tensors[f"{stem}.{down}"], tensors[f"{stem}.{up}"]
        scale = float(tensors.get(f"{stem}.alpha", torch.tensor(float(len(a))))) / len(a)
        whole = patches.setdefault(weight, torch.zeros(heights[weight], a.shape[1]))
        whole[first : None if count is None else first + count] += scale * (b @ a)

    for weight in heights:
        stem = weight.removeprefix("diffusion_model.").replace(".", "_")
        patch(f"lora_unet_{stem}", "lora_up.weight", "lora_down.weight", weight, 0, None)
    for module, (weight, first, count) in places.items():
        patch(f"transformer.{module}", "lora_B.weight", "lora_A.weight", weight, first, count)
    assert used == set(tensors)
    ends = {module: first + modules[module].out_features for module, (_, first, _) in places.items()}
    return {module: patches[weight][first : ends[module]] for module, (weight, first, _) in places.items()}


def test_comfyui_by_its_documented_key_mapping_not_its_package(sample: Sample) -> None:
    for file in ("kohya.safetensors", "diffusers.safetensors"):
        pipeline = vista()
        modules = {name: pipeline.transformer.get_submodule(name) for name in sample.whole.factors}
        updates = comfy_updates(load_file(sample.folder / "lora" / file), modules, pipeline.transformer.inner_dim)
        assert_same(updates, sample)
        assert_paints_the_same(added(pipeline, updates), sample)


VLLM = """
import sys
from pathlib import Path

import sfumato
import torch
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

folder, expected, out = sys.argv[1], set(sys.argv[2].split(",")), sys.argv[3]
helper = PEFTHelper.from_local_dir(folder, max_position_embeddings=None)
model = LoRAModel.from_local_checkpoint(folder, expected, helper, lora_model_id=1, device="cpu", dtype=torch.float32)
for lora in model.loras.values():
    lora.optimize()
save_file({name: (lora.lora_b @ lora.lora_a).contiguous() for name, lora in model.loras.items()}, out)
"""


def test_vllm_omni_by_vllms_own_loader_and_its_documented_lookup(sample: Sample, tmp_path: Path) -> None:
    """vLLM-Omni's package would move diffusers and transformers. Its manager reads a folder with these two classes of vLLM, which are
    here, and looks an update up by a module's name without the component: ``transformer.<name>`` is found as ``<name>``.
    """
    suffixes = ",".join(sorted({name.split(".")[-1] for name in sample.whole.factors}))
    line = [sys.executable, "-c", VLLM, str(sample.folder / "lora" / "peft"), suffixes, str(tmp_path / "updates.safetensors")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = load_file(tmp_path / "updates.safetensors")
    looked_up = {f"transformer.{name}".split(".", 1)[-1]: update for name, update in loaded.items()}
    assert_same(looked_up, sample)
    assert_paints_the_same(added(vista(), looked_up), sample)
