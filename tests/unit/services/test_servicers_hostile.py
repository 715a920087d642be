"""Thousands of hostile requests to real servicers over a real channel: each is answered, or refused by a field that it has."""

from __future__ import annotations

import io
import math
import random
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from PIL import Image as Pillow
from safetensors.torch import save

from services.generator import served as generator_served
from services.generator.engine import GeneratorEngine
from services.generator.servicer import GeneratorServicer
from services.grounding.engine import GroundingEngine, Query
from services.grounding.profiles import VISTA
from services.grounding.servicer import GroundingServicer
from services.scoring.engine import ScoringEngine
from services.scoring.metric import Metric, ScoringBatch
from services.scoring.servicer import ScoringServicer
from services.trainer import served as trainer_served
from services.trainer.servicer import TrainerServicer
from sfumato.lora.adapter import Adapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.models.adapters import encode_adapter
from sfumato.runtime.serving.artifacts import NAME, ArtifactServicer
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service
from sfumato.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    common_pb2,
    generator_pb2,
    generator_pb2_grpc,
    grounding_pb2,
    grounding_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)
from tests.unit.diffusion import tiny
from tests.unit.runtime.hostile_pictures import damaged_file, hostile_picture
from tests.unit.services.serving import SECONDS, bomb, served, told

REQUESTS = 5200
"""To each service."""
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
BASE = "b" * 64
# Two classes of protobuf, of which its types know one at a time.
Descriptor = Any
PNG = encode_png(np.zeros((32, 32, 3), np.uint8))
ADAPTER = encode_adapter(Adapter({"transformer_blocks.0.attn.to_q": (torch.ones(1, 32), torch.ones(32, 1))}))
LATENTS = save({"latents": torch.ones(16, 16)})
TEXTS = ["brightness", "clip", "", " ", "\0", "é" * 3000, "a" * 4001, "../../etc/passwd", "<|im_end|>", "{0}%s",
         "0" * 64, "f" * 64 + "\n", BASE, "\xa0", "\x1f\x85", "a moon", "a " * 40, "\U0001f319", "\u202e"]  # fmt: skip
OTHER = encode_png(np.zeros((8, 40, 3), np.uint8))
BYTES = [PNG, OTHER, b"", b"x", PNG[:40], bomb(), bomb(5000), b"GIF89a" + bytes(20), PNG[:-20] + bytes(20)]
BYTES += [file for seed in range(4) for file in (hostile_picture(seed).file, damaged_file(seed))]
NUMBERS = [0, 1, 2, -1, 7, 16, 32, 64, 2**31 - 1, 2**32 - 1, 2**63 - 1, -(2**63)]
FRACTIONS = [0.0, 0.5, 1.0, -1.0, 1e308, 1e-320, math.nan, math.inf]
COSTLY = ("steps", "steps_before", "steps_after", "batch", "fixed_rank")
"""Fields that are work: few of it, or more than is taken."""
LEAKS = re.compile(r'Traceback|File "|site-packages|\.py\b|incident')


class Brightness:
    """The cheapest scorer there is."""

    metric = Metric("brightness", 0.0, 255.0, True, "1")

    def score(self, batch: ScoringBatch) -> list[float]:
        return [float(image.mean()) for image in batch.images]


class Echo:
    """A model that says what is asked for and no more."""

    concurrency = 1

    def answer(self, query: Query) -> str:
        return query.choices[0] if query.choices else "[]" if query.schema else "a moon"


@dataclass(frozen=True)
class Target:
    """A service, what serves it, and its calls with a request that each answers."""

    service: Callable[[ArtifactStore], Service]
    stub: Callable[[grpc.Channel], Any]
    calls: dict[str, Message]
    # The shares of a request's fields that are spoilt; where an answer is work, few requests are left whole.
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)


def scoring(store: ArtifactStore) -> Service:
    queue = EngineQueue(lambda: ScoringEngine([Brightness()]))
    register = partial(scoring_pb2_grpc.add_ScoringServiceServicer_to_server, ScoringServicer(queue, store))
    return Service("sfumato.v1.ScoringService", register, queue)


def grounding(store: ArtifactStore) -> Service:
    queue = EngineQueue(lambda: GroundingEngine(Echo(), VISTA))
    register = partial(grounding_pb2_grpc.add_GroundingServiceServicer_to_server, GroundingServicer(queue, store))
    return Service("sfumato.v1.GroundingService", register, queue)


