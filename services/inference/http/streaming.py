"""Server-sent events as OpenAI's clients read them, and work that is cancelled when the client disconnects."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from services.inference.http.errors import body, told
from services.inference.http.images import FinishedImages, Preview
from sfumato.runtime.cancel import cancel_all

Result = TypeVar("Result")

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients ignore."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; the work is cancelled when the client disconnects.

    The request's body must have been read before: the next message is the disconnect.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await cancel_all([working, leaving])


async def streamed(
    request: Request,
    kind: str,
    work: Callable[[Callable[[Preview], object]], Awaitable[FinishedImages]],
    shared: Mapping[str, Any],
    headers: Callable[[str], Mapping[str, str]],
    keep_alive: float,
) -> StreamingResponse:
    """A stream of the work's previews and pictures, with a comment whenever nothing is sent for ``keep_alive`` seconds.

    An error before the first event is raised, so that it gets its own status, if it comes within ``keep_alive`` seconds; the stream begins
    then, because proxies close connections on which nothing comes.

    Args:
        request: the request to answer.
        kind: ``image_generation`` or ``image_edit``, the first part of the events' types.
        work: paints, and calls its argument with every preview.
        shared: fields of every event, such as output_format and size.
        headers: of the response, by the version of the model that paints; empty if that is not known yet.
        keep_alive: seconds.
    """
    events: asyncio.Queue[Preview | FinishedImages | Exception] = asyncio.Queue()

    async def working() -> None:
        try:
            events.put_nowait(await work(events.put_nowait))
        except Exception as error:
            events.put_nowait(error)

    task = asyncio.create_task(working())
    try:
        first = await while_connected(request, _within(events, keep_alive))
        if isinstance(first, Exception):
            raise first
    except BaseException:
        await cancel_all([task])
        raise

    async def told_events() -> AsyncIterator[bytes]:
        leaving, event = asyncio.create_task(_gone(request)), first
        try:
            while True:
                if event is None:
                    yield KEEP_ALIVE
                else:
                    for line in _lines(kind, event, shared):
                        yield line
                    if not isinstance(event, Preview):
                        return
                getting = asyncio.create_task(_within(events, keep_alive))
                await asyncio.wait([getting, leaving], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    await cancel_all([getting])
                    return
                event = getting.result()
        finally:
            await cancel_all([task, leaving])

    fixed = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    version = "" if first is None else first.version
    return StreamingResponse(told_events(), media_type="text/event-stream", headers={**fixed, **headers(version)})


async def _within(events: asyncio.Queue[Result], seconds: float) -> Result | None:
    """The next event; None if there is none within so many seconds."""
    getting = asyncio.create_task(events.get())
    try:
        await asyncio.wait([getting], timeout=seconds)
        return getting.result() if getting.done() else None
    finally:
        await cancel_all([getting])


def _lines(kind: str, event: Preview | FinishedImages | Exception, shared: Mapping[str, Any]) -> list[bytes]:
    now = int(time.time())
    if isinstance(event, Preview):
        words = {"partial_image_index": event.index, "image_index": event.picture}
        return [_event(f"{kind}.partial_image", {"b64_json": _text(event.file), "created_at": now, **shared, **words})]
    if isinstance(event, FinishedImages):
        told_of = {"size": event.size, "model": event.model, "version": event.version}
        return [
            _event(
                f"{kind}.completed",
                {"b64_json": _text(file), "created_at": event.created, **shared, **told_of, "seed": seed, "image_index": index},
            )
            for index, (seed, file) in enumerate(event.files)
        ]
    return [_event("error", {"type": "error", **body(told(event))}, "error")]


def _event(kind: str, data: Mapping[str, Any], name: str = "") -> bytes:
    return f"event: {name or kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode()


async def _gone(request: Request) -> None:
    """Returns when the connection is closed."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
