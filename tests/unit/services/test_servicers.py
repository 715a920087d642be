"""The four services over gRPC: messages reach the engines and come back, on tiny random models of the real classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from services.generator import served as generator_served
from services.generator import tasks as generator_tasks
from services.generator.engine import GeneratorEngine, GeneratorSettings, load_generator
from services.generator.servicer import GeneratorServicer, small
from services.grounding.engine import GroundingEngine
from services.grounding.http_backend import HttpBackend
from services.grounding.profiles import VISTA
from services.grounding.servicer import GroundingServicer
from services.trainer import served as trainer_served
from services.trainer import tasks as trainer_tasks
from services.trainer.engine import train_pairs
from services.trainer.group import Alone
from services.trainer.objectives.joint import JointPicture, JointSettings, JointTraining
from services.trainer.pairs import TrainingPair, TrainSettings
from services.trainer.servicer import TrainerServicer
from sfumato.lora.adapter import Adapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image, encode_png
from sfumato.runtime.models.adapters import decode_adapter, encode_adapter
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service
from sfumato.runtime.tasks import Task
from sfumato.types import GenerateRequest, Region, Start
from sfumato.v1 import common_pb2, generator_pb2, generator_pb2_grpc, grounding_pb2, grounding_pb2_grpc, trainer_pb2, trainer_pb2_grpc
from tests.unit.diffusion import tiny
from tests.unit.scripted_vlm import ScriptedVlm
from tests.unit.services.serving import SECONDS, bomb, served, told

BASE = "b" * 64
PAINTING = generator_pb2.Painting(
    prompt="a red house",
    seeds=[3, 4],
    steps=2,
    regions=[common_pb2.Region(prompt="a lake", box=common_pb2.Box(x2=16, y2=32))],
    regional_steps=0.5,
)
REQUESTS = [GenerateRequest("a red house", seed, 32, 32, 2, 1.0, (Region("a lake", (0, 0, 16, 32)),), 0.5) for seed in PAINTING.seeds]
PICTURE = common_pb2.Image(data=encode_png(np.zeros((64, 64, 3), np.uint8)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))


def painted_by(engine: GeneratorEngine) -> generator_served.ServedGenerator:
    return generator_served.ServedGenerator(lambda: engine, BASE, engine.limits, engine.settings)


@pytest.fixture(scope="module")
def generator(store: ArtifactStore) -> Iterator[generator_pb2_grpc.GeneratorServiceStub]:
    lane = EngineQueue(lambda: painted_by(GeneratorEngine(tiny.flux())))
    register = partial(generator_pb2_grpc.add_GeneratorServiceServicer_to_server, GeneratorServicer(lane, store))
    with served(lambda _: [Service("sfumato.v1.GeneratorService", register, lane)]) as channel:
        yield generator_pb2_grpc.GeneratorServiceStub(channel)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return tiny.flux()


@pytest.fixture(scope="module")
def trainer(store: ArtifactStore, pipeline: FluxPipeline) -> Iterator[trainer_pb2_grpc.TrainerServiceStub]:
    model = trainer_served.TrainedModel(pipeline)
    lane = EngineQueue(lambda: trainer_served.ServedTrainer(lambda: model, BASE))
    register = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(lane, store))
    with served(lambda _: [Service("sfumato.v1.TrainerService", register, lane)]) as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


@pytest.fixture
def grounding(store: ArtifactStore, vlm: ScriptedVlm) -> Iterator[grounding_pb2_grpc.GroundingServiceStub]:
    lane = EngineQueue(lambda: GroundingEngine(HttpBackend(vlm.url, "served"), VISTA))
    register = partial(grounding_pb2_grpc.add_GroundingServiceServicer_to_server, GroundingServicer(lane, store))
    with served(lambda _: [Service("sfumato.v1.GroundingService", register, lane)]) as channel:
        yield grounding_pb2_grpc.GroundingServiceStub(channel)


def random_adapter(seed: int) -> Adapter:
    torch.manual_seed(seed)
    return Adapter({"transformer_blocks.0.attn.to_q": (torch.randn(2, 32), torch.randn(32, 2))})


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return told(caught.value)


def test_pictures_are_the_engines(generator: generator_pb2_grpc.GeneratorServiceStub, store: ArtifactStore) -> None:
    expected = GeneratorEngine(tiny.flux()).generate(REQUESTS)
    inline = generator.Generate(generator_pb2.GenerateRequest(painting=PAINTING), timeout=SECONDS).pictures
    assert [picture.seed for picture in inline] == [3, 4]
    assert [picture.image.data for picture in inline] == [encode_png(picture.image) for picture in expected]
    stored = generator_pb2.GenerateRequest(painting=PAINTING, delivery=common_pb2.DELIVERY_ARTIFACT)
    for picture, painted in zip(generator.Generate(stored, timeout=SECONDS).pictures, expected, strict=True):
        assert np.array_equal(decode_image(store.get(picture.image.artifact)), painted.image)
        assert torch.equal(load_tensors(store.get(picture.latents))["latents"], painted.latents)


def test_the_stream_tells_every_step_and_ends_in_the_same_pictures(generator: generator_pb2_grpc.GeneratorServiceStub) -> None:
    plain = generator.Generate(generator_pb2.GenerateRequest(painting=PAINTING), timeout=SECONDS)
    events = list(generator.GenerateStream(generator_pb2.GenerateStreamRequest(painting=PAINTING), timeout=SECONDS))
    assert [(event.progress.done, event.progress.total) for event in events[:-1]] == [(1, 2), (2, 2)]
    assert events[-1].pictures.pictures == plain.pictures


def test_previews_come_between_the_steps_and_change_nothing(generator: generator_pb2_grpc.GeneratorServiceStub) -> None:
    plain = generator.Generate(generator_pb2.GenerateRequest(painting=PAINTING), timeout=SECONDS)
    request = generator_pb2.GenerateStreamRequest(painting=PAINTING, preview_every=1)
    events = list(generator.GenerateStream(request, timeout=SECONDS))
    assert [event.WhichOneof("event") for event in events] == ["preview", "preview", "progress", "progress", "pictures"]
    assert [(event.preview.index, event.preview.done, event.preview.total) for event in events[:2]] == [(0, 1, 2), (1, 1, 2)]
    assert decode_image(events[0].preview.image.data).shape == (32, 32, 3)
    assert events[-1].pictures.pictures == plain.pictures
    assert max(small(np.zeros((500, 1000, 3), np.uint8)).shape) == 128


def test_noise_on_the_condition_and_a_start_reach_the_engine(
    generator: generator_pb2_grpc.GeneratorServiceStub, store: ArtifactStore
) -> None:
    pixels = np.asarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    begun = generator_pb2.Start(image=common_pb2.Image(artifact=store.put(encode_png(pixels))), strength=0.5)
    painting = generator_pb2.Painting(prompt="a lake", seeds=[3], steps=4, condition_noise=0.5, start=begun)
    (picture,) = generator.Generate(generator_pb2.GenerateRequest(painting=painting), timeout=SECONDS).pictures
    engine, wanted = GeneratorEngine(tiny.flux()), GenerateRequest("a lake", 3, 32, 32, 4, condition_noise=0.5, start=Start(pixels, 0.5))
    (expected,) = engine.generate([wanted])
    assert picture.image.data == encode_png(expected.image)
    assert not np.array_equal(expected.image, engine.generate([replace(wanted, condition_noise=0.0)])[0].image)


def test_a_painting_that_is_left_changes_nothing_of_the_next(generator: generator_pb2_grpc.GeneratorServiceStub) -> None:
    plain = generator.Generate(generator_pb2.GenerateRequest(painting=PAINTING), timeout=SECONDS)
    long = generator_pb2.Painting()
    long.CopyFrom(PAINTING)
    long.steps = generator.GetLimits(generator_pb2.GetLimitsRequest(), timeout=SECONDS).max_steps
    call = generator.GenerateStream(generator_pb2.GenerateStreamRequest(painting=long), timeout=SECONDS)
    assert next(iter(call)).progress.done == 1
    call.cancel()
    assert generator.Generate(generator_pb2.GenerateRequest(painting=PAINTING), timeout=SECONDS) == plain


def test_adapters_are_fused_for_a_request_and_taken_out_for_the_next(
    generator: generator_pb2_grpc.GeneratorServiceStub, store: ArtifactStore
) -> None:
    engine, adapter = GeneratorEngine(tiny.flux()), random_adapter(0)
    ref = common_pb2.AdapterRef(artifact=store.put(encode_adapter(adapter)), weight=0.5)
    plain = generator_pb2.GenerateRequest(painting=PAINTING)
    tuned = generator_pb2.GenerateRequest(painting=PAINTING, model=common_pb2.ModelRef(base=BASE, adapters=[ref]))
    before, changed, after = (generator.Generate(request, timeout=SECONDS) for request in (plain, tuned, plain))
    assert before == after
    engine.set_adapter(adapter, 0.5)
    assert [picture.image.data for picture in changed.pictures] == [encode_png(p.image) for p in engine.generate(REQUESTS)]
    assert changed != before


def test_what_the_generator_cannot_do_is_refused_by_its_field(
    generator: generator_pb2_grpc.GeneratorServiceStub, store: ArtifactStore
) -> None:
    def said(model: common_pb2.ModelRef | None = None, **painting: Any) -> tuple[grpc.StatusCode, str, list[str]]:
        asked = generator_pb2.Painting(**{"prompt": "a lake", "seeds": [1], "steps": 1} | painting)
        return refused(lambda: generator.Generate(generator_pb2.GenerateRequest(painting=asked, model=model), timeout=SECONDS))

    invalid = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"
    outside = [common_pb2.Region(prompt="a boat", box=common_pb2.Box(x1=8, y1=8, x2=64, y2=16))]
    assert said(width=24) == (*invalid, ["painting.width"])
    assert said(regions=outside) == (*invalid, ["painting.regions[0].box"])
    begun = generator_pb2.Start(image=PICTURE, strength=0.5)
    assert said(start=begun) == (*invalid, ["painting.width"])  # it has 64 pixels, the model paints 32
    assert said(start=begun, width=32, height=32) == (*invalid, ["painting.start.image"])
    assert said(start=generator_pb2.Start(image=PICTURE)) == (*invalid, ["painting.start.strength"])
    vast = generator_pb2.Start(image=common_pb2.Image(data=bomb()), strength=0.5)
    assert said(start=vast) == (*invalid, ["painting.start.image.data"])
    assert said(condition_noise=float("nan")) == (*invalid, ["painting.condition_noise"])
    assert said(seeds=range(16), width=1024, height=1024) == (*invalid, ["delivery"])
    assert said(prompt="a lake " * 20) == (*invalid, ["painting.prompt"])
    absent = common_pb2.ModelRef(adapters=[common_pb2.AdapterRef(artifact="0" * 64)])
    assert said(absent) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", [])
    assert said(common_pb2.ModelRef(base="0" * 64)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", [])
    nonsense = common_pb2.ModelRef(adapters=[common_pb2.AdapterRef(artifact=store.put(b"no adapter"))])
    assert said(nonsense) == (*invalid, ["model.adapters[0].artifact"])
    foreign = Adapter({"no.such.module": (torch.ones(1, 4), torch.ones(4, 1))})
    fits_not = common_pb2.ModelRef(adapters=[common_pb2.AdapterRef(artifact=store.put(encode_adapter(foreign)))])
    assert said(fits_not) == (*invalid, ["model.adapters"])


def test_advice_and_questions_go_to_the_model_and_come_back(grounding: grounding_pb2_grpc.GroundingServiceStub, vlm: ScriptedVlm) -> None:
    vlm.script = ['[{"bbox": [0, 0, 32, 64], "aesthetical description": "a glowing lake"}]', "yes", "a full moon", "A", "A"]
    advice = grounding.Ground(grounding_pb2.GroundRequest(image=PICTURE, prompt="a lake"), timeout=SECONDS)
    assert [(r.prompt, (r.box.x1, r.box.y1, r.box.x2, r.box.y2)) for r in advice.regions] == [("a glowing lake", (0, 0, 32, 64))]
    assert grounding.Ask(grounding_pb2.AskRequest(image=PICTURE, question="Is it night?"), timeout=SECONDS).yes
    assert grounding.Refine(grounding_pb2.RefineRequest(prompt="moon"), timeout=SECONDS).prompt == "a full moon"
    both = grounding_pb2.CompareRequest(image_a=PICTURE, image_b=PICTURE, prompt="a lake")
    assert grounding.Compare(both, timeout=SECONDS).choice == grounding_pb2.CHOICE_TIE


def test_what_the_model_will_not_say_and_bad_questions_are_refused(
    grounding: grounding_pb2_grpc.GroundingServiceStub, vlm: ScriptedVlm
) -> None:
    vlm.script = ["secret nonsense", "secret nonsense"]
    asked = grounding_pb2.AskRequest(image=PICTURE, question="Is it night?")
    assert refused(lambda: grounding.Ask(asked, timeout=SECONDS)) == (grpc.StatusCode.INTERNAL, "ANSWER_REJECTED", [])
    invalid = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"
    turns = grounding_pb2.GroundRequest(image=PICTURE, prompt="a lake", strategy=grounding_pb2.STRATEGY_THREE_TURN)
    assert refused(lambda: grounding.Ground(turns, timeout=SECONDS)) == (*invalid, ["strategy"])
    vast = grounding_pb2.CompareRequest(image_a=PICTURE, image_b=common_pb2.Image(data=bomb()), prompt="a lake")
    assert refused(lambda: grounding.Compare(vast, timeout=SECONDS)) == (*invalid, ["image_b.data"])
    assert len(vlm.requests) == 2


def training(store: ArtifactStore, **fields: Any) -> tuple[trainer_pb2.TrainRequest, TrainingPair]:
    torch.manual_seed(1)
    before, after = torch.randn(16, 16), torch.randn(16, 16)
    digests = [store.put(save({"latents": latents})) for latents in (before, after)]
    pair = trainer_pb2.TrainingPair(prompt="a red house", seed=5, before=digests[0], after=digests[1])
    given: dict[str, Any] = {
        "pairs": [pair],
        "differential": trainer_pb2.DifferentialObjective(steps_before=3, steps_after=2),
        "fixed_rank": 2,
        "learning_rate": 5e-3,
        "batch": 2,
    }
    return trainer_pb2.TrainRequest(**given | fields), TrainingPair("a red house", before, after, 5, 32, 32)


def test_a_training_tells_its_steps_and_ends_in_the_engines_adapter(
    trainer: trainer_pb2_grpc.TrainerServiceStub, store: ArtifactStore, pipeline: FluxPipeline
) -> None:
    request, pair = training(store)
    events = list(trainer.Train(request, timeout=SECONDS))
    progress = [(event.progress.done, event.progress.total, event.progress.pairs) for event in events[:-1]]
    assert progress == [(1, 3, 1), (2, 3, 1), (3, 3, 1), (1, 2, 1), (2, 2, 1)]
    (trained,) = events[-1].result.pairs
    settings = TrainSettings(rank=2, learning_rate=5e-3, batch=2, steps_before=3, steps_after=2)
    (expected,) = train_pairs(pipeline, [pair], settings)
    assert not isinstance(expected, Exception)
    assert trained.losses == list(expected.losses) and trained.rank == 2
    assert [event.progress.loss for event in events[:-1]] == list(expected.losses)
    held = decode_adapter(store.get(trained.adapter))
    assert encode_adapter(held) == encode_adapter(expected.adapter)


def test_a_joint_training_ends_in_one_adapter_for_all_pairs(
    trainer: trainer_pb2_grpc.TrainerServiceStub, store: ArtifactStore, pipeline: FluxPipeline
) -> None:
    request, pair = training(store, joint=trainer_pb2.JointObjective(steps=3, pictures=4, together=2, seed=9))
    events = list(trainer.Train(request, timeout=SECONDS))
    assert [(event.progress.fit, event.progress.done) for event in events[:-1]] == [("joint", 1), ("joint", 2), ("joint", 3)]
    (trained,) = events[-1].result.pairs
    settings = JointSettings(rank=2, learning_rate=5e-3, steps=3, pictures=4, together=2, seed=9)
    expected = JointTraining(pipeline, [JointPicture(pair.prompt, pair.after)], settings, 32, 32).run(Alone())
    assert trained.losses == list(expected.losses) and trained.rank == 2
    assert store.get(trained.adapter) == encode_adapter(expected.adapter)


def test_trainings_that_cannot_work_are_refused_by_their_field(trainer: trainer_pb2_grpc.TrainerServiceStub, store: ArtifactStore) -> None:
    def said(**fields: Any) -> tuple[grpc.StatusCode, str, list[str]]:
        return refused(lambda: list(trainer.Train(training(store, **fields)[0], timeout=SECONDS)))

    invalid = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"
    no_latents = trainer_pb2.TrainingPair(prompt="a lake", before=store.put(b"no latents"), after=store.put(b"no latents"))
    assert said(pairs=[no_latents]) == (*invalid, ["pairs[0].before"])
    assert said(width=64, height=64) == (*invalid, ["pairs[0].before"])
    assert said(learning_rate=float("nan")) == (*invalid, ["learning_rate"])
    joint = trainer_pb2.JointObjective(steps=1, pictures=4, together=3)
    assert said(joint=joint) == (*invalid, ["joint.together"])
    assert said(joint=trainer_pb2.JointObjective(steps=1, pictures=1, together=1), width=64, height=64) == (*invalid, ["pairs[0].after"])
    assert said(joint=joint, automatic_rank=trainer_pb2.AutomaticRank()) == (*invalid, ["rank"])
    gone = trainer_pb2.TrainingPair(prompt="a lake", before="0" * 64, after="0" * 64)
    assert said(pairs=[gone]) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", [])
    assert refused(lambda: list(trainer.Train(trainer_pb2.TrainRequest(), timeout=SECONDS)))[2] == [
        "objective", "rank", "pairs", "learning_rate", "batch",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.flux().save_pretrained(folder)
    return folder


def test_calls_and_tasks_with_different_adapters_take_turns_on_one_generator(store: ArtifactStore, folder: Path) -> None:
    one, other = (store.put(encode_adapter(random_adapter(seed))) for seed in (1, 2))
    lane = EngineQueue(lambda: generator_served.serve(folder, "float32", GeneratorSettings()))
    register = partial(generator_pb2_grpc.add_GeneratorServiceServicer_to_server, GeneratorServicer(lane, store))
    painting = generator_pb2.Painting(prompt="a red house", seeds=[7], steps=2)

    def by_task(adapter: str) -> bytes:
        item = {"prompt": "a red house", "seed": 7, "regions": []}
        params = {"adapter": adapter, "width": 32, "height": 32, "steps": 2, "guidance": 1.0}
        named = {"model": model_version(folder), "model_reference": str(folder)}
        task = Task(stage="g", kind="generator.paint", items=(item,), params=params, **named)
        return generator_tasks.HANDLERS[task.kind](task, store).files["0.png"]

    def alone(adapter: str) -> bytes:
        engine = load_generator(folder)
        engine.set_adapter(decode_adapter(store.get(adapter)) if adapter else None)
        (picture,) = engine.generate([GenerateRequest("a red house", 7, 32, 32, 2)])
        return encode_png(picture.image)

    expected = {adapter: alone(adapter) for adapter in ("", one, other)}
    assert len(set(expected.values())) == 3
    with served(lambda _: [Service("sfumato.v1.GeneratorService", register, lane)]) as channel:
        stub = generator_pb2_grpc.GeneratorServiceStub(channel)

        def by_call(adapter: str) -> bytes:
            model = common_pb2.ModelRef(adapters=[common_pb2.AdapterRef(artifact=adapter)] if adapter else [])
            return stub.Generate(generator_pb2.GenerateRequest(painting=painting, model=model), timeout=SECONDS).pictures[0].image.data

        for call, task in ((one, other), (one, ""), ("", one), (other, other), (one, "")):
            assert by_call(call) == expected[call]
            assert by_task(task) == expected[task]
        assert lane.engine.engine() is generator_served.engine_of(folder, "float32")
        # A task for another model takes the engine's place; the next call has its own again.
        assert generator_served.engine_of(folder, "bfloat16") is not lane.engine.engine()
        assert by_call(one) == expected[one]


def test_calls_and_tasks_with_different_adapters_take_turns_on_one_trainer(store: ArtifactStore, folder: Path) -> None:
    theta = store.put(encode_adapter(random_adapter(1)))
    lane = EngineQueue(lambda: trainer_served.serve(folder, "float32"))
    register = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(lane, store))
    tuned = common_pb2.ModelRef(adapters=[common_pb2.AdapterRef(artifact=theta)])
    request, pair = training(store, model=tuned)
    item = {"prompt": pair.prompt, "seed": pair.seed, "before": request.pairs[0].before, "after": request.pairs[0].after}
    settings = {"rank": 2, "learning_rate": 5e-3, "batch": 2, "steps_before": 3, "steps_after": 2, "width": 32, "height": 32}

    def by_task(adapter: str) -> bytes:
        named = {"model": model_version(folder), "model_reference": str(folder)}
        task = Task(stage="t", kind="trainer.train", items=(item,), params=settings | {"adapter": adapter}, **named)
        return trainer_tasks.HANDLERS[task.kind](task, store).files["0.safetensors"]

    with served(lambda _: [Service("sfumato.v1.TrainerService", register, lane)]) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)

        def by_call(request: trainer_pb2.TrainRequest) -> bytes:
            *_, last = stub.Train(request, timeout=SECONDS)
            return store.get(last.result.pairs[0].adapter)

        base = by_task("")
        assert by_call(request) == by_task(theta) != base
        assert by_task("") == base == by_call(training(store)[0])
        assert by_call(request) == by_task(theta)
