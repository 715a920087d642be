"""Errors in OpenAI's shape: the one place where an error becomes an HTTP status."""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from sfumato.errors import BrokenWeights, Busy, Conflict, InvalidInput, MissingWeights, NotFound, SfumatoError, Unavailable, WrongState

log = logging.getLogger(__name__)

STATUS: Mapping[type[SfumatoError], tuple[int, str, str]] = {
    InvalidInput: (400, "invalid_request_error", "invalid_value"),
    NotFound: (404, "invalid_request_error", "not_found"),
    Conflict: (409, "invalid_request_error", "conflict"),
    WrongState: (409, "invalid_request_error", "wrong_state"),
    Busy: (429, "rate_limit_error", "queue_full"),
    Unavailable: (503, "server_error", "unavailable"),
    MissingWeights: (503, "server_error", "unavailable"),
    BrokenWeights: (503, "server_error", "unavailable"),
}
"""HTTP status, OpenAI's type, and the default code."""
RETRY_AFTER = 1.0
"""Default seconds for ``Retry-After``, when the error names none."""
LONGEST = 1000
"""Maximum characters of a message: it may quote the request."""

_PARAMETERS = {
    "width": "size",
    "height": "size",
    "steps": "num_inference_steps",
    "start": "image",
    "start.image": "image",
    "start.mask": "mask",
    "start.strength": "strength",
}
"""Request parameters by the fields of `sfumato.types.GenerateRequest`, where the names differ."""


class Problem(BaseModel):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error answer."""

    error: Problem


@dataclass(eq=False)
class RequestRefused(Exception):
    """A request that is refused at the HTTP level: its key, its body, its rate."""

    status: int
    message: str
    code: str
    param: str | None = None
    kind: str = "invalid_request_error"
    headers: Mapping[str, str] = field(default_factory=dict)


HANDLED: tuple[type[Exception], ...] = (RequestRefused, ValidationError, HTTPException, SfumatoError, ClientDisconnect)
"""Expected errors; any other one is a defect of the service."""
CLIENT_CLOSED = 499
"""Status of a request whose client disconnected; only logs and metrics contain it."""


def told(error: Exception) -> RequestRefused:
    """The answer to a request that ended in ``error``; an unexpected error is logged, and the answer names only its log entry."""
    if isinstance(error, RequestRefused):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, ClientDisconnect):
        return RequestRefused(CLIENT_CLOSED, "The client disconnected.", "client_closed_request")
    if isinstance(error, HTTPException):
        code = _HTTP.get(error.status_code, "invalid_request")
        return RequestRefused(error.status_code, str(error.detail), code, headers=error.headers or {})
    if not isinstance(error, SfumatoError):
        incident = secrets.token_hex(4)
        log.error("Incident %s: a request failed.", incident, exc_info=error)
        message = f"The service failed; its log tells why under incident {incident}."
        return RequestRefused(500, message, "internal_error", kind="server_error")
    status, kind, code = next((what for each, what in STATUS.items() if isinstance(error, each)), (500, "server_error", "internal_error"))
    headers = {"Retry-After": seconds(getattr(error, "retry_after", None) or RETRY_AFTER)} if status in (429, 503) else {}
    parameter = parameter_of(error.field) if isinstance(error, InvalidInput) else None
    message = str(error) if parameter is None else f"{parameter}: {str(error).removeprefix(f'{error.field}: ')}"  # pyright: ignore[reportAttributeAccessIssue]
    return RequestRefused(status, message, code, parameter, kind, headers)


def answer(refused: RequestRefused) -> JSONResponse:
    """The refusal as a response."""
    return JSONResponse(body(refused), refused.status, dict(refused.headers))


def body(refused: RequestRefused) -> dict[str, Any]:
    """The refusal as OpenAI's JSON."""
    problem = Problem(message=refused.message[:LONGEST], type=refused.kind, param=refused.param, code=refused.code)
    return ErrorBody(error=problem).model_dump()


def parameter_of(field: str) -> str:
    """The request parameter for a field of the engine: ``regions[2].bbox`` for ``regions[2].box``."""
    return _PARAMETERS.get(field, re.sub(r"^(regions\[\d+\])\.box$", r"\1.bbox", field))


def seconds(wait: float) -> str:
    """A waiting time for ``Retry-After``: whole seconds, at least 1."""
    return str(max(1, math.ceil(wait)))


_HTTP = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
    "string_too_long": "string_above_max_length",
    "string_too_short": "empty_string",
    "too_long": "array_above_max_length",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
}
"""OpenAI's error codes by pydantic's."""


def _invalid(error: ValidationError) -> RequestRefused:
    """The first error of a body, by the parameter's path: ``regions[0].bbox[3]``."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ""
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() or part.endswith("]") or first["type"] == "extra_forbidden":
            path += f".{part}" if path else part
    kind = str(first["type"])
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    words = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return RequestRefused(400, f"{path[:100]}: there is no such parameter.", code, path[:100])
    if kind == "missing":
        return RequestRefused(400, f"{path}: is required.", code, path)
    return RequestRefused(400, f"{path}: {words}." if path else f"The body is not as described: {words}.", code, path or None)
