"""The artifact store over gRPC: digests and bytes, never paths. Every service offers it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from sfumato.errors import Busy, InvalidInput, NotFound, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.v1.artifacts_pb2 import GetRequest, GetResponse, PutRequest, PutResponse, StatRequest, StatResponse
from sfumato.v1.artifacts_pb2_grpc import ArtifactServiceServicer, add_ArtifactServiceServicer_to_server

NAME = "sfumato.v1.ArtifactService"
CHUNK = 2**19
"""Bytes of a chunk, below any message limit."""
PATIENCE = 60.0
"""Seconds that a sender may pause; its received bytes occupy memory meanwhile."""


def mount(server: grpc.aio.Server, artifacts: ArtifactStore, limit: int) -> str:
    """Add the store to a server; returns the service's name."""
    add_ArtifactServiceServicer_to_server(ArtifactServicer(artifacts, limit), server)
    return NAME


class ArtifactServicer(ArtifactServiceServicer):
    """See ``protos/sfumato/v1/artifacts.proto``."""

    def __init__(self, artifacts: ArtifactStore, limit: int, patience: float = PATIENCE) -> None:
        """``limit`` is in bytes, for one uploaded file and for all files in transit at the same time."""
        self._artifacts, self._limit, self._patience = artifacts, limit, patience
        self._held = 0

    async def Put(self, request_iterator: AsyncIterator[PutRequest], context: Any) -> PutResponse:
        """Store a file, sent in chunks."""
        data, expected = bytearray(), ""
        with self._holding() as hold:
            async for piece in self._patiently(request_iterator):
                if not data and not expected:
                    expected = piece.digest
                if not expected or piece.digest not in ("", expected):
                    raise InvalidInput("digest", "must come with the first piece and stay the same.", hint="Send the whole file's SHA-256.")
                if len(data) + len(piece.chunk) > self._limit:
                    raise InvalidInput("chunk", f"the file is larger than the {self._limit} bytes this service takes.")
                hold(len(piece.chunk))
                data += piece.chunk
            if not expected:
                raise InvalidInput("digest", "nothing was sent.", hint="Send the file's SHA-256 in the first piece.")
            return await asyncio.to_thread(self._put, bytes(data), expected)

    async def _patiently(self, pieces: AsyncIterator[PutRequest]) -> AsyncIterator[PutRequest]:
        while True:
            try:
                yield await asyncio.wait_for(anext(pieces), self._patience)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Unavailable(f"No piece came for {self._patience:g} seconds.", hint="Send the file again.") from None

    def _put(self, data: bytes, expected: str) -> PutResponse:
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise InvalidInput("digest", f"the bytes that came have the SHA-256 {found}.", hint="Send the file again.")
        return PutResponse(digest=self._artifacts.put(data), size=len(data))

    async def Get(self, request: GetRequest, context: Any) -> AsyncIterator[GetResponse]:
        """A file in chunks, in order."""
        size = await asyncio.to_thread(self._artifacts.size, request.digest)
        if size is None:
            raise NotFound(f"digest: there is no artifact {request.digest}.", hint="Is it in the store that this service uses?")
        with self._holding() as hold:
            hold(size)
            data = await asyncio.to_thread(self._artifacts.get, request.digest)
            for start in range(0, len(data), CHUNK):
                yield GetResponse(chunk=data[start : start + CHUNK])

    async def Stat(self, request: StatRequest, context: Any) -> StatResponse:
        """Whether a file is stored, and its size."""
        size = await asyncio.to_thread(self._artifacts.size, request.digest)
        return StatResponse(held=size is not None, size=size or 0)

    @contextmanager
    def _holding(self) -> Iterator[Any]:
        """Yields a function that counts the bytes this call holds in memory; they are released at the end."""
        mine = 0

        def hold(count: int) -> None:
            nonlocal mine
            # A single file passes whatever its size: it was stored already, or is within the limit.
            if self._held > mine and self._held + count > self._limit:
                raise Busy("Other files are on their way to and from this service.", hint="Try again in a moment.")
            mine += count
            self._held += count

        try:
            yield hold
        finally:
            self._held -= mine
