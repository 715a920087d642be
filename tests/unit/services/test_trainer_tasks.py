"""The trainer's tasks on a saved model and a real store: earlier iterations come first, files load where they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from services.trainer.tasks import HANDLERS
from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter, combine, delta
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import decode_adapter, encode_adapter
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.tasks import Output, Task
from tests.unit.diffusion import tiny

SETTINGS: dict[str, Any] = {"rank": 2, "batch": 2, "steps_before": 3, "steps_after": 3, "learning_rate": 5e-3, "width": 32, "height": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.flux().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


def perform(store: ArtifactStore, model: str, kind: str, items: list[Any], params: dict[str, Any]) -> Output:
    version = model_version(Path(model))
    task = Task(stage="any", kind=kind, items=tuple(items), params=params, model=version, model_reference=model)
    return HANDLERS[kind](task, store)


def item(store: ArtifactStore, seed: int) -> dict[str, Any]:
    before, after = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(seed)).unbind()
    digests = [store.put(save({"latents": latents.contiguous()})) for latents in (before, after)]
    return {"prompt": "a red house", "seed": seed, "before": digests[0], "after": digests[1]}


def random_adapter(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, out, inside in (("transformer_blocks.0.attn.to_q", 32, 32), ("single_transformer_blocks.1.proj_mlp", 128, 32)):
        factors[name] = (torch.randn(3, inside, generator=generator), torch.randn(out, 3, generator=generator))
    return Adapter(factors)


def test_training_goes_on_from_the_adapter_of_earlier_iterations_and_leaves_no_trace(store: ArtifactStore, model: str) -> None:
    theta = store.put(encode_adapter(random_adapter(0)))
    work = item(store, 1)
    base, tuned, again = (perform(store, model, "trainer.train", [work], SETTINGS | {"adapter": name}) for name in ("", theta, ""))
    assert tuned.values[0]["losses"] != base.values[0]["losses"]
    assert (again.values, again.files) == (base.values, base.files)
    restarted = perform(store, model, "trainer.train", [work], SETTINGS | {"adapter": theta})
    assert (restarted.values, restarted.files) == (tuned.values, tuned.files)
    assert set(base.files) == {"0.safetensors"}
    assert base.values[0]["diverged"] == ""
    assert base.values[0]["rank"] == 2


def test_a_base_model_in_half_precision_is_trained_on_in_single_precision(store: ArtifactStore, model: str) -> None:
    work = item(store, 1)
    half, single = (
        perform(store, model, "trainer.train", [work], SETTINGS | {"adapter": "", "precision": precision})
        for precision in ("bfloat16", "float32")
    )
    first = [output.values[0]["losses"][0] for output in (half, single)]  # the later ones see what rounding does to the training
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert first[0] != first[1]
    (a, b), *_ = decode_adapter(half.files["0.safetensors"]).factors.values()
    assert a.dtype == b.dtype == torch.float32


def test_a_pair_that_diverges_has_a_reason_and_no_file(store: ArtifactStore, model: str) -> None:
    wild = item(store, 2) | {"before": store.put(save({"latents": torch.full((16, 16), 1e30)}))}
    output = perform(store, model, "trainer.train", [wild, item(store, 3)], SETTINGS | {"adapter": ""})
    assert "seed 2" in output.values[0]["diverged"]
    assert output.values[1]["diverged"] == ""
    assert set(output.files) == {"1.safetensors"}


def test_the_iterations_become_one_file_each_at_its_own_weight(store: ArtifactStore, model: str) -> None:
    earlier, latest = random_adapter(1), random_adapter(2)
    digests = [store.put(encode_adapter(adapter)) for adapter in (earlier, latest)]
    output = perform(store, model, "trainer.fuse", digests, {"alphas": [1.0, 2.0]})
    assert 0 <= output.values["difference"] < 1e-4
    stacked, wanted = decode_adapter(output.files["adapter.safetensors"]), combine([earlier, latest], [1.0, 2.0])
    for name in wanted.factors:
        torch.testing.assert_close(delta(stacked, name), delta(wanted, name))
    with pytest.raises(InvalidInput, match="alphas"):
        perform(store, model, "trainer.fuse", digests, {"alphas": [2.0]})


def test_the_mean_is_exact_or_of_the_rank_that_was_asked_for(store: ArtifactStore, model: str) -> None:
    digests = [store.put(encode_adapter(random_adapter(seed))) for seed in range(3)]
    exact = perform(store, model, "trainer.average", digests, {"rank": None})
    small = perform(store, model, "trainer.average", digests, {"rank": 4})
    assert (exact.values["rank"], exact.values["error"]) == (9, 0.0)
    assert small.values["rank"] == 4
    assert 0 < small.values["error"] < 1
