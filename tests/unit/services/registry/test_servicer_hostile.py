"""Thousands of hostile requests to the registry over a real channel: each is answered, or refused for what the contract names."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.registry.app import services
from sfumato.registry.records import Node
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.v1 import registry_pb2 as pb
from sfumato.v1.registry_pb2_grpc import RegistryServiceStub
from tests.unit.services.registry.samples import BASE, TO_Q, adapter
from tests.unit.services.serving import SECONDS, served_at, told
from tests.unit.services.test_servicers_hostile import has

REQUESTS = 2600
"""To a registry on each of the two databases."""
CALLS: dict[str, tuple[Any, int]] = {
    "Register": (pb.RegisterRequest, 7),
    "GetVersion": (pb.GetVersionRequest, 2),
    "Resolve": (pb.ResolveRequest, 1),
    "ListVersions": (pb.ListVersionsRequest, 2),
    "Merge": (pb.MergeRequest, 2),
    "SetAlias": (pb.SetAliasRequest, 4),
    "Rollback": (pb.RollbackRequest, 2),
    "ListMoves": (pb.ListMovesRequest, 1),
    "GetLineage": (pb.GetLineageRequest, 2),
    "WatchRegistry": (pb.WatchRegistryRequest, 1),
}
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "FAILED_PRECONDITION"}
DATA = [adapter(seed)[1] for seed in range(3)]
DIGESTS = [adapter(seed)[0] for seed in range(4)]
RUN = Node.about("run", id="x")
WORDS = ["production", "canary", "x", "", " ", "\0", "é" * 40, "a" * 2001, "../../etc/passwd", "%", "_" * 64, "'; DROP TABLE versions; --",
         "0" * 64, "f" * 64 + "\n", "decade", "abcdef", TO_Q, "unet.a", "a b", "\u202e", "{0}%s"]  # fmt: skip
JSONS = ["", "{}", '{"id": "x"}', "[]", "NaN", '{"x": NaN}', '{"x": 1e999}', '{"x": "\\ud800"}', '{"\\u0000": 1}', "[" * 5000, "9" * 5000,
         "{", '{"x": ' + "9" * 400 + "}"]  # fmt: skip
NUMBERS = [0, 1, 2, 6, 4, 500, 65536, 2**31 - 1, 2**32 - 1, 2**63 - 1, -1, -(2**63)]
FRACTIONS = [1.0, 0.5, -2.0, 0.0, 16.5, 1e308, 5e-324, math.nan, math.inf, -math.inf]
FILES = [*DATA, *DATA, b"", b"x", DATA[0][:-1], DATA[0][:8] + b"{" + DATA[0][9:], b"\xff" * 8 + b"{}", bytes(8),
         (2**63).to_bytes(8, "little")]  # fmt: skip


class Hostile:
    """Messages of any kind: a field is left out, usual, or what nobody should send. The same ones every time."""

    def __init__(self, ids: list[str]) -> None:
        self._any = random.Random(4)
        self._ids = ids

    def message(self, descriptor: Any) -> Message:
        """A message of this type."""
        fields: dict[str, Any] = {}
        for field in descriptor.fields:
            if self._any.random() < 0.15 or (field.containing_oneof is not None and self._any.random() < 0.5):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                value = field.message_type.fields_by_name["value"]
                fields[field.name] = {self._text("key"): self._value(value) for _ in range(self._any.randrange(3))}
            elif field.is_repeated:
                fields[field.name] = [self._value(field) for _ in range(self._any.choice([0, 1, 1, 1, 2]))]
            else:
                fields[field.name] = self._value(field)
        return GetMessageClass(descriptor)(**fields)

    def _value(self, field: FieldDescriptor) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type)
        match field.type:
            case FieldDescriptor.TYPE_STRING:
                return self._text(field.name)
            case FieldDescriptor.TYPE_BYTES:
                return self._any.choice(FILES)
            case FieldDescriptor.TYPE_DOUBLE:
                return self._any.choice([1.0, 0.5, *FRACTIONS])
            case FieldDescriptor.TYPE_ENUM:
                return self._any.choice([0, 1, 2, 3, 99, -1])
            case FieldDescriptor.TYPE_UINT32:
                return self._any.choice([number for number in NUMBERS if 0 <= number < 2**32])
        return self._any.choice(NUMBERS)

    def _text(self, name: str) -> str:
        usual = {
            "id": [BASE.id, BASE.id, "e" * 64],
            "artifact": DIGESTS,
            "version": [*self._ids, self._ids[0][:8], "production", "canary"],
            "expected": ["", *self._ids],
            "alias": ["production", "canary", "x"],
            "base": ["", BASE.id],
            "kind": ["run", "pair", "adapter"],
            "digest": [RUN.digest, *DIGESTS],
            "content": JSONS,
            "node": ["", "", RUN.id, f"version:{self._ids[0]}"],
            "relation": ["of", "made_by"],
            "source": [RUN.id, f"version:{self._ids[0]}", f"adapter:{DIGESTS[0]}"],
        }.get(name, ["a note"])
        return self._any.choice(usual) if self._any.random() < 0.8 else self._any.choice(WORDS)


@pytest.fixture
def stub(database_url: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryServiceStub]:
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", database_url)
    monkeypatch.setenv("SFUMATO_ARTIFACTS", store.url)
    with served_at(services, store) as address, grpc.insecure_channel(address) as channel:
        yield RegistryServiceStub(channel)


def _ask(stub: RegistryServiceStub, call: str, request: Message) -> str:
    """The status' name; what a refusal must not say, and what it must name."""
    try:
        answer = getattr(stub, call)(request, timeout=SECONDS)
        if call == "WatchRegistry":
            next(answer)
            answer.cancel()
        return "OK"
    except grpc.RpcError as error:
        code, _, fields = told(error)
        words = str(error)
        assert "Traceback" not in words and 'File "' not in words and "Incident" not in words and "SELECT" not in words, words
        assert code is not grpc.StatusCode.INVALID_ARGUMENT or fields, words
        # A map's key may be anything.
        fields = ["metrics" if field.startswith("metrics[") else field for field in fields]
        assert all(has(request.DESCRIPTOR, field) for field in fields), (call, fields, words)
        return code.name


def test_hostile_requests_are_answered_or_refused_by_a_field_they_have(stub: RegistryServiceStub) -> None:
    base = pb.BaseModel(id=BASE.id, name="tiny")
    ids = [
        stub.Register(pb.RegisterRequest(base=base, adapters=[{"artifact": DIGESTS[n]}], files=[DATA[n]])).version.id  # pyright: ignore[reportArgumentType]
        for n in range(2)
    ]
    stub.SetAlias(pb.SetAliasRequest(alias="production", version=ids[0]))
    hostile, counts, picks = Hostile(ids), Counter[tuple[str, str]](), random.Random(5)
    names, weights = list(CALLS), [weight for _, weight in CALLS.values()]
    for call in picks.choices(names, weights, k=REQUESTS):
        request = hostile.message(CALLS[call][0].DESCRIPTOR)
        counts[call, _ask(stub, call, request)] += 1
    assert {status for _, status in counts} <= ALLOWED, counts
    answered = {call for call, status in counts if status == "OK"}
    assert answered == set(CALLS), counts  # every call was also reached beyond the contract's rules
    assert stub.Resolve(pb.ResolveRequest(version=ids[0])).id == ids[0]
    moves = stub.ListMoves(pb.ListMovesRequest(alias="production")).moves
    assert [move.revision for move in moves] == list(range(1, len(moves) + 1))
