"""Weights as their authors published them, into folders that `services.scoring.loading` reads.

Three of the published files are pickles, and a pickle can run anything when it is read. They are read here, once, by
PyTorch's restricted reader: tensors, plain containers, and, for the whole model that MPS was published as, objects of a
few known libraries, which become inert boxes for their attributes. Anything else in the file is refused unread.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from services.scoring.mps import CrossModel
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.scoring.networks import AestheticPredictor

StateDict: TypeAlias = dict[str, Tensor]

# Whose objects may stand in a pickled model: those that MPS's authors pickled with it. None of their code is imported or run.
BOXED = ("trainer.models.", "transformers.", "torch.nn.modules.", "torch._C._nn.")
# The published CLIPs are ViT-H/14: shapes give everything but the width of a head.
TEXT_HEAD, VISION_HEAD = 64, 80
MPS = {
    "model": "mps",
    "threshold": 0.3,
    "conditions": {
        "overall": "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
        "texture, quantity, attributes, position, number, location, word, things."
    },
}
"""As the authors' evaluation scripts have it."""


def convert(source: Path, target: Path, layout: str) -> None:
    """Write the folder for a published file.

    Args:
        source: ``.pt``, ``.pth``, ``.ckpt`` or ``.safetensors``.
        target: a folder that does not exist, or is empty.
        layout: one of `LAYOUTS`.

    Raises:
        InvalidInput: unknown layout, no such file, a target in use.
        BrokenWeights: the file cannot be read, holds more than weights, or other weights than those of ``layout``.
    """
    if layout not in LAYOUTS:
        raise InvalidInput("as", f"{layout!r} is unknown.", hint=f"Use one of: {', '.join(LAYOUTS)}.")
    if not source.is_file():
        raise InvalidInput("source", f"{source} is no file.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput("target", f"{target} is in use.", hint="Name a new folder.")
    state = {name.removeprefix("module."): tensor for name, tensor in read_state(source).items()}
    try:
        files = LAYOUTS[layout](state)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BrokenWeights(f"{source} holds no weights of {layout} ({reason}).", hint="Is it the file its authors publish?") from error
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".json"):
            (target / name).write_text(json.dumps(content, indent=1) + "\n")
        else:
            whole = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in content.items()}
            save_file(whole, target / name, metadata={"format": "pt"})


def aesthetic(state: StateDict) -> dict[str, Any]:
    """LAION's MLP (christophschuhmann/improved-aesthetic-predictor)."""
    head = AestheticPredictor(state["layers.0.weight"].shape[1])
    head.load_state_dict(state)
    return {"model.safetensors": state}


def hpsv2(state: StateDict) -> dict[str, Any]:
    """open_clip's ViT-H-14 (HPS_v2.1_compressed.pt) as a CLIPModel."""
    return clip_folder(from_open_clip(state))


def mps(state: StateDict) -> dict[str, Any]:
    """A CLIPModel under ``model.``, and `CrossModel` under ``cross_model.``."""
    clip, cross = ({key[len(start) :]: v for key, v in state.items() if key.startswith(start)} for start in ("model.", "cross_model."))
    if len(clip) + len(cross) < len(state):
        raise ValueError("it holds more than model and cross_model")
    width = clip["visual_projection.weight"].shape[0]
    layers = 1 + max(int(key.split(".")[1]) for key in cross)
    heads = cross["layers.0.0.fn.to_q.weight"].shape[0] // 64
    CrossModel(width, layers, heads).load_state_dict(cross)
    return clip_folder(clip) | {"attention.safetensors": cross, "mps.json": MPS | {"layers": layers, "heads": heads}}


LAYOUTS: Mapping[str, Callable[[StateDict], dict[str, Any]]] = {"aesthetic": aesthetic, "hpsv2": hpsv2, "mps": mps}


def clip_folder(state: StateDict) -> dict[str, Any]:
    """Weights, config and image processor of a CLIPModel from its state alone."""
    state = {key: value for key, value in state.items() if not key.endswith(".position_ids")}  # a counter that old versions saved
    config = clip_config(state)
    with torch.device("meta"):
        CLIPModel(config).load_state_dict(state, assign=True)
    side = config.vision_config.image_size  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    described = config.to_dict() | {"architectures": ["CLIPModel"]}
    return {"model.safetensors": state, "config.json": described, "preprocessor_config.json": processor}


