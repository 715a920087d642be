"""The estimate against the recipe itself, gone through with made-up answers, and against counted tensors."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch._subclasses import FakeTensorMode

from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.work import FORWARD, KEPT, STEP, TYPICAL_REGIONS, StageWork, Work, count_work
from services.generator.engine import GeneratorSettings
from sfumato.diffusion.budget import PeakBytes
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.sizes import KNOWN, Blocks, measured
from sfumato.vista.weights import ROOT
from tests.unit.orchestrator.rehearsal import plan_of, rehearse, write_spec

SPECS = {
    "plain": {},
    "three iterations with all there is": {
        "ground": "{strategy: three-turn, profile: qwen2-vl}",
        "fuse": "{alpha: [0.5, 1.0]}",
        "tune": "{file: tune.txt, count: 4, seed: 500}",
        "evaluate": "{file: heldout.txt, count: 6, seed: 900, ceiling: ceiling.txt}",
        "train": "{pairs: 7, together: 3, rank: auto}",
        "compare": "true",
        "filter": "{review: vlm}",
        "paint": "{steps: 10, regional_steps: 0.5}",
    },
    "joint training": {"compare": "joint", "tune": "{file: tune.txt, count: 4, seed: 500}", "stop": "{max_iterations: 2, min_pairs: 1}"},
    "no refinement": {"ground": "{refine: false}", "stop": "{max_iterations: 1, min_pairs: 1}"},
}



def _written(folder: Path, **sections: str) -> ArtAugSpec:
    return plan_of(write_spec(folder, **sections)).spec


def _counted(spec: ArtAugSpec, *, rows: int = 1, regions: int = TYPICAL_REGIONS) -> list[StageWork]:
    return count_work(RECIPE.stages, RECIPE.costs(spec).counts(rows, regions))


@pytest.mark.parametrize("sections", SPECS.values(), ids=SPECS.keys())
def test_tasks_are_those_that_the_recipe_sends(tmp_path: Path, sections: dict[str, str]) -> None:
    spec = _written(tmp_path, **sections)
    state, tasks = rehearse(plan_of(tmp_path), ArtifactStore(str(tmp_path / "artifacts")))
    assert len(state.fused) == spec.stop.max_iterations
    sent = Counter(task.stage for task in tasks)
    counted: Counter[str] = Counter()
    for work in _counted(spec):
        counted[work.stage] += work.total(spec.stop.max_iterations).tasks
    # Bounds, not counts: "choose_alpha" rates the standing model again in the same tasks, and "conclude" may be a "stack" of before.
    for stage in ("choose_alpha", "conclude"):
        assert counted.pop(stage, 0) >= sent.pop(stage, 0)
    assert sent == +counted


def test_forwards_are_those_of_the_painted_pictures(tmp_path: Path) -> None:
    spec = _written(tmp_path, **SPECS["three iterations with all there is"])
    forwards: Counter[str] = Counter()
    for task in rehearse(plan_of(tmp_path), ArtifactStore(str(tmp_path / "artifacts")))[1]:
        if task.kind == "generator.paint":
            for item in task.items:
                forwards[task.stage] += 10 + 5 * len(item["regions"])  # advice acts in the first half of the steps
    counted: Counter[str] = Counter()
    for work in _counted(spec, regions=2):
        if work.service == "generator":
            counted[work.stage] += work.total(spec.stop.max_iterations).forwards
    assert counted == forwards


def test_guidance_free_of_a_classifier_shares_its_unconditional_branch(tmp_path: Path) -> None:
    spec = _written(tmp_path, paint="{steps: 30}")
    plain, advised = (next(work for work in _counted(spec, rows=2) if work.stage == stage) for stage in ("generate", "regenerate"))
    assert plain.each.forwards == 10 * 30 * 2
    assert advised.each.forwards == 10 * 30 * (2 + 5)


def test_the_papers_regeneration_costs_n_plus_one(tmp_path: Path) -> None:
    spec = _written(tmp_path, paint="{steps: 30}")
    generate, regenerate = (next(work for work in _counted(spec) if work.stage == stage) for stage in ("generate", "regenerate"))
    assert (generate.each + regenerate.each).forwards == 10 * 210  # n = 5 at 30 steps: 210 for a candidate


def test_training_counts_a_backward_as_two_forwards_and_auto_as_every_rank(tmp_path: Path) -> None:
    lines = "steps_before: 400, steps_after: 400, batch: 1, pairs: 3, together: 1"
    for rank, tries in ((8, 1), ("auto", 3)):
        spec = _written(tmp_path, train=f"{{{lines}, rank: {rank}}}")
        train = next(work for work in _counted(spec) if work.stage == "train")
        assert train.each == Work(tasks=3, forwards=3 * 800 * STEP * tries)


def test_a_person_is_asked_about_every_pair_at_most(tmp_path: Path) -> None:
    spec = _written(tmp_path, filter="{review: vlm+human}")
    by_stage = {work.stage: work for work in _counted(spec)}
    assert (by_stage["vlm_review"].each.questions, by_stage["human_review"].each.tasks, by_stage["human_review"].service) == (20, 10, "you")


def test_a_blocks_activations_are_what_its_tensors_hold() -> None:
    """FLUX.1's blocks as shapes only: peak bytes of a forward of one row. At FLUX.1-dev's own shape the two differ by 1 %."""
    with FakeTensorMode(), torch.no_grad():
        model = FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, num_attention_heads=4, joint_attention_dim=64, pooled_projection_dim=32
        )
        inputs = {
            "hidden_states": torch.empty(1, 1024, 16),
            "encoder_hidden_states": torch.empty(1, 128, 64),
            "pooled_projections": torch.empty(1, 32),
            "timestep": torch.empty(1),
            "img_ids": torch.zeros(1024, 3),
            "txt_ids": torch.zeros(128, 3),
        }
        with PeakBytes() as live:
            model(**inputs)
    assert 4 * KEPT * Blocks(2, 512, 16, 128).tokens(512, 512) * 512 == pytest.approx(live.peak, rel=0.15)


def test_a_forward_is_as_wide_as_the_generators() -> None:
    assert GeneratorSettings().max_batch == FORWARD


def test_memory_is_weights_and_work(tmp_path: Path) -> None:
    spec = _written(tmp_path, paint="{width: 1024, height: 1024}", train="{rank: auto, batch: 1, together: 2}", batch="2")
    flux, viewer = KNOWN["black-forest-labs/FLUX.1-dev"], KNOWN["Qwen/Qwen2-VL-72B-Instruct"]
    models = {"generator": flux, "understanding": viewer, "clip": KNOWN["openai/clip-vit-large-patch14"]}
    half = {row.service: row for row in RECIPE.costs(spec).memory(models, precision=2, rows=4, context=16384, together=8)}
    single = {row.service: row for row in RECIPE.costs(spec).memory(models, precision=4, rows=4, context=16384, together=8)}
    assert half["generator"].weights == 2 * flux.total
    assert half["grounding"].work == 2 * 80 * 8 * 128 * 2 * 16384 * 8  # keys and values, layers, heads, width of a head, two bytes
    assert half["scoring"] == single["scoring"]
    assert single["trainer"].weights == 2 * (half["trainer"].weights or 0)
    # Two pairs, each 57 blocks of 4608 tokens, and the adapters; the published recipe's one pair needs some 27 GB beside the weights.
    assert 54e9 < (half["trainer"].work or 0) < 64e9
    unknown = RECIPE.costs(spec).memory({**models, "generator": None, "mps": None}, precision=2, rows=4, context=1, together=1)
    assert [row.total is None for row in unknown] == [True, False, True, True]


def test_a_saved_model_is_counted_from_its_headers() -> None:
    from safetensors.torch import load_file

    size = measured(ROOT / "generator")
    for part, count in size.parameters.items():
        file = next((ROOT / "generator" / part).glob("*.safetensors"))
        assert count == sum(tensor.numel() for tensor in load_file(file).values())
    assert size.blocks == (Blocks(6, 128, 8, 512),)
    viewer = measured(ROOT / "understanding")
    assert viewer.cache is not None and viewer.cache.per_token == 2 * 4 * 1 * 32
