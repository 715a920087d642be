"""The generator engine: what it refuses, how it counts, adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from services.generator.engine import GeneratorEngine, GeneratorSettings, load_generator
from services.generator.tasks import HANDLERS
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.lora.adapter import Adapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.tasks import Task
from sfumato.types import GenerateRequest, Region
from tests.unit.diffusion import tiny

GOOD = GenerateRequest("a red house", 7, 32, 32, 2)


@pytest.fixture(scope="module")
def engine() -> GeneratorEngine:
    return GeneratorEngine(tiny.flux())


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": " \n"}),
        ("prompt", {"prompt": "moon " * 12}),
        ("width", {"width": 30}),
        ("width", {"width": 64}),
        ("height", {"height": 0}),
        ("steps", {"steps": 0}),
        ("steps", {"steps": 201}),
        ("guidance_scale", {"guidance_scale": 3.5}),
        ("guidance_scale", {"guidance_scale": float("nan")}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**63}),
        ("regional_steps", {"regional_steps": -0.1}),
        ("regional_steps", {"regional_steps": 1.01}),
        ("regional_steps", {"regional_steps": float("nan")}),
        ("soft_edges", {"soft_edges": -1.0}),
        ("soft_edges", {"soft_edges": 32.5}),
        ("soft_edges", {"soft_edges": float("inf")}),
        ("regions[1].box", {"regions": (Region("moon", (0, 0, 4, 4)), Region("moon", (0, 0, 33, 4)))}),
        ("regions[0].box", {"regions": (Region("moon", (4, 0, 4, 4)),)}),
        ("regions[0].box", {"regions": (Region("moon", (-1, 0, 4, 4)),)}),
        ("regions[0].prompt", {"regions": (Region(" ", (0, 0, 4, 4)),)}),
        ("regions[0].prompt", {"regions": (Region("moon " * 12, (0, 0, 4, 4)),)}),
        ("regions", {"regions": (Region("moon", (0, 0, 4, 4)),) * 33}),
    ],
)
def test_unusable_requests_are_refused_by_field_before_painting(engine: GeneratorEngine, field: str, change: dict) -> None:
    steps: list[int] = []
    with pytest.raises(InvalidInput) as caught:
        engine.generate([GOOD, replace(GOOD, **change)], lambda done, total: steps.append(done))
    assert caught.value.field == field
    assert steps == []


def test_the_longest_prompt_fits(engine: GeneratorEngine) -> None:
    assert engine.generate([replace(GOOD, prompt="moon " * 11)])[0].image.shape == (32, 32, 3)


def test_pictures_are_bytes_in_order_and_repeatable(engine: GeneratorEngine) -> None:
    wanted = [GOOD, replace(GOOD, seed=8, steps=3), replace(GOOD, seed=9)]
    first, again = engine.generate(wanted), engine.generate(wanted)
    assert [picture.seed for picture in first] == [7, 8, 9]
    for a, b in zip(first, again, strict=True):
        assert a.image.dtype == np.uint8
        assert torch.equal(a.latents, b.latents)
        assert np.array_equal(a.image, b.image)


def test_progress_counts_all_steps_of_all_batches(engine: GeneratorEngine) -> None:
    seen: list[tuple[int, int]] = []
    engine.generate([GOOD, replace(GOOD, steps=3), replace(GOOD, seed=8)], lambda done, total: seen.append((done, total)))
    assert seen == [(step, 5) for step in range(1, 6)]


def test_no_requests_no_pictures(engine: GeneratorEngine) -> None:
    assert engine.generate([]) == []


def test_an_adapter_is_fused_from_pristine_weights_and_taken_back_bit_for_bit(engine: GeneratorEngine) -> None:
    name = "transformer_blocks.0.attn.to_q"
    a, b = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), torch.ones(32, 3)
    plain = engine.generate([GOOD])[0]
    for strength in (0.3, 0.7, 0.5):
        engine.set_adapter(Adapter({name: (a, b)}), strength)
    changed = engine.generate([GOOD])[0]
    assert not torch.equal(changed.latents, plain.latents)
    once = GeneratorEngine(tiny.flux(), GeneratorSettings(max_batch=4))
    once.set_adapter(Adapter({name: (a, b)}), 0.5)
    assert torch.equal(once.generate([GOOD])[0].latents, changed.latents)
    engine.set_adapter(None)
    assert torch.equal(engine.generate([GOOD])[0].latents, plain.latents)


def test_a_foreign_adapter_is_refused_and_changes_nothing(engine: GeneratorEngine) -> None:
    plain = engine.generate([GOOD])[0]
    fits = (torch.ones(1, 32), torch.ones(32, 1))
    for factors in ({"nowhere": fits}, {"transformer_blocks.0.attn.to_q": fits, "proj_out": fits}):
        with pytest.raises(InvalidInput):
            engine.set_adapter(Adapter(factors))
    with pytest.raises(InvalidInput):
        engine.set_adapter(Adapter({"transformer_blocks.0.attn.to_q": (torch.ones(1, 32), torch.ones(32, 1))}), float("inf"))
    assert torch.equal(engine.generate([GOOD])[0].latents, plain.latents)


def test_a_saved_pipeline_in_half_precision_loads_in_float32_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.flux().to(torch.float16).save_pretrained(tmp_path)
    capfd.readouterr()
    engine = load_generator(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert engine.pipeline.transformer.dtype == torch.float32
    assert engine.generate([GOOD])[0].latents.dtype == torch.float32


def test_missing_and_broken_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights):
        load_generator(tmp_path)
    tiny.flux().save_pretrained(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BrokenWeights):
        load_generator(tmp_path)
    weights.unlink()
    with pytest.raises(MissingWeights):
        load_generator(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(BrokenWeights):
        load_generator(tmp_path)


def test_a_memory_budget_changes_rounding_only(engine: GeneratorEngine) -> None:
    wanted = [replace(GOOD, seed=seed, regions=(Region("glowing moon", (0, 0, 20, 9)),) * seed) for seed in range(3)]
    short = GeneratorEngine(engine.pipeline, GeneratorSettings(memory=1))
    for one, other in zip(engine.generate(wanted), short.generate(wanted), strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)


def test_a_task_paints_what_the_engine_paints_and_may_leave_the_new_settings_out(engine: GeneratorEngine, tmp_path: Path) -> None:
    engine.pipeline.save_pretrained(tmp_path / "model")
    loaded = load_generator(tmp_path / "model")  # weights read from a file lie otherwise in memory than made ones: other last digits
    store = ArtifactStore(str(tmp_path / "store"))
    items = ({"prompt": "a red house", "seed": 7, "regions": [{"prompt": "glowing moon", "box": [0, 0, 20, 9]}]},)
    params = {"width": 32, "height": 32, "steps": 2, "guidance": 1.0, "adapter": ""}
    wanted = replace(GOOD, regions=(Region("glowing moon", (0, 0, 20, 9)),))
    named = {"model": model_version(tmp_path / "model"), "model_reference": str(tmp_path / "model")}
    for more in ({}, {"regional_steps": 0.5, "soft_edges": 3.0}):
        task = Task(stage="g", kind="generator.paint", items=items, params=params | more, **named)
        output = HANDLERS[task.kind](task, store)
        picture = loaded.generate([replace(wanted, **more)])[0]
        assert output.values == [None]
        assert output.files["0.png"] == encode_png(picture.image)
        assert torch.equal(load(output.files["0.safetensors"])["latents"], picture.latents)
