"""A model family is one file and one line of the catalog: AuraFlow, which sfumato does not ship, paints, trains, exports and is sized."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from services.trainer.engine import train_pairs
from services.trainer.objectives.objective import TrainedAdapter
from services.trainer.pairs import TrainingPair, TrainSettings
from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import family_of
from sfumato.diffusion.families.catalog import FAMILIES
from sfumato.diffusion.loading import load_pipeline
from sfumato.diffusion.sampling import paint
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora.files import Layout, export, layouts_of, load
from sfumato.runtime.models.sizes import measured
from sfumato.sizes import Blocks
from sfumato.types import GenerateRequest, Region
from tests.unit.diffusion import tiny

FILE = '''
"""AuraFlow."""

from sfumato.diffusion.families.calling import to_cells, to_images
from sfumato.diffusion.families.family import Family, without_gradients
from sfumato.diffusion.limits import ModelLimits
from sfumato.sizes import Blocks


class AuraFamily(Family):
    pipeline_class = "AuraFlowPipeline"
    denoiser_class = "AuraFlowTransformer2DModel"
    denoiser_part = "transformer"
    classifier_free = True
    per_sample = ("hidden_states", "encoder_hidden_states", "timestep")
    lora_targets = r"(joint|single)_transformer_blocks\\.\\d+\\.attn\\.(to_q|to_k|to_v|to_out\\.0)"
    rounding = -0.5

    @classmethod
    def blocks(cls, config, vae_scale):
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return (Blocks(config["num_mmdit_layers"] + config["num_single_dit_layers"], width, config["patch_size"] * vae_scale, 256),)

    def _limits(self):
        return ModelLimits(8, 32, 32, 256, 50, (1.0, 10.0), 4, 32, 4, 3.5)

    def count_tokens(self, prompt):
        return len(self.pipeline.tokenizer(prompt).input_ids)

    @without_gradients
    def encode(self, prompts):
        return {"encoder_hidden_states": self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]}

    @without_gradients
    def decode(self, latents, width, height):
        vae = self.pipeline.vae
        return to_images(self.pipeline, vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])

    @without_gradients
    def encode_pictures(self, images):
        return to_cells(self.pipeline, images) * self.pipeline.vae.config.scaling_factor

    def predict(self, noised, levels, conditions, width, height, guidance):
        return self.pipeline.transformer(noised, timestep=levels.to(noised), return_dict=False, **conditions)[0]
'''


def pipeline() -> AuraFlowPipeline:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(tiny.tokenizer()), d_model=tiny.WIDTH, d_kv=16, num_heads=2, d_ff=tiny.WIDTH, num_layers=1, pad_token_id=0,
        eos_token_id=3, use_cache=False,
    )  # fmt: skip
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=tiny.WIDTH, caption_projection_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    words: Any = tiny.tokenizer()
    return tiny.finished(
        AuraFlowPipeline(
            tokenizer=words, text_encoder=UMT5EncoderModel(config), vae=tiny.autoencoder(scaling_factor=0.13),
            transformer=tiny.loud(transformer), scheduler=FlowMatchEulerDiscreteScheduler(shift=1.7),
        )
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file, and the one line."""
    (tmp_path / "aura.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "aura", raising=False)
    monkeypatch.setitem(FAMILIES, "AuraFlowPipeline", "aura:AuraFamily")


def test_without_the_line_the_model_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(BrokenWeights, match="AuraFlowPipeline, which is not supported.*FluxPipeline"):
        load_pipeline(saved)
    with pytest.raises(InvalidInput, match="AuraFlowPipeline is of no supported family.*FluxPipeline"):
        family_of(pipeline())
    with pytest.raises(InvalidInput, match="AuraFlowPipeline is of no supported family.*FluxPipeline"):
        measured(saved)


@pytest.mark.usefixtures("registered")
def test_it_paints_as_its_pipeline_does_and_follows_regions(saved: Path) -> None:
    model = load_pipeline(saved)
    whole, family = (model, family_of(model))
    plain = GenerateRequest("a red house", 1, 32, 32, 2, 3.5)
    advised = GenerateRequest("a red house", 1, 32, 32, 2, 3.5, (Region("the moon", (0, 0, 16, 16)),))
    first, second = paint(family, [plain, advised], RowBudget(family, 8))
    expected: Any = whole
    latents = expected(
        "a red house", width=32, height=32, num_inference_steps=2, guidance_scale=3.5, generator=torch.Generator().manual_seed(1),
        output_type="latent", return_dict=False,
    )[0][0]  # fmt: skip
    alone = paint(family, [plain], RowBudget(family, 8))[0]
    assert torch.equal(alone.latents, latents)
    torch.testing.assert_close(first.latents, latents, rtol=1e-3, atol=1e-4)
    assert not torch.equal(first.latents, second.latents)


@pytest.mark.usefixtures("registered")
def test_it_trains_exports_and_is_sized(saved: Path, tmp_path: Path) -> None:
    model = load_pipeline(saved)
    before, after = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    settings = TrainSettings(rank=2, batch=2, steps_before=3, steps_after=3, learning_rate=5e-3)
    (result,) = train_pairs(model, [TrainingPair("a red house", before, after, 1, 32, 32)], settings)
    assert isinstance(result, TrainedAdapter) and len(result.losses) == 6
    assert layouts_of(model) == [Layout.DIFFUSERS, Layout.PEFT]
    for layout in layouts_of(model):
        path = tmp_path / layout.value / "a.safetensors" if layout is Layout.DIFFUSERS else tmp_path / layout.value
        assert export(result.adapter, path, layout, model).difference < 1e-4
        assert load(path).factors.keys() == result.adapter.factors.keys()
    with pytest.raises(InvalidInput, match="no kohya layout of AuraFlow"):
        export(result.adapter, tmp_path / "kohya.safetensors", Layout.KOHYA, model)
    size = measured(saved)
    assert size.blocks == (Blocks(2, 32, 8, 256),) and size.classifier_free
    assert size.parameters["transformer"] == sum(parameter.numel() for parameter in pipeline().transformer.parameters())