def generator(store: ArtifactStore) -> Service:
    engine = GeneratorEngine(tiny.flux())
    queue = EngineQueue(lambda: generator_served.ServedGenerator(lambda: engine, BASE, engine.limits, engine.settings))
    register = partial(generator_pb2_grpc.add_GeneratorServiceServicer_to_server, GeneratorServicer(queue, store))
    return Service("sfumato.v1.GeneratorService", register, queue)


def trainer(store: ArtifactStore) -> Service:
    model = trainer_served.TrainedModel(tiny.flux())
    queue = EngineQueue(lambda: trainer_served.ServedTrainer(lambda: model, BASE))
    register = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(queue, store))
    return Service("sfumato.v1.TrainerService", register, queue)


def artifacts(store: ArtifactStore) -> Service:
    register = partial(artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server, ArtifactServicer(store, 2**20))
    return Service(NAME, register, EngineQueue(lambda: None))


def digest(data: bytes, store: ArtifactStore | None = None) -> str:
    return (store or ArtifactStore("memory:///")).put(data)


IMAGE = common_pb2.Image(data=PNG)
MODEL = common_pb2.ModelRef(base=BASE, adapters=[common_pb2.AdapterRef(artifact=digest(ADAPTER), weight=0.5)])
REGION = common_pb2.Region(prompt="a lake", box=common_pb2.Box(x1=0, y1=0, x2=16, y2=32))
PAINTING = generator_pb2.Painting(
    prompt="a moon", seeds=[1], width=32, height=32, steps=1, guidance_scale=1.0, regions=[REGION], regional_steps=0.5, soft_edges=1.0,
    condition_noise=0.5, start=generator_pb2.Start(image=IMAGE, strength=0.5),
)  # fmt: skip
PAIR = trainer_pb2.TrainingPair(prompt="a moon", seed=1, before=digest(LATENTS), after=digest(LATENTS))
TRAINING = trainer_pb2.TrainRequest(
    pairs=[PAIR], model=MODEL, naive=trainer_pb2.NaiveObjective(steps=1), fixed_rank=2, learning_rate=0.5, batch=1, guidance=1.0, width=32,
    height=32,
)  # fmt: skip
TARGETS = {
    "scoring": Target(
        scoring,
        scoring_pb2_grpc.ScoringServiceStub,
        {
            "Score": scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem(image=IMAGE, prompt="a moon")] * 2, metrics=["brightness"]),
            "ListMetrics": scoring_pb2.ListMetricsRequest(),
        },
    ),
    "grounding": Target(
        grounding,
        grounding_pb2_grpc.GroundingServiceStub,
        {
            "Ground": grounding_pb2.GroundRequest(image=IMAGE, prompt="a moon", strategy=grounding_pb2.STRATEGY_SINGLE_TURN),
            "Refine": grounding_pb2.RefineRequest(prompt="a moon"),
            "Ask": grounding_pb2.AskRequest(image=IMAGE, question="Is it night?"),
            "Compare": grounding_pb2.CompareRequest(image_a=IMAGE, image_b=IMAGE, prompt="a moon", one_order=True),
        },
    ),
    "generator": Target(
        generator,
        generator_pb2_grpc.GeneratorServiceStub,
        {
            "Generate": generator_pb2.GenerateRequest(painting=PAINTING, model=MODEL, delivery=common_pb2.DELIVERY_ARTIFACT),
            "GenerateStream": generator_pb2.GenerateStreamRequest(painting=PAINTING, model=MODEL, preview_every=1),
            "GetLimits": generator_pb2.GetLimitsRequest(),
        },
    ),
    "trainer": Target(trainer, trainer_pb2_grpc.TrainerServiceStub, {"Train": TRAINING}, (0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "artifacts": Target(
        artifacts,
        artifacts_pb2_grpc.ArtifactServiceStub,
        {
            "Put": artifacts_pb2.PutRequest(digest=digest(PNG), chunk=PNG),
            "Get": artifacts_pb2.GetRequest(digest=digest(PNG)),
            "Stat": artifacts_pb2.StatRequest(digest=digest(PNG)),
        },
    ),
}


def scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    """A value that the field's type can hold, usual or not."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice([*TEXTS, digest(PNG), digest(ADAPTER), digest(LATENTS)])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice([*BYTES, rng.randbytes(rng.randrange(16))])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([0, 1, 2, 3, 99, -1])
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return rng.choice(FRACTIONS)
    low, high = (0, 2**32 - 1) if field.type == FieldDescriptor.TYPE_UINT32 else (-(2**63), 2**63 - 1)
    numbers = [number for number in NUMBERS if low <= number <= high]
    return rng.choice([number for number in numbers if not 2 < number < 10_000] if field.name in COSTLY else numbers)


def spoil(rng: random.Random, message: Message, share: float) -> None:
    """Give about this share of the message's fields, at any depth, another value or none."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < share:
            message.ClearField(field.name)
            for _ in range(rng.choice([0, 1, 1, 2, 5]) if field.is_repeated else rng.randrange(4) > 0):
                put(rng, message, field)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            for one in inner if field.is_repeated else [inner] if message.HasField(field.name) else []:
                spoil(rng, one, share)


def put(rng: random.Random, message: Message, field: Descriptor) -> None:
    """Set the field, or add to it, one value, usual or not."""
    if field.message_type is None:
        value = scalar(rng, field)
        getattr(message, field.name).append(value) if field.is_repeated else setattr(message, field.name, value)
    else:
        inner = getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)
        inner.SetInParent()
        spoil(rng, inner, 0.7)


