"""The boundary around every call: authentication, validation by the contract's rules, and translation of errors to statuses."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import protovalidate
from google.protobuf.message import DecodeError, Message

from sfumato.runtime.serving.status import UNAUTHENTICATED, BrokenRules, Refusal, Violation, refusal

OPEN = "/grpc.health.v1.Health/"
"""Open without a token: supervisors and kubelets check it."""

# grpc's types know the handlers of synchronous servers only.
RpcHandler: TypeAlias = Any
RpcContext: TypeAlias = Any


class Boundary(grpc.aio.ServerInterceptor):
    """Authenticates, validates and translates errors; servicers raise the errors of `sfumato.errors` only."""

    def __init__(self, token: str = "") -> None:
        """With a ``token``, calls without it are refused."""
        self._expected = f"Bearer {token}".encode() if token else b""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler]], handler_call_details: grpc.HandlerCallDetails
    ) -> RpcHandler:
        """The method's handler, wrapped in the boundary."""
        handler = await continuation(handler_call_details)
        if handler is None or str(handler_call_details.method).startswith(OPEN):
            return handler
        if not self._admitted(handler_call_details):
            return _refusing(handler, UNAUTHENTICATED)
        return _within(handler)

    def _admitted(self, details: grpc.HandlerCallDetails) -> bool:
        shown = dict(details.invocation_metadata or ()).get("authorization", "")
        shown = shown if isinstance(shown, bytes) else shown.encode("utf-8", "replace")
        return not self._expected or hmac.compare_digest(shown, self._expected)


def check(request: Message) -> None:
    """Validate a request by the rules of its contract.

    Raises:
        BrokenRules: it breaks rules; lists every field that does.
    """
    found = protovalidate.collect_violations(request)
    if found:
        raise BrokenRules([Violation(_path(violation.proto.field), violation.proto.message or "is not valid") for violation in found])


def _within(handler: RpcHandler) -> RpcHandler:
    """The handler with parsing, validation and error translation around it."""
    parse, serialize = handler.request_deserializer, handler.response_serializer
    behaviour = _behaviour(handler)

    def read(data: Any) -> Any:
        return _read_each(parse, data) if handler.request_streaming else _read(parse, data)

    async def stream(data: Any, context: RpcContext) -> AsyncIterator[Any]:
        try:
            async for answer in behaviour(read(data), context):
                yield answer
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _refuse(context, refusal(error))

    async def single(data: Any, context: RpcContext) -> Any:
        try:
            return await behaviour(read(data), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _refuse(context, refusal(error))

    # Without a deserializer this receives bytes: gRPC's own answer to bytes that cannot be parsed names Python classes.
    return _maker(handler)(stream if handler.response_streaming else single, None, serialize)


def _read(parse: Callable[[bytes], Message], data: bytes) -> Message:
    try:
        request = parse(data)
    except DecodeError:
        raise BrokenRules([Violation("", "these bytes are not this request's message")]) from None
    check(request)
    return request


async def _read_each(parse: Callable[[bytes], Message], pieces: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for data in pieces:
        yield _read(parse, data)


def _refusing(handler: RpcHandler, told: Refusal) -> RpcHandler:
    """A handler of the same kind that refuses every call."""

    async def single(request: Any, context: RpcContext) -> Any:
        await _refuse(context, told)

    async def stream(request: Any, context: RpcContext) -> AsyncIterator[Any]:
        await _refuse(context, told)
        yield

    return _maker(handler)(stream if handler.response_streaming else single, None, None)


def _maker(handler: RpcHandler) -> Callable[..., RpcHandler]:
    """The function that makes a handler of the same kind."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[bool(handler.request_streaming), bool(handler.response_streaming)]


def _behaviour(handler: RpcHandler) -> Callable[..., Any]:
    """The handler's function, for any kind."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


async def _refuse(context: RpcContext, told: Refusal) -> NoReturn:
    await context.abort(told.code, told.message, told.metadata)
    raise AssertionError("abort returned")


def _path(field: Any) -> str:
    """A violation's field path as text: ``painting.regions[2].box``."""
    path = ""
    for element in field.elements if field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path
