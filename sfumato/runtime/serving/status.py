"""The table of errors and gRPC statuses, both ways, with google.rpc's details. The service uses it to refuse, the client to raise."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from sfumato.errors import (
    Blocked,
    BrokenWeights,
    Busy,
    Conflict,
    Faults,
    InvalidInput,
    MissingWeights,
    NotFound,
    SfumatoError,
    Unavailable,
    WrongState,
)

log = logging.getLogger(__name__)


def _reason(name: str) -> str:
    """The name of an error's class in google.rpc's spelling: InvalidInput is INVALID_INPUT."""
    return "".join(f"_{c}" if c.isupper() else c for c in name).strip("_").upper()


DETAILS = "grpc-status-details-bin"
DOMAIN = "sfumato"
CODES: dict[type[SfumatoError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ABORTED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Blocked: grpc.StatusCode.UNAVAILABLE,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    MissingWeights: grpc.StatusCode.FAILED_PRECONDITION,
    BrokenWeights: grpc.StatusCode.DATA_LOSS,
}
REASONS = {_reason(kind.__name__): kind for kind in CODES if kind is not InvalidInput}
"""The reason in a refusal's details -> the error that was raised in the service. InvalidInput is made of its field violations."""
RETRY = Duration(seconds=1)
"""When a caller may try again if the service was busy or loading."""
LONGEST, MOST = 1000, 8
"""Bytes of a message and number of violations in a refusal: it travels in HTTP headers, of which a client accepts 8 KiB."""
ROOM, EVERY = 3000, 60
"""The same for `Faults`, whose violations are listed completely with a short message."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of a request by its path, such as ``painting.regions[2].box``, and what is wrong with it."""

    field: str
    description: str


class BrokenRules(Exception):
    """A request that breaks rules of the contract."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(f"{len(violations)} rules are broken")
        self.violations = violations


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusal of a call: status, message and details."""

    code: grpc.StatusCode
    message: str
    details: tuple[Message, ...] = field(default=())

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The details as trailing metadata: a serialized google.rpc.Status."""
        packed = []
        for detail in self.details:
            packed.append(Any())
            packed[-1].Pack(detail)
        return ((DETAILS, Status(code=self.code.value[0], message=self.message, details=packed).SerializeToString()),)


UNAUTHENTICATED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "This service needs a token: send the metadata 'authorization: Bearer TOKEN'.")


def refusal(error: Exception) -> Refusal:
    """The refusal for an error. Errors outside `sfumato.errors` are logged under an incident number, which is all the caller gets."""
    if isinstance(error, BrokenRules):
        told = "; ".join(f"{violation.field}: {violation.description}" for violation in error.violations[:MOST])
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, cut(told), (_bad_request(error.violations), _info("InvalidInput")))
    if isinstance(error, Faults):
        told = f"{len(error.faults)} faults: {', '.join(field for field, _ in error.faults)}"
        violations = [Violation(field, words) for field, words in error.faults]
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, cut(told, 400), (_bad_request(violations, ROOM, EVERY), _info("InvalidInput")))
    if not isinstance(error, SfumatoError):
        incident = secrets.token_hex(4)
        log.error("Incident %s: a call failed.", incident, exc_info=error)
        return Refusal(grpc.StatusCode.INTERNAL, f"The service failed; its log tells why under incident {incident}.", (_info("Internal"),))
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    details: list[Message] = [_info(type(error).__name__)]
    if isinstance(error, InvalidInput):
        description = str(error).removeprefix(f"{error.field}: ")
        details.append(_bad_request([Violation(error.field, description)]))
    if isinstance(error, Busy | Unavailable):
        details.append(RetryInfo(retry_delay=RETRY))
    return Refusal(code, cut(str(error)), tuple(details))


def cut(text: str, most: int = LONGEST) -> str:
    """The text, cut to at most so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= most else data[: most - 3].decode("utf-8", "ignore") + "..."


def _info(name: str) -> ErrorInfo:
    return ErrorInfo(reason=_reason(name), domain=DOMAIN)


def _bad_request(violations: Sequence[Violation], room: int = LONGEST, most: int = MOST) -> BadRequest:
    share = room // min(len(violations), most)
    fields = [cut(violation.field, max(min(share - 16, 200), 16)) for violation in violations[:most]]
    told = zip(fields, violations, strict=False)
    return BadRequest(field_violations=[{"field": f, "description": cut(v.description, max(share - len(f), 16))} for f, v in told])
