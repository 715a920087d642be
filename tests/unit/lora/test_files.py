"""Adapter files: what is written loads back through diffusers, module for module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from sfumato.diffusion.families import FluxFamily
from sfumato.errors import BrokenWeights, MissingWeights
from sfumato.lora.adapter import Adapter, delta, scale
from sfumato.lora.files import load, save, state_dict, verify
from sfumato.lora.fuse import Fuser
from tests.unit.diffusion import tiny


@pytest.fixture
def pipeline() -> FluxPipeline:
    return tiny.flux()


def full_adapter(pipeline: FluxPipeline) -> Adapter:
    """Every module a LoRA may sit on, ranks 1 to 4 in turn."""
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
    return Adapter(factors, {"run": "test"})


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


def test_verify_passes_what_is_whole_and_leaves_the_pipeline_alone(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    save(adapter, tmp_path / "a.safetensors")
    assert verify(tmp_path / "a.safetensors", pipeline, adapter) < 1e-5
    after = pipeline.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_verify_refuses_unbound_keys_lost_modules_and_other_updates(tmp_path: Path, pipeline: FluxPipeline) -> None:
    adapter = full_adapter(pipeline)
    path = tmp_path / "a.safetensors"
    name = "transformer_blocks.0.attn.to_q"
    unbound = Adapter({**adapter.factors, "transformer_blocks.7.attn.to_q": adapter.factors[name]})
    save(unbound, path)
    with pytest.raises(BrokenWeights, match="transformer_blocks.7"):
        verify(path, pipeline, unbound)
    save(Adapter({key: value for key, value in adapter.factors.items() if key != name}), path)
    with pytest.raises(BrokenWeights, match="missing"):
        verify(path, pipeline, adapter)
    save(scale(adapter, 1.01), path)
    with pytest.raises(BrokenWeights, match="differs"):
        verify(path, pipeline, adapter)
    save(adapter, path)  # the pipeline still works after three refusals
    verify(path, pipeline, adapter)


def test_the_keys_are_diffusers_own_without_alphas(pipeline: FluxPipeline) -> None:
    keys = set(state_dict(full_adapter(pipeline)))
    assert "transformer.single_transformer_blocks.1.proj_out.lora_B.weight" in keys
    assert all(key.startswith("transformer.") and re.search(r"\.lora_[AB]\.weight$", key) for key in keys)


def test_files_that_are_no_adapters_are_named(tmp_path: Path, pipeline: FluxPipeline) -> None:
    with pytest.raises(MissingWeights):
        load(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(BrokenWeights):
        load(path)
    save(full_adapter(pipeline), path)
    tensors = load_file(path)
    save_file({**tensors, "transformer.proj_out.alpha": torch.ones(1)}, path)
    with pytest.raises(BrokenWeights, match="alpha"):
        load(path)
    save_file({}, path)
    with pytest.raises(BrokenWeights):
        load(path)