def clip_config(state: StateDict) -> CLIPConfig:
    """The configuration of a CLIP in the manner of ViT-H/14, read from the shapes of its weights."""

    def layers(part: str) -> int:
        return 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"{part}.encoder.layers."))

    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    words = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": width // TEXT_HEAD,
        "num_hidden_layers": layers("text_model"),
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "max_position_embeddings": len(state["text_model.embeddings.position_embedding.weight"]),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        "hidden_act": "gelu",
    }
    width, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
    grid = round((len(state["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
    sight = {
        "hidden_size": width,
        "num_attention_heads": width // VISION_HEAD,
        "num_hidden_layers": layers("vision_model"),
        "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "patch_size": patch,
        "image_size": patch * grid,
        "hidden_act": "gelu",
    }
    return CLIPConfig(text_config=words, vision_config=sight, projection_dim=len(state["text_projection.weight"]))


_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_PROJECTION = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def from_open_clip(state: StateDict) -> StateDict:
    """The names and shapes of transformers' CLIPModel for a state dict of open_clip.

    Raises:
        ValueError: a name that open_clip's ViT models do not have.
    """
    out: StateDict = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if name in _WHOLE:
            out[_WHOLE[name]] = tensor
        elif name in _PROJECTION:
            out[_PROJECTION[name]] = tensor.T
        elif block:
            visual, layer, rest = block.groups()
            start = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
            part, _, kind = rest.rpartition(".")
            if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                for which, piece in zip("qkv", tensor.chunk(3), strict=True):
                    out[f"{start}.self_attn.{which}_proj.{rest.rpartition('_')[2]}"] = piece
            elif part in _BLOCK:
                out[f"{start}.{_BLOCK[part]}.{kind}"] = tensor
            else:
                raise ValueError(f"unknown tensor {name}")
        else:
            raise ValueError(f"unknown tensor {name}")
    return out


# --- reading ---


def read_state(source: Path) -> StateDict:
    """The tensors in a file, by name; nothing in it is executed.

    Raises:
        BrokenWeights: it cannot be read, or holds anything but weights.
    """
    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except (SafetensorError, OSError) as error:
            raise BrokenWeights(f"{source} cannot be read: {error}") from error
    whole = _unpickle(source)
    if isinstance(whole, _Boxed):
        return whole.tensors()
    while isinstance(whole, Mapping) and isinstance(whole.get("state_dict"), Mapping):
        whole = whole["state_dict"]
    if not isinstance(whole, Mapping) or not whole or not all(isinstance(value, Tensor) for value in whole.values()):
        raise BrokenWeights(f"{source} holds no state dict.", hint="Is it the file its authors publish?")
    return dict(whole)


class _Boxed:
    """Stands in for an object of a library that is not to be run: it keeps attributes, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Boxed:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def tensors(self, prefix: str = "") -> StateDict:
        """What the state dict of the pickled torch module was."""
        own = {**self.__dict__.get("_parameters", {}), **self.__dict__.get("_buffers", {})}
        passing = self.__dict__.get("_non_persistent_buffers_set", ())
        state = {prefix + name: value.detach() for name, value in own.items() if isinstance(value, Tensor) and name not in passing}
        for name, module in self.__dict__.get("_modules", {}).items():
            if isinstance(module, _Boxed):
                state |= module.tensors(f"{prefix}{name}.")
        return state


def _unpickle(source: Path) -> Any:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError):
        names = []  # a file of the old format, which the restricted reader knows too, or no file of PyTorch's, which it refuses
    foreign = [name for name in names if not name.startswith(BOXED)]
    if foreign:
        hint = "It could run anything. Do not load it; get the weights from their authors."
        raise BrokenWeights(f"{source} holds more than weights: {', '.join(foreign)}.", hint=hint)
    boxes: list[Any] = [(type("Boxed", (_Boxed,), {}), name) for name in names]
    try:
        with torch.serialization.safe_globals(boxes):
            return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BrokenWeights(f"{source} cannot be read as weights ({reason}).", hint="Fetch it again from its authors.") from error