def has(descriptor: Descriptor, path: str) -> bool:
    """Whether the message has the field of this path; a oneof counts as one."""
    for name in re.sub(r"\[\d+\]", "", path).split("."):
        if name in descriptor.oneofs_by_name:
            return True
        if name not in descriptor.fields_by_name:
            return False
        descriptor = descriptor.fields_by_name[name].message_type or descriptor
    return True


def ask(stub: Any, call: str, request: Message) -> None:
    """Call it, to the end of its stream if it answers with one."""
    if call == "Put":
        stub.Put(iter([request]), timeout=SECONDS)
    elif call in ("Get", "GenerateStream", "Train"):
        list(getattr(stub, call)(request, timeout=SECONDS))
    else:
        getattr(stub, call)(request, timeout=SECONDS)


@contextmanager
def calling(target: Target, store: ArtifactStore) -> Iterator[Any]:
    for data in (PNG, ADAPTER, LATENTS):
        digest(data, store)
    with served(lambda _: [target.service(store)]) as channel:
        yield target.stub(channel)


@pytest.mark.parametrize("name", ["scoring", "grounding"])
def test_damaged_metadata_changes_no_answer(name: str, tmp_path: Path) -> None:
    target, store = TARGETS[name], ArtifactStore(str(tmp_path))
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI", 0x011A, 2, 4) + b"abc\0"
    exif, file = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4), io.BytesIO()
    Pillow.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(file, "JPEG", exif=exif)
    photograph = common_pb2.Image(data=file.getvalue())
    with calling(target, store) as stub:
        if name == "scoring":
            items = [scoring_pb2.ScoreItem(image=photograph, prompt="a moon")]
            (row,) = stub.Score(scoring_pb2.ScoreRequest(items=items, metrics=["brightness"]), timeout=SECONDS).scores
            assert abs(row.values["brightness"] - 90) < 1
        else:
            asked = grounding_pb2.AskRequest(image=photograph, question="Is it night?")
            plain = grounding_pb2.AskRequest(image=IMAGE, question="Is it night?")
            assert stub.Ask(asked, timeout=SECONDS) == stub.Ask(plain, timeout=SECONDS)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_requests_are_answered_or_refused_by_a_field_they_have(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    target, store = TARGETS[name], ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))
    rng, counts = random.Random(name), Counter[str]()
    with calling(target, store) as stub:
        for call, request in target.calls.items():
            ask(stub, call, request)
        for _ in range(REQUESTS):
            call, valid = rng.choice(list(target.calls.items()))
            request = type(valid)()
            request.CopyFrom(valid)
            spoil(rng, request, rng.choice(target.shares))
            try:
                ask(stub, call, request)
                counts["OK"] += 1
            except grpc.RpcError as error:
                code, _, fields = told(error)
                words = str(error)
                assert code.name in ALLOWED and not LEAKS.search(words), f"{words}\n{request}"
                assert code is not grpc.StatusCode.INVALID_ARGUMENT or fields, words
                assert all(has(request.DESCRIPTOR, field) for field in fields), fields
                counts[code.name] += 1
    assert counts["OK"] > 30 and counts["INVALID_ARGUMENT"] > 500, counts
