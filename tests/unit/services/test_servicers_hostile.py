"""Thousands of hostile requests to real servicers over a real channel: each is answered, or refused by a field that it has."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.grounding.engine import GroundingEngine, Query
from services.grounding.profiles import VISTA
from services.grounding.servicer import GroundingServicer
from services.scoring.engine import ScoringEngine
from services.scoring.metric import Batch, Metric
from services.scoring.servicer import ScoringServicer
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.serving.lane import Lane
from sfumato.runtime.serving.server import Service
from sfumato.v1 import grounding_pb2, grounding_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from tests.unit.services.serving import SECONDS, bomb, served, told

TOGETHER, ROUNDS = 25, 210
"""Requests of one round, and rounds: 5250 requests to each service."""
ALL: Any = list(HealthCheck)
PLAIN = settings(database=None, deadline=None, suppress_health_check=ALL)
# Two classes of protobuf, of which its types know one at a time.
Descriptor = Any
PNG = encode_png(np.zeros((16, 16, 3), np.uint8))
TEXTS = ["brightness", "brightness", "brightness", "clip", "", " ", "\0", "é" * 3000, "a" * 4001, "../../etc/passwd", "<|im_end|>", "{0}%s",
         "0" * 64, "f" * 64 + "\n", "\xa0", "\x1f\x85"]  # fmt: skip
BYTES = [PNG, PNG, PNG, b"", b"x", PNG[:40], bomb(), bomb(5000), b"GIF89a" + bytes(20), PNG[:-20] + bytes(20)]
NUMBERS = [0, 1, -1, 16, 64, 2**31 - 1, 2**32 - 1, 2**63 - 1, -(2**63)]
FRACTIONS = [0.0, 0.5, -1.0, 1e308, math.nan, math.inf]


class Brightness:
    """The cheapest scorer there is."""

    metric = Metric("brightness", 0.0, 255.0, True, "1")

    def score(self, batch: Batch) -> list[float]:
        return [float(image.mean()) for image in batch.images]


class Echo:
    """A model that says what is asked for and no more."""

    concurrency = 1

    def answer(self, query: Query) -> str:
        return query.choices[0] if query.choices else "[]" if query.schema else "a moon"


@dataclass(frozen=True)
class Target:
    """A service, what serves it, and its calls with the messages they take."""

    service: Callable[[ArtifactStore], Service]
    stub: Callable[[grpc.Channel], Any]
    calls: dict[str, type[Message]]


def scoring(store: ArtifactStore) -> Service:
    lane = Lane(lambda: ScoringEngine([Brightness()]))
    register = partial(scoring_pb2_grpc.add_ScoringServiceServicer_to_server, ScoringServicer(lane, store))
    return Service("sfumato.v1.ScoringService", register, lane)


def grounding(store: ArtifactStore) -> Service:
    lane = Lane(lambda: GroundingEngine(Echo(), VISTA))
    register = partial(grounding_pb2_grpc.add_GroundingServiceServicer_to_server, GroundingServicer(lane, store))
    return Service("sfumato.v1.GroundingService", register, lane)


TARGETS = {
    "scoring": Target(scoring, scoring_pb2_grpc.ScoringServiceStub, {"Score": scoring_pb2.ScoreRequest}),
    "grounding": Target(
        grounding,
        grounding_pb2_grpc.GroundingServiceStub,
        {
            "Ground": grounding_pb2.GroundRequest,
            "Refine": grounding_pb2.RefineRequest,
            "Ask": grounding_pb2.AskRequest,
            "Compare": grounding_pb2.CompareRequest,
        },
    ),
}


def scalars(field: FieldDescriptor, artifact: str) -> st.SearchStrategy[Any]:
    """Values a field's type can hold, usual ones and others."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from([*TEXTS, "a moon", artifact, artifact]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(BYTES) | st.binary(max_size=16)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([0, 1, 2, 3, 99, -1])
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return st.sampled_from(FRACTIONS)
    low, high = (0, 2**32 - 1) if field.type == FieldDescriptor.TYPE_UINT32 else (-(2**63), 2**63 - 1)
    return st.sampled_from([number for number in NUMBERS if low <= number <= high])


def messages(descriptor: Descriptor, artifact: str) -> st.SearchStrategy[Message]:
    """Messages of this type: each field absent now and then, else hostile or usual; of a oneof the last one drawn stays."""
    values: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        one = scalars(field, artifact) if field.message_type is None else messages(field.message_type, artifact)
        one = st.lists(one, max_size=3) if field.is_repeated else one
        values[field.name] = one if field.is_repeated else st.one_of(one, one, one, st.none())
    return st.fixed_dictionaries(values).map(lambda drawn: _message(descriptor, drawn))


def _message(descriptor: Descriptor, drawn: dict[str, Any]) -> Message:
    return GetMessageClass(descriptor)(**{name: value for name, value in drawn.items() if value is not None})


def has(descriptor: Descriptor, path: str) -> bool:
    """Whether the message has the field of this path; a oneof counts as one."""
    for name in re.sub(r"\[\d+\]", "", path).split("."):
        if name in descriptor.oneofs_by_name:
            return True
        if name not in descriptor.fields_by_name:
            return False
        descriptor = descriptor.fields_by_name[name].message_type or descriptor
    return True


@contextmanager
def calling(target: Target, store: ArtifactStore) -> Iterator[Any]:
    with served(lambda _: [target.service(store)]) as channel:
        yield target.stub(channel)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_requests_are_answered_or_refused_by_a_field_they_have(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    target, store = TARGETS[name], ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))
    artifact, counts = store.put(PNG), dict[str, int]()
    kinds = st.one_of([messages(kind.DESCRIPTOR, artifact).map(partial(_pair, call)) for call, kind in target.calls.items()])

    # A failure is told as it was found: to make thousands of requests smaller takes longer than to read one.
    @settings(PLAIN, max_examples=ROUNDS, derandomize=True, phases=[Phase.generate])
    @given(st.lists(kinds, min_size=TOGETHER, max_size=TOGETHER))
    def all_of_them(requests: list[tuple[str, Message]]) -> None:
        for call, request in requests:
            try:
                getattr(stub, call)(request, timeout=SECONDS)
                status = "OK"
            except grpc.RpcError as error:
                code, _, fields = told(error)
                status, words = code.name, str(error)
                assert "Traceback" not in words and 'File "' not in words and "Incident" not in words, words
                assert code is not grpc.StatusCode.INVALID_ARGUMENT or fields, words
                assert all(has(request.DESCRIPTOR, field) for field in fields), fields
            counts[status] = counts.get(status, 0) + 1

    with calling(target, store) as stub:
        all_of_them()
    assert set(counts) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, counts
    assert sum(counts.values()) >= 5000 and counts["OK"] > 20, counts


def _pair(call: str, request: Message) -> tuple[str, Message]:
    return call, request
