"""Every family against the paper's formula written out as a loop, on small pipelines of the real classes in float64."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from diffusers.hooks import HookRegistry
from torch import nn

from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import Family, family_of
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.diffusion.families.sd import SDFamily
from sfumato.diffusion.families.sd3 import SD3Family
from sfumato.diffusion.families.sdxl import SDXLFamily
from sfumato.diffusion.regional import HOOK, Branches, plan_branches, regional_average
from sfumato.diffusion.sampling import paint
from sfumato.errors import InvalidInput
from sfumato.types import GenerateRequest
from tests.unit.diffusion import tiny
from tests.unit.diffusion.brute import KINDS, PROMPT, Kind, layouts, loop, sd3_prediction

SIZES = [(32, 32), (40, 24)]  # the latter: 10x6 cells, 5x3 patches


def freed(family: Any) -> Family:
    """Without the rule that holds small models to one size."""
    family.limits = replace(family.limits, min_size=8, max_size=64)
    return family


class Subject:
    """A family under test in single and in double precision."""

    def __init__(self, name: str) -> None:
        self.kind: Kind = KINDS[name]
        self.single = freed(family_of(self.kind.make()))
        self.double = freed(family_of(self.kind.make().to(torch.float64)))


@pytest.fixture(scope="module", params=KINDS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


def wishes(size: tuple[int, int], guidance: float, steps: int = 3) -> list[GenerateRequest]:
    width, height = size
    every = layouts(width, height).values()
    return [GenerateRequest(PROMPT, seed, width, height, steps, guidance, regions) for seed, regions in enumerate(every)]


def plain(family: Family, wanted: GenerateRequest, output_type: str = "latent") -> Any:
    """The pipeline itself, called as its user would."""
    pipeline: Any = family.pipeline
    short = {} if isinstance(family, SDFamily | SDXLFamily) else {"max_sequence_length": tiny.TEXT}
    if isinstance(family, SD3Family) and pipeline.text_encoder_3 is None:
        short = {}
    return pipeline(
        wanted.prompt, height=wanted.height, width=wanted.width, num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale,
        generator=torch.Generator().manual_seed(wanted.seed), output_type=output_type, return_dict=False, **short,
    )[0][0]  # fmt: skip


def guidances(kind: Kind) -> list[float]:
    return sorted({1.0, kind.guidance})


@pytest.mark.parametrize("size", SIZES)
def test_without_regions_the_picture_is_the_plain_pipelines_bit_for_bit(subject: Subject, size: tuple[int, int]) -> None:
    family = subject.single
    for guidance in guidances(subject.kind):
        wanted = GenerateRequest(PROMPT, 7, *size, 2, guidance)
        picture = paint(family, [wanted], RowBudget(family, 8))[0]
        assert torch.equal(picture.latents, plain(family, wanted))
        assert np.array_equal(picture.image, np.asarray(plain(family, wanted, "pil")))


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_of_every_layout_equals_the_papers_loop(subject: Subject, size: tuple[int, int]) -> None:
    family, kind = subject.double, subject.kind
    for guidance in guidances(kind):
        wanted = wishes(size, guidance)
        for picture, one in zip(paint(family, wanted, RowBudget(family, 64)), wanted, strict=True):
            expected = loop(kind, family.pipeline, one)
            torch.testing.assert_close(picture.latents, expected, rtol=kind.tolerance, atol=kind.tolerance)


@pytest.mark.parametrize("most", [1, 3])
def test_chunks_change_rounding_only(subject: Subject, most: int) -> None:
    family, kind = subject.double, subject.kind
    wanted = wishes(SIZES[0], kind.guidance, steps=2)[:4]
    whole, chunked = paint(family, wanted, RowBudget(family, 64)), paint(family, wanted, RowBudget(family, most))
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=kind.tolerance, atol=kind.tolerance)


def test_no_forward_has_more_rows_than_the_budget(subject: Subject) -> None:
    family = subject.single
    seen: list[int] = []
    inner = next(module for module in family.denoiser.modules() if isinstance(module, nn.Linear))  # sees one row a sample: time or text
    handle = inner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    try:
        paint(family, wishes(SIZES[0], subject.kind.guidance, steps=1), RowBudget(family, 3))
    finally:
        handle.remove()
    assert max(seen) == 3


def test_a_full_mask_of_the_same_prompt_changes_rounding_only(subject: Subject) -> None:
    family, kind = subject.double, subject.kind
    wanted = GenerateRequest(PROMPT, 5, 32, 32, 2, kind.guidance)
    shape = family.mask((0, 0, 32, 32), 32, 32).shape
    branches = Branches((0,), (1.0,), family.encode([PROMPT]), torch.ones(1, *shape), torch.ones(1, *shape))
    with regional_average(family, branches, 1, 2, 8):
        latents = family.paint([wanted])[0]
    torch.testing.assert_close(latents, plain(family, wanted), rtol=kind.tolerance, atol=kind.tolerance)


def test_advice_ends_and_edges_soften_for_each_sample_by_itself(subject: Subject) -> None:
    family, kind = subject.double, subject.kind
    regions = layouts(32, 32)["overlapping"]
    base = GenerateRequest(PROMPT, 3, 32, 32, 4, kind.guidance, regions)
    wanted = [replace(base, regional_steps=share) for share in (0.0, 0.3, 0.5, 1.0)] + [replace(base, soft_edges=1e-9)]
    latents = [picture.latents for picture in paint(family, wanted, RowBudget(family, 64))]
    for found, one in zip(latents, wanted, strict=True):
        torch.testing.assert_close(found, loop(kind, family.pipeline, one), rtol=max(kind.tolerance, 1e-7), atol=max(kind.tolerance, 1e-7))
    assert torch.equal(latents[1], latents[2])  # 2 of 4 steps
    assert all((one - latents[3]).abs().max() > 1e-4 for one in (latents[0], latents[1], latents[4]))


def test_the_pipeline_is_left_as_it_was(subject: Subject) -> None:
    family = subject.single
    wanted = wishes(SIZES[0], subject.kind.guidance, steps=1)
    before = plain(family, wanted[0])
    paint(family, wanted, RowBudget(family, 2))
    assert HOOK not in HookRegistry.check_if_exists_or_initialize(family.denoiser).hooks
    assert torch.equal(plain(family, wanted[0]), before)


def test_predict_is_the_denoisers_answer_with_gradient(subject: Subject) -> None:
    family, kind = subject.double, subject.kind
    cells = torch.randn(2, 4, 10, 6, generator=torch.Generator().manual_seed(1)).double()
    latents = type(family.pipeline)._pack_latents(cells, 2, 4, 10, 6) if isinstance(family, FluxFamily) else cells
    levels = family.parameterization.levels(torch.tensor([0.3, 0.8]))
    noised = latents.clone().requires_grad_()
    found = family.predict(noised, levels, family.encode([PROMPT, "a red house"]), 24, 40, 1.0)
    for row, prompt in enumerate([PROMPT, "a red house"]):
        time = levels[row] if levels.dtype == torch.int64 else levels[row] * 1000
        expected = kind.predict(family.pipeline, cells[row : row + 1], time, prompt)
        if isinstance(family, FluxFamily):
            expected = type(family.pipeline)._pack_latents(expected, *expected.shape)
        torch.testing.assert_close(found[row], expected[0], rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    assert noised.grad is not None
    assert bool(noised.grad.abs().sum() > 0)


@torch.no_grad()
def test_encoded_pictures_are_what_decode_takes(subject: Subject) -> None:
    family = subject.single
    vae = getattr(family.pipeline, "vae")  # noqa: B009 (declared by each pipeline by itself)
    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    latents = family.encode_pictures([picture, picture])
    assert latents.shape == (2, *family.mask((0, 0, 40, 24), 40, 24).shape)
    pixels = torch.tensor(picture / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0].permute(1, 2, 0)
    expected = ((again / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert np.abs(family.decode(latents, 40, 24)[1].astype(float) - expected).max() <= 1


def test_lora_keys_bind_in_diffusers(subject: Subject) -> None:
    family = family_of(subject.kind.make())
    pipeline: Any = family.pipeline
    chosen = {n: m for n, m in family.denoiser.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(family.lora_targets, n)}
    assert any(name.endswith("to_q") for name in chosen)
    tensors = {}
    for name, module in chosen.items():
        tensors[f"{family.denoiser_part}.{name}.lora_A.weight"] = torch.ones(1, module.in_features)
        tensors[f"{family.denoiser_part}.{name}.lora_B.weight"] = torch.ones(module.out_features, 1)
    pipeline.load_lora_weights(tensors, adapter_name="test")
    assert {name for name, module in family.denoiser.named_modules() if "test" in getattr(module, "lora_A", {})} == set(chosen)


def test_skip_layer_guidance_is_not_mixed() -> None:
    pipeline = tiny.sd3().to(torch.float64)
    family = family_of(pipeline)
    wanted = GenerateRequest(PROMPT, 1, 32, 32, 3, 4.0, layouts(32, 32)["apart"])
    call: Any = pipeline
    with regional_average(family, plan_branches([wanted], family), 1, 2, 8):
        found = call(
            [PROMPT], width=32, height=32, num_inference_steps=3, guidance_scale=4.0, generator=torch.Generator().manual_seed(1),
            max_sequence_length=tiny.TEXT, output_type="latent", return_dict=False, skip_guidance_layers=[0],
            skip_layer_guidance_start=-1.0, skip_layer_guidance_stop=2.0,
        )[0][0]  # fmt: skip

    def with_skip(pipe: Any, cells: torch.Tensor, t: torch.Tensor, prompt: str | None) -> torch.Tensor:
        answer = sd3_prediction(pipe, cells, t, prompt)
        if prompt is not None:
            return answer
        # u + g (m - u) + 2.8 (m - s) in the loop's form u' + g (m - u'):
        weak = sd3_prediction(pipe, cells, t, PROMPT, skip_layers=[0])
        return ((1 - 4.0) * answer - 2.8 * weak) / (1 - 4.0 - 2.8)

    expected = loop(Kind(tiny.sd3, with_skip), pipeline, replace(wanted, guidance_scale=4.0 + 2.8))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_progress_is_told_in_steps_asked_for_though_the_scheduler_takes_more() -> None:
    family = family_of(tiny.sd(scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, **tiny.NOISE)))
    wanted = [GenerateRequest(PROMPT, seed, 32, 32, 6, 4.0, layouts(32, 32)["apart"]) for seed in range(2)]
    seen: list[tuple[int, int]] = []
    paint(family, wanted, RowBudget(family, 2), lambda done, total: seen.append((done, total)))
    assert seen == [(step, 12) for step in range(1, 13)]


def test_distilled_guidance_reaches_every_branch_and_the_trainer() -> None:
    family = family_of(tiny.sd(time_cond_proj_dim=8))
    assert family.rows_per_sample(7.5) == 1
    wanted = [GenerateRequest(PROMPT, 1, 32, 32, 2, scale, layouts(32, 32)["apart"]) for scale in (7.5, 1.0)]
    strong, weak = paint(family, wanted, RowBudget(family, 2))
    assert (strong.latents - weak.latents).abs().max() > 1e-4
    conditions, noised, level = family.encode([PROMPT]), torch.ones(1, 4, 8, 8), torch.tensor([500])
    one, other = (family.predict(noised, level, conditions, 32, 32, scale) for scale in (7.5, 1.0))
    assert not torch.equal(one, other)


def test_prompts_longer_than_the_model_reads_are_counted() -> None:
    for make in (tiny.flux, tiny.sd, tiny.sdxl, tiny.sd3, lambda: tiny.sd3(with_t5=False)):
        family = family_of(make())
        assert family.limits.prompt_tokens == tiny.TEXT
        assert family.count_tokens("moon " * 11) == tiny.TEXT
        with pytest.raises(InvalidInput, match="13 tokens"):
            paint(family, [GenerateRequest("moon " * 12, 1, 32, 32, 1)], RowBudget(family, 1))


def test_a_pipeline_of_no_family_is_refused_by_name() -> None:
    stranger: Any = object()
    with pytest.raises(InvalidInput, match="object is of no supported family.*StableDiffusionXLPipeline"):
        family_of(stranger)
