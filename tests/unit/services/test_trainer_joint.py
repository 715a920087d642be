"""Joint training: against an independent loop through PEFT, and the same bytes for every number of processes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor

from services.trainer.checkpoint import FitStep
from services.trainer.group import Alone, raise_together, summed, workers
from services.trainer.objectives.joint import DRAWS, JointPicture, JointSettings, JointTraining, check
from services.trainer.objectives.objective import TrainedAdapter
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.errors import BrokenWeights, Diverged, InvalidInput, SfumatoError
from sfumato.lora.adapter import delta
from sfumato.runtime.models.adapters import encode_adapter
from tests.unit.diffusion import tiny

SHORT = JointSettings(rank=2, learning_rate=5e-3, steps=5, pictures=4, together=2, seed=7)
PROMPTS = ("a red house", "a lake by night", "two birds")


class Threads:
    """Groups of threads that meet at a barrier: what processes do, without their start."""

    def __init__(self, size: int) -> None:
        self._barrier, self._said = threading.Barrier(size, timeout=60), [None] * size
        self.members = [Member(self, rank, size) for rank in range(size)]

    def exchange(self, rank: int, text: Any) -> list[Any]:
        self._said[rank] = text
        self._barrier.wait()
        heard = list(self._said)
        self._barrier.wait()
        return heard

    def do(self, work: Callable[[Member], Any]) -> list[Any]:
        """What it returns in every thread, or the exception it raised."""

        def one(member: Member) -> Any:
            try:
                return work(member)
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(self.members)) as pool:
            return list(pool.map(one, self.members))


class Member:
    """One of them, as a `services.trainer.group.Group`."""

    def __init__(self, threads: Threads, rank: int, size: int) -> None:
        self._threads, self.rank, self.size = threads, rank, size

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return self._threads.exchange(self.rank, tensor)

    def broadcast(self, data: bytes) -> bytes:
        return self._threads.exchange(self.rank, data)[0]

    def gather_text(self, text: str) -> list[str]:
        return self._threads.exchange(self.rank, text)


class Memory:
    """A checkpoint that is due after every step."""

    interval = 0.0

    def __init__(self) -> None:
        self.saved: list[bytes] = []

    def load(self) -> bytes | None:
        return self.saved[-1] if self.saved else None

    def save(self, data: bytes) -> None:
        self.saved.append(data)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return tiny.flux()


def pictures() -> list[JointPicture]:
    generator = torch.Generator().manual_seed(5)
    return [JointPicture(prompt, torch.randn(16, 16, generator=generator)) for prompt in PROMPTS]


def training(pipeline: FluxPipeline, given: JointSettings = SHORT) -> JointTraining:
    return JointTraining(pipeline, pictures(), given, 32, 32)


def bytes_of(trained: TrainedAdapter) -> tuple[bytes, tuple[float, ...]]:
    return encode_adapter(trained.adapter), trained.losses


def drawn(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(SHORT.seed * DRAWS + number)


def peft_reference(pipeline: FluxPipeline) -> tuple[dict[str, Tensor], list[float]]:
    """The whole step in one forward, through a PEFT adapter on a copy of the transformer, with the documented draws."""
    model, many = copy.deepcopy(pipeline.transformer), pictures()
    config = LoraConfig(r=SHORT.rank, lora_alpha=SHORT.rank, target_modules=FluxFamily.lora_targets)
    model.add_adapter(config, "phi")
    start, learn = torch.Generator().manual_seed(SHORT.seed), []
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(".phi." in key)
        if "lora_A.phi." in key:
            parameter.data = torch.randn(parameter.shape, generator=start) / SHORT.rank
        if ".phi." in key:
            learn.append(parameter)
    optimizer = torch.optim.AdamW(learn, lr=SHORT.learning_rate, weight_decay=0.0)
    positions = torch.tensor([[0.0, y, x] for y in range(4) for x in range(4)])
    orders = [index for epoch in range(9) for index in torch.randperm(len(many), generator=drawn(DRAWS // 2 + epoch)).tolist()]
    losses = []
    for step in range(SHORT.steps):
        own = drawn(step * (SHORT.pictures + 1))
        quantiles = (torch.randperm(SHORT.pictures, generator=own) + torch.rand(SHORT.pictures, generator=own)) / SHORT.pictures
        t = torch.distributions.Normal(0.0, 1.0).icdf(quantiles.double()).float().sigmoid()
        chosen = [many[index] for index in orders[step * SHORT.pictures : (step + 1) * SHORT.pictures]]
        clean = torch.stack([picture.latents for picture in chosen])
        numbers = [step * (SHORT.pictures + 1) + 1 + slot for slot in range(SHORT.pictures)]
        noise = torch.stack([torch.randn(16, 16, generator=drawn(number)) for number in numbers])
        text = FluxFamily(pipeline).encode([picture.prompt for picture in chosen])
        noised = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        velocity = model(hidden_states=noised, timestep=t, img_ids=positions, txt_ids=torch.zeros(12, 3), return_dict=False, **text)[0]
        loss = torch.nn.functional.mse_loss(velocity, noise - clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    factors = {key: value.detach() for key, value in model.named_parameters() if ".phi." in key}
    products = {
        key.partition(".lora_A.")[0]: factors[key.replace("lora_A", "lora_B")] @ factors[key] for key in factors if ".lora_A." in key
    }
    return products, losses


def test_it_equals_one_adapter_trained_with_peft_on_the_whole_step_at_once(pipeline: FluxPipeline) -> None:
    trained = training(pipeline).run(Alone())
    products, losses = peft_reference(pipeline)
    assert trained.losses == pytest.approx(losses, rel=1e-4)
    assert trained.adapter.ranks.keys() == products.keys()
    scale = max(float(product.abs().max()) for product in products.values())
    for name, product in products.items():
        torch.testing.assert_close(delta(trained.adapter, name), product, rtol=1e-3, atol=1e-3 * scale)


@given(size=st.integers(1, 6), count=st.sampled_from((1, 2, 3, 4, 6, 8, 12)), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_sum_is_the_same_to_the_last_bit_for_every_number_of_processes(size: int, count: int, seed: int) -> None:
    parts = torch.randn(count, 33, generator=torch.Generator().manual_seed(seed)) * 10.0 ** torch.arange(-3, 3).repeat(9)[:33]
    alone = summed(Alone(), lambda part: parts[part], count, lambda: torch.zeros(33))
    torch.testing.assert_close(alone, parts.double().sum(0).float(), rtol=1e-5, atol=1e-5 * float(parts.abs().max()))
    asked: list[int] = []

    def part(number: int) -> Tensor:
        asked.append(number)
        return parts[number]

    for together in Threads(size).do(lambda member: summed(member, part, count, lambda: torch.zeros(33))):
        assert torch.equal(together, alone)
    assert sorted(asked) == list(range(count))  # nothing was computed twice


def test_as_many_share_a_step_as_a_power_of_two_divides_it() -> None:
    assert [workers(size, 8) for size in (1, 2, 3, 4, 7, 8, 16)] == [1, 2, 2, 4, 4, 8, 8]
    assert [workers(4, count) for count in (1, 2, 3, 6, 12)] == [1, 2, 1, 2, 4]


def test_a_training_that_was_interrupted_goes_on_from_its_checkpoint_and_ends_in_the_same_bytes(pipeline: FluxPipeline) -> None:
    whole, kept, steps = training(pipeline).run(Alone()), Memory(), []

    def interrupt(step: FitStep) -> None:
        steps.append(step.done)
        if step.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(pipeline).run(Alone(), keep=kept, on_step=interrupt)
    again = training(pipeline).run(Alone(), kept.load(), kept, lambda step: steps.append(step.done))
    assert steps == [1, 2, 3, 4, 5]
    assert bytes_of(again) == bytes_of(whole)
    with pytest.raises(BrokenWeights):
        training(pipeline).run(Alone(), b"no checkpoint")


def test_it_leaves_the_model_as_it_was(pipeline: FluxPipeline) -> None:
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    flags = [parameter.requires_grad for parameter in pipeline.transformer.parameters()]
    training(pipeline, replace(SHORT, steps=1)).run(Alone())
    assert all(torch.equal(value, before[name]) for name, value in pipeline.transformer.state_dict().items())
    assert [parameter.requires_grad for parameter in pipeline.transformer.parameters()] == flags


def test_a_loss_that_leaves_the_finite_numbers_ends_it(pipeline: FluxPipeline) -> None:
    huge = [JointPicture(picture.prompt, picture.latents * 1e25) for picture in pictures()]
    with pytest.raises(Diverged, match="finite numbers in step 1"):
        JointTraining(pipeline, huge, SHORT, 32, 32).run(Alone())


def test_a_loss_that_stays_far_above_its_start_ends_it() -> None:
    start, above = [1.0, 2.0] * 5, [20.1] * 10
    check([*start, *above[1:]])
    check([*start, *above[1:], 19.9])
    with pytest.raises(Diverged, match="10 times its start for 10 steps"):
        check([*start, *above])


def test_processes_that_come_to_different_adapters_are_an_error(pipeline: FluxPipeline) -> None:
    class Astray(Alone):
        def gather_text(self, text: str) -> list[str]:
            return [text, text[::-1]]

    with pytest.raises(SfumatoError, match="different adapters"):
        training(pipeline, replace(SHORT, steps=1)).run(Astray())


def test_one_failure_is_everybodys() -> None:
    def meet(member: Member) -> None:
        raise_together(member, InvalidInput("together", "does not fit.") if member.rank == 1 else None)

    for error in Threads(3).do(meet):
        assert isinstance(error, InvalidInput) and error.field == "together"
    assert Threads(2).do(lambda member: raise_together(member, None)) == [None, None]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"rank": 0}, "settings"),
        ({"steps": 0}, "settings"),
        ({"together": 3}, "together"),
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"steps": 2**31}, "steps"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(pipeline: FluxPipeline, given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        training(pipeline, replace(SHORT, **given))
    assert refused.value.field == field


def test_pictures_that_cannot_be_trained_on_are_refused_by_name(pipeline: FluxPipeline) -> None:
    good = pictures()
    bad = {
        "pictures": [],
        "pictures[3].latents": [*good, JointPicture("a house", torch.zeros(4, 4))],
        "pictures[1].latents": [good[0], JointPicture("a house", torch.full((16, 16), float("nan")))],
        "pictures[0].prompt": [JointPicture("house " * 400, good[0].latents)],
    }
    for field, several in bad.items():
        with pytest.raises(InvalidInput) as refused:
            JointTraining(pipeline, several, SHORT, 32, 32)
        assert refused.value.field == field
