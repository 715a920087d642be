"""Services of the contract on a real server in a thread, called through a real channel."""

from __future__ import annotations

import asyncio
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.serving.server import Server, Service
from sfumato.runtime.serving.status import DETAILS
from sfumato.runtime.settings import ServingSettings

SECONDS = 60.0


@contextmanager
def served(services: Callable[[ServingSettings], Sequence[Service]]) -> Iterator[grpc.Channel]:
    """A channel to the services, which have loaded."""
    with served_at(services) as address, grpc.insecure_channel(address) as channel:
        yield channel


@contextmanager
def served_at(
    services: Callable[[ServingSettings], Sequence[Service]], artifacts: ArtifactStore | None = None, address: str = "127.0.0.1:0"
) -> Iterator[str]:
    """The address of the services, which have loaded; they also offer the store."""
    ready, over = threading.Event(), threading.Event()
    ports: list[int] = []
    errors: list[BaseException] = []

    async def serve() -> None:
        settings = ServingSettings(grace=1.0)
        server = Server(services(settings), settings, address, artifacts)
        ports.append(await server.start())
        await server.load()
        ready.set()
        await asyncio.to_thread(over.wait)
        await server.drain()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            errors.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait()
        assert not errors, errors
        yield f"127.0.0.1:{ports[0]}"
    finally:
        over.set()
        thread.join()
    assert not errors, errors


def told(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, list[str]]:
    """Status, reason and fields of a refused call."""
    assert isinstance(error, grpc.Call)
    info, request = ErrorInfo(), BadRequest()
    metadata: Any = error.trailing_metadata() or ()  # grpc's types say less than it is
    for key, value in metadata:
        if key == DETAILS:
            assert isinstance(value, bytes)
            for detail in Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(request)
    return error.code(), info.reason, [violation.field for violation in request.field_violations]


def bomb(side: int = 60_000) -> bytes:
    """A PNG file of a few bytes that says it has ``side x side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
