"""The registry's service: translates messages to engine calls and back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from services.registry.engine import Registry
from services.registry.watching import Watching
from sfumato.errors import InvalidInput
from sfumato.registry import messages
from sfumato.registry.models import Merge
from sfumato.runtime.serving.engine_queue import Caller, EngineQueue
from sfumato.runtime.serving.images import within
from sfumato.v1 import registry_pb2 as pb
from sfumato.v1.registry_pb2_grpc import RegistryServiceServicer

METHODS: dict[int, Merge] = {pb.MERGE_METHOD_UNSPECIFIED: "stack", pb.MERGE_METHOD_STACK: "stack", pb.MERGE_METHOD_MEAN: "mean"}
Result = TypeVar("Result")


class RegistryServicer(RegistryServiceServicer):
    """See ``protos/sfumato/v1/registry.proto``. Writes are serialized in the lane, as in the database; reads run concurrently."""

    def __init__(self, lane: EngineQueue[Registry], interval: float = 0.5) -> None:
        """``interval``: seconds between two queries for new events, while there are watchers."""
        self._lane = lane
        self._watching = Watching(lambda: lane.engine, interval)

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        """Keep a version."""

        def work(registry: Registry, caller: Caller) -> pb.RegisterResponse:
            base, parts = messages.base_from(request.base), messages.parts_from(request.adapters)
            files = {hashlib.sha256(data).hexdigest(): data for data in request.files}
            for index, digest in enumerate(files):
                if all(part.adapter != digest for part in parts):
                    raise InvalidInput(f"files[{index}]", f"has the SHA-256 {digest}, which no adapter names.")
            lineage = messages.lineage_from(request.lineage, messages.own_node(base, parts))
            caller.check()
            with within("", adapter="adapters", sha256="files"):
                version = registry.register(base, parts, files=files, lineage=lineage, metrics=request.metrics, note=request.note)
            return pb.RegisterResponse(version=messages.version_to(version))

        return await self._lane.call(work)

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        """A version."""
        return pb.GetVersionResponse(version=messages.version_to(await self._read(lambda registry: registry.get(request.version))))

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveResponse:
        """The id that an alias points at."""
        return pb.ResolveResponse(id=await self._read(lambda registry: registry.resolve(request.version)))

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        """A page of versions."""
        limit = request.limit if request.HasField("limit") else 50
        page = await self._read(lambda registry: registry.list(limit=limit, following=request.following, base=request.base))
        return pb.ListVersionsResponse(versions=map(messages.version_to, page.versions), following=page.following)

    async def Merge(self, request: pb.MergeRequest, context: Any) -> pb.MergeResponse:
        """Versions as a new one."""

        def work(registry: Registry, caller: Caller) -> pb.MergeResponse:
            sources = [(source.version, source.weight if source.HasField("weight") else 1.0) for source in request.sources]
            rank = request.rank if request.HasField("rank") else None
            caller.check()
            with within("", version="sources", versions="sources", adapters="sources", adapter="sources"):
                version = registry.merge(sources, METHODS[request.method], rank=rank, note=request.note)
            return pb.MergeResponse(version=messages.version_to(version))

        return await self._lane.call(work)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """Let an alias point at a version."""

        def work(registry: Registry, caller: Caller) -> pb.SetAliasResponse:
            caller.check()
            move = registry.set_alias(request.alias, request.version, expected=request.expected, reason=request.reason)
            return pb.SetAliasResponse(move=messages.move_to(move))

        return await self._lane.call(work)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> pb.RollbackResponse:
        """Let an alias point where it pointed before."""

        def work(registry: Registry, caller: Caller) -> pb.RollbackResponse:
            caller.check()
            move = registry.rollback(request.alias, expected=request.expected, reason=request.reason)
            return pb.RollbackResponse(move=messages.move_to(move))

        return await self._lane.call(work)

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        """All aliases."""
        return pb.ListAliasesResponse(aliases=await self._read(lambda registry: registry.aliases()))

    async def ListMoves(self, request: pb.ListMovesRequest, context: Any) -> pb.ListMovesResponse:
        """All moves of an alias."""
        return pb.ListMovesResponse(moves=map(messages.move_to, await self._read(lambda registry: registry.history(request.alias))))

    async def GetLineage(self, request: pb.GetLineageRequest, context: Any) -> pb.GetLineageResponse:
        """What a version came of."""
        depth = request.depth if request.HasField("depth") else None

        def work(registry: Registry) -> pb.GetLineageResponse:
            version = registry.resolve(request.version)
            return pb.GetLineageResponse(version=version, lineage=messages.lineage_to(registry.lineage(version, depth)))

        return await self._read(work)

    async def WatchRegistry(self, request: pb.WatchRegistryRequest, context: Any) -> AsyncIterator[pb.WatchRegistryResponse]:
        """Everything that happens."""
        after = await self._watching.begin(request.after if request.HasField("after") else None)
        yield pb.WatchRegistryResponse(number=after)
        async for event in self._watching.events(after):
            yield pb.WatchRegistryResponse(number=event.number, event=messages.event_to(event))

    async def _read(self, work: Callable[[Registry], Result]) -> Result:
        return await asyncio.to_thread(work, self._lane.engine)
