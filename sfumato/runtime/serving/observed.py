"""Telemetry of every call: a span that continues the caller's trace, and metrics of its status and seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio
from opentelemetry.trace import Span, SpanKind, StatusCode

from sfumato.runtime import telemetry
from sfumato.runtime.serving.boundary import OPEN, RpcContext, RpcHandler

OURS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes of errors of the service, not of the caller (OpenTelemetry's conventions for gRPC)."""
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Observed(grpc.aio.ServerInterceptor):
    """Wraps the boundary, so that it sees refusals too; health checks are not recorded."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler]], handler_call_details: grpc.HandlerCallDetails
    ) -> RpcHandler:
        """The method's handler, observed."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(OPEN):
            return handler
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behaviour = getattr(handler, kind)

        async def single(request: Any, context: RpcContext) -> Any:
            with _call(method, context):
                return await behaviour(request, context)

        async def stream(request: Any, context: RpcContext) -> None:
            # Written, not yielded: a cancelled call ends here, not when an abandoned generator is collected.
            with _call(method, context):
                async with aclosing(behaviour(request, context)) as answers:
                    async for answer in answers:
                        try:
                            await context.write(answer)
                        except grpc.aio.InternalError as error:
                            raise asyncio.CancelledError from error  # the caller left before it arrived

        return handler._replace(**{kind: stream if handler.response_streaming else single})


@contextmanager
def _call(method: str, context: RpcContext) -> Iterator[None]:
    service, _, verb = method.lstrip("/").partition("/")
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    names = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": verb}
    started, code = time.perf_counter(), "OK"
    span = telemetry.tracer.start_as_current_span(
        f"{service}/{verb}", kind=SpanKind.SERVER, attributes=names, record_exception=False, set_status_on_exception=False
    )
    with telemetry.incoming(headers), span as current:
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            left = context.time_remaining()
            code = "CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED"
            raise
        except BaseException:
            code = _CODES.get(_number(context.code()), "UNKNOWN")
            raise
        finally:
            _tell(f"{service}/{verb}", code, time.perf_counter() - started, current)


def _tell(method: str, code: str, seconds: float, span: Span) -> None:
    telemetry.requests.labels(method, code).inc()
    telemetry.request_seconds.labels(method).observe(seconds)
    span.set_attribute("rpc.response.status_code", code)
    if code in OURS:
        span.set_status(StatusCode.ERROR, code)


def _number(code: Any) -> int:
    """The number of a status, which gRPC's servers return as a number or as the status itself."""
    return code.value[0] if isinstance(code, grpc.StatusCode) else int(code)
