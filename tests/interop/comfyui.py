"""Adapters in ComfyUI itself: its own loaders of files and of models, on the cases that `tests.interop.cases` has written.

Run by `deploy.interop` in an environment of ComfyUI's requirements: ``python tests/interop/comfyui.py CHECKOUT CASES``. Prints one
line for each model and file: the keys that ComfyUI did not load, the largest difference of a weight from the fused model's and of the
denoiser's prediction from diffusers'.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import sfumato as sfumato  # lets torchvision's wheel be imported beside a CPU build of torch

CHECKOUT, CASES = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(CHECKOUT))
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402  # pyright: ignore[reportMissingImports]

comfy.options.enable_args_parsing()
import comfy.lora  # noqa: E402  # pyright: ignore[reportMissingImports]
import comfy.model_patcher  # noqa: E402  # pyright: ignore[reportMissingImports]
import comfy.sd  # noqa: E402  # pyright: ignore[reportMissingImports]
import comfy.supported_models as supported  # noqa: E402  # pyright: ignore[reportMissingImports]
import comfy.utils  # noqa: E402  # pyright: ignore[reportMissingImports]
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep  # noqa: E402  # pyright: ignore[reportMissingImports]

PREFIX = "diffusion_model."


def unet_config(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's configuration of a denoiser, from diffusers'."""
    if kind == "flux":
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return {"image_model": "flux", "in_channels": config["in_channels"] // 4, "out_channels": config["in_channels"] // 4,
                "vec_in_dim": config["pooled_projection_dim"], "context_in_dim": config["joint_attention_dim"], "hidden_size": width,
                "mlp_ratio": 4.0, "num_heads": config["num_attention_heads"], "depth": config["num_layers"],
                "depth_single_blocks": config["num_single_layers"], "axes_dim": config["axes_dims_rope"], "theta": 10000, "patch_size": 2,
                "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}  # fmt: skip
    if kind == "sd3":
        width = config["num_attention_heads"] * config["attention_head_dim"]
        embed = {"target": "torch.nn.Linear", "params": {"in_features": config["joint_attention_dim"], "out_features": width}}
        return {"in_channels": config["in_channels"], "patch_size": 2, "depth": width // 64, "num_blocks": config["num_layers"],
                "input_size": None, "adm_in_channels": config["pooled_projection_dim"], "context_embedder_config": embed, "qk_norm": "rms",
                "pos_embed_max_size": config["pos_embed_max_size"], "num_patches": config["pos_embed_max_size"] ** 2,
                "x_block_self_attn_layers": list(config["dual_attention_layers"]), "pos_embed_scaling_factor": None}  # fmt: skip
    width, heads = config["block_out_channels"], config["attention_head_dim"]
    added = config["projection_class_embeddings_input_dim"]
    return {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": width[0], "num_res_blocks": [1, 1],
            "channel_mult": [size // width[0] for size in width], "transformer_depth": [0, 1], "transformer_depth_middle": 1,
            "transformer_depth_output": [0, 0, 1, 1], "use_spatial_transformer": True, "context_dim": config["cross_attention_dim"],
            "legacy": False, "use_linear_in_transformer": config["use_linear_projection"], "num_heads": heads, "num_head_channels": -1,
            "adm_in_channels": added, **({"num_classes": "sequential"} if added else {})}  # fmt: skip


MODELS = {"flux": supported.Flux, "sd": supported.SD15, "sdxl": supported.SDXL, "sd3": supported.SD3}
MAPS = {
    "flux": comfy.utils.flux_to_diffusers,
    "sd3": comfy.utils.mmdit_to_diffusers,
    "sd": comfy.utils.unet_to_diffusers,
    "sdxl": comfy.utils.unet_to_diffusers,
}


def converted(
    kind: str, weights: dict[str, torch.Tensor], config: dict[str, Any], like: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """diffusers' weights under ComfyUI's names, by ComfyUI's own map; every weight has a place."""
    names: dict[str, Any] = MAPS[kind](config)
    assert set(weights) <= set(names), sorted(set(weights) - set(names))[:5]
    result = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    for name, weight in weights.items():
        target, offset, change = (names[name], None, None) if isinstance(names[name], str) else (*names[name], None)[:3]
        part = result[str(target)] if offset is None else result[str(target)].narrow(*offset)
        part.copy_((change(weight) if change else weight).view(part.shape))
    return result


def predicted(kind: str, network: Any, x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The prediction of ComfyUI's denoiser."""
    if kind == "flux":
        return network(x["latents"], x["time"], context=x["text"], y=x["pooled"], guidance=x["guidance"])
    if kind == "sd3":
        return network(x["latents"], x["time"], context=x["text"], y=x["pooled"])
    pooled = torch.cat([x["pooled"], Timestep(8)(x["sizes"].flatten()).flatten()[None]], 1) if kind == "sdxl" else None
    return network(x["latents"], x["time"], context=x["text"], y=pooled)


class Unloaded(logging.Handler):
    """Collects what ComfyUI logs of keys that it does not load."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "not loaded" in record.getMessage().lower():
            self.lines.append(record.getMessage())


@torch.no_grad()
def check(kind: str) -> bool:
    """Every file of one model; whether the one that is exported for ComfyUI passes."""
    folder = CASES / kind
    config = unet_config(kind, json.loads((folder / "config.json").read_text()))
    settings = MODELS[kind](config)
    settings.unet_config = config
    settings.manual_cast_dtype = None
    model = settings.get_model({}, "")
    names = {name: tensor for name, tensor in model.diffusion_model.state_dict().items()}
    base = converted(kind, load_file(folder / "base.safetensors"), config, names)
    fused = converted(kind, load_file(folder / "fused.safetensors"), config, names)
    x = load_file(folder / "inputs.safetensors")
    good = True
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem not in ("diffusers", "kohya"):
            continue
        model.diffusion_model.load_state_dict(base)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        collected = Unloaded()
        logging.getLogger().addHandler(collected)
        plain = (predicted(kind, model.diffusion_model, x) - x["plain"]).abs().max()
        patched, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(str(file), safe_load=True), 1.0, 0)
        patched.patch_model()
        logging.getLogger().removeHandler(collected)
        weights = model.diffusion_model.state_dict()
        apart = max(float((weights[name] - tensor).abs().max()) for name, tensor in fused.items())
        output = (predicted(kind, model.diffusion_model, x) - x["wanted"]).abs().max()
        change = (x["wanted"] - x["plain"]).abs().max()
        within = apart < 1e-4 and float(output) < 1e-3 and float(plain) < 1e-3
        passed = not collected.lines and within and float(change) > 0.01
        ours = file.stem == ("diffusers" if kind == "sd3" else "kohya")
        good = good and (passed or not ours)
        print(
            f"ComfyUI, {kind}, {file.stem}: {'passed' if passed else 'FAILED'}; keys not loaded {len(collected.lines)}, weights differ by "
            f"{apart:.1e}, prediction by {output:.1e} (base alone {plain:.1e}); the adapter changes it by {change:.1e}"
        )
        for line in collected.lines[:3]:
            print(f"    {line}")
        patched.unpatch_model()
    return good


def valid(kind: str) -> bool:
    """Whether ComfyUI accepts the workflow as its API would: all nodes known, all inputs of their types, all files in its lists."""
    import execution  # pyright: ignore[reportMissingImports]
    import folder_paths  # pyright: ignore[reportMissingImports]

    graph = json.loads((CASES / kind / "workflow_api.json").read_text())
    places = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models", "clip_name1": "text_encoders", "clip_name2": "text_encoders",
              "vae_name": "vae", "lora_name": "loras"}  # fmt: skip
    for node in graph.values():
        for name, place in places.items():
            if name in node["inputs"]:
                folder = CASES / "models" / place
                folder.mkdir(parents=True, exist_ok=True)
                (folder / node["inputs"][name]).touch()
                folder_paths.add_model_folder_path(place, str(folder))
                folder_paths.filename_list_cache.pop(place, None)
    accepted, error, _, faults = asyncio.run(execution.validate_prompt("interop", graph, None))
    print(f"ComfyUI, {kind}, workflow: {'accepted' if accepted else f'REFUSED {error} {faults}'}")
    return accepted


def main() -> int:
    """Check every case; 1 where one fails."""
    import nodes  # pyright: ignore[reportMissingImports]

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    results = [check(kind) for kind in MODELS] + [valid(kind) for kind in MODELS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
