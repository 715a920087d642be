"""Adapter files: what is written loads back through diffusers, module for module."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from sfumato.diffusion.families.flux import FluxFamily
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.lora.adapter import Adapter, delta, padded, scale
from sfumato.lora.files import load, save, state_dict, verify
from sfumato.lora.fuse import Fuser
from tests.unit.diffusion import tiny


@pytest.fixture
def pipeline() -> FluxPipeline:
    return tiny.flux()


def full_adapter(pipeline: FluxPipeline) -> Adapter:
    """Every module a LoRA may sit on, ranks 1 to 4 in turn, filled up to one rank as exports are."""
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for name, module in pipeline.transformer.named_modules():
        if re.fullmatch(FluxFamily.lora_targets, name):
            rank = 1 + len(factors) % 4
            factors[name] = (
                torch.randn(rank, module.in_features, generator=generator),
                torch.randn(module.out_features, rank, generator=generator) * 0.1,
            )
    assert len(factors) == 14 + 2 * 6  # one double block, two single blocks
    return padded(Adapter(factors, {"run": "test"}))


def velocity(pipeline: FluxPipeline) -> torch.Tensor:
    return pipeline("a red house", height=32, width=32, num_inference_steps=1, guidance_scale=1.0, max_sequence_length=tiny.TEXT,
                    generator=torch.Generator().manual_seed(1), output_type="latent", return_dict=False)[0]  # fmt: skip


def test_a_saved_adapter_reads_back_equal(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    save(adapter, tmp_path / "new" / "a.safetensors")
    again = load(tmp_path / "new" / "a.safetensors")
    assert again.metadata == {"run": "test"}
    assert set(again.factors) == set(adapter.factors)
    for name, (a, b) in adapter.factors.items():
        assert torch.equal(again.factors[name][0], a)
        assert torch.equal(again.factors[name][1], b)


def test_diffusers_binds_every_module_with_the_same_update(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    path = tmp_path / "adapter.safetensors"
    save(adapter, path)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="mine")
    bound = {}
    for name, module in pipeline.transformer.named_modules():
        if "mine" in getattr(module, "lora_A", {}):
            bound[name] = module.lora_B["mine"].weight @ module.lora_A["mine"].weight * module.scaling["mine"]
    assert set(bound) == set(adapter.factors)
    for name, update in bound.items():
        torch.testing.assert_close(update, delta(adapter, name), rtol=1e-5, atol=1e-6)


def test_fusing_equals_loading_through_diffusers(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    save(scale(adapter, 0.6), tmp_path / "adapter.safetensors")
    other = tiny.flux()
    other.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    plain = velocity(pipeline)
    fuser = Fuser(pipeline.transformer)
    fuser.fuse(adapter, 0.6)
    torch.testing.assert_close(velocity(pipeline), velocity(other), rtol=1e-4, atol=1e-4)
    assert (velocity(pipeline) - plain).abs().max() > 0.01
    fuser.fuse(None)
    assert torch.equal(velocity(pipeline), plain)


def test_verify_leaves_the_pipeline_alone(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    save(adapter, tmp_path / "a.safetensors")
    assert verify(tmp_path / "a.safetensors", pipeline, adapter).difference < 1e-5
    after = pipeline.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_verify_refuses_keys_that_bind_nowhere(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    path = tmp_path / "a.safetensors"
    unbound = Adapter({**adapter.factors, "transformer_blocks.7.attn.to_q": adapter.factors["transformer_blocks.0.attn.to_q"]})
    save(unbound, path)
    with pytest.raises(BrokenWeights, match="transformer_blocks.7"):
        verify(path, pipeline, unbound)
    foreign = Adapter({"blocks.1.linear": adapter.factors["transformer_blocks.0.attn.to_q"]})
    save(foreign, path)
    with pytest.raises(BrokenWeights, match="blocks.1.linear|refuse|does not load"):
        verify(path, pipeline, foreign)


def test_an_adapter_of_another_model_leaves_every_weight_as_it_is(pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    for name, pair in (
        ("transformer_blocks.9.attn.to_q", adapter.factors["transformer_blocks.0.attn.to_q"]),
        ("transformer_blocks.0.ff.net.2", adapter.factors["transformer_blocks.0.attn.to_q"]),
    ):
        with pytest.raises(InvalidInput, match=f"{name}.*another model"):
            Fuser(pipeline.transformer).fuse(Adapter({**adapter.factors, name: pair}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.transformer.state_dict().items())


def test_the_keys_are_diffusers_own_without_alphas(pipeline: FluxPipeline) -> None:
    keys = set(state_dict(full_adapter(pipeline)))
    assert "transformer.single_transformer_blocks.1.proj_out.lora_B.weight" in keys
    assert all(key.startswith("transformer.") and re.search(r"\.lora_[AB]\.weight$", key) for key in keys)


def test_files_that_are_no_adapters_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights):
        load(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(BrokenWeights):
        load(path)
    save_file({}, path)
    with pytest.raises(BrokenWeights, match="no keys"):
        load(path)


A, B = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
PAIR = {"transformer.x.lora_A.weight": A, "transformer.x.lora_B.weight": B}
KOHYA = {"lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": A, "lora_unet_double_blocks_0_img_mlp_0.lora_up.weight": B}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (PAIR | {"transformer.proj_out.alpha": torch.ones(1)}, "proj_out has alpha only"),
        ({"transformer.x.lora_A.weight": A}, "x has lora_A .lora_down. only"),
        (PAIR | {"text_encoder.y.lora_A.weight": A}, "text_encoder.y.*text encoder's.*--without-text-encoders"),
        (KOHYA | {"lora_te1_text_model.lora_down.weight": A}, "lora_te1.*text encoder's"),
        (PAIR | {"transformer.x.lora_magnitude_vector": A}, "magnitude.*DoRA"),
        (KOHYA | {"lora_unet_double_blocks_0_img_mlp_0.dora_scale": A}, "dora_scale.*DoRA"),
        ({"lora_unet_double_blocks_0_img_mlp_0.lokr_w1": A}, "lokr_w1.*LyCORIS"),
        (PAIR | {"transformer.norm.diff": A}, "norm.diff.*whole weight"),
        (PAIR | {"unet.x.lora_A.weight": A, "unet.x.lora_B.weight": B}, "of no one model"),
        ({"base_model.model.x.lora_A.weight": A}, "adapter_config.json"),
        ({"garbage": A}, "garbage is not of a LoRA"),
        (PAIR | {"garbage": A}, "garbage"),
        (KOHYA | {"garbage": A}, "garbage"),
        (KOHYA | {"lora_unet_double_blocks_0_img_mlp_2.lora_up.weight": B}, "img_mlp_2 has lora_B .lora_up. only"),
        ({"lora_unet_joint_blocks_0_x.lora_down.weight": A, "lora_unet_joint_blocks_0_x.lora_up.weight": B}, "joint_blocks.*another model"),
        ({key.replace("mlp_0", "attn_qkv"): tensor for key, tensor in KOHYA.items()}, "attn_qkv is 4 high, not 18"),
        ({"transformer.x.lora_A.weight": A[..., None, None], "transformer.x.lora_B.weight": B[..., None]}, "no matrix"),
        ({"transformer.x.lora_A.weight": A * float("nan"), "transformer.x.lora_B.weight": B}, "lora_A.weight holds numbers that are not"),
    ],
)
def test_a_file_with_foreign_keys_is_refused_by_the_key(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(BrokenWeights, match=words):
        load(tmp_path / "a.safetensors")


def test_scales_of_other_programs_are_baked_in(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(PAIR | {"transformer.x.alpha": torch.tensor(1.0)}, path)
    torch.testing.assert_close(delta(load(path), "x"), 0.5 * B @ A)
    config = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 6})
    save_file(PAIR, path, metadata={"lora_adapter_metadata": config})
    torch.testing.assert_close(delta(load(path), "x"), 3 * B @ A)
    save_file(PAIR | {"transformer.x.alpha": torch.tensor(1.0)}, path, metadata={"lora_adapter_metadata": config})
    with pytest.raises(BrokenWeights, match="alpha key beside"):
        load(path)
    save_file(KOHYA | {"lora_unet_double_blocks_0_img_mlp_0.alpha": torch.tensor(4.0)}, path)
    torch.testing.assert_close(delta(load(path), "transformer_blocks.0.ff.net.0.proj"), 2 * B @ A)


def peft_folder(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"base_model.model.x.lora_A.weight": A, "base_model.model.x.lora_B.weight": B}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config))
    return folder


def test_a_peft_folder_is_read_with_its_scales(tmp_path: Path) -> None:
    for config, factor in (
        ({"lora_alpha": 4}, 2.0),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"r": 8, "rank_pattern": {"x": 2}, "alpha_pattern": {"x": 1}}, 0.5),
    ):
        torch.testing.assert_close(delta(load(peft_folder(tmp_path / "p", **config)), "x"), factor * B @ A)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 3}, "rank 3"),
        ({"r": None, "lora_alpha": None}, "x"),
    ],
)
def test_a_peft_folder_that_is_no_plain_lora_is_refused(tmp_path: Path, config: dict[str, object], words: str) -> None:
    with pytest.raises(BrokenWeights, match=words):
        load(peft_folder(tmp_path / "p", **config))


def test_a_folder_that_is_none_of_pefts_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="adapter_config.json"):
        load(tmp_path)
    folder = peft_folder(tmp_path / "p")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(BrokenWeights, match="not JSON"):
        load(folder)
    (peft_folder(folder) / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingWeights):
        load(folder)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    adapter = Adapter({"x": (A, B)})
    with pytest.raises(InvalidInput, match="is a folder"):
        save(adapter, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        save(adapter, tmp_path / "file" / "a.safetensors")
