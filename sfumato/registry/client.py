"""A client of the registry's service, with the methods and errors of its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

import grpc

from sfumato.errors import NotFound, Unavailable
from sfumato.registry import messages
from sfumato.registry.models import Merge
from sfumato.registry.records import Base, Lineage, Move, Page, RegistryEvent, Version, WeightedAdapter
from sfumato.runtime.client import calling, channel, download, upload
from sfumato.runtime.settings import ClientSettings
from sfumato.v1 import registry_pb2 as pb
from sfumato.v1.registry_pb2_grpc import RegistryServiceStub

METHODS = {"stack": pb.MERGE_METHOD_STACK, "mean": pb.MERGE_METHOD_MEAN}
PAUSE = 0.2
"""Seconds before a broken watch is started again."""


class RegistryClient:
    """A registry's service as `Models`. Use it as a context manager, or close it."""

    def __init__(self, address: str, settings: ClientSettings | None = None) -> None:
        """Connects on the first call; see `sfumato.runtime.client.channel`."""
        self._address, self._closed = address, False
        self._channel: grpc.Channel = channel(address, settings)
        self._stub = RegistryServiceStub(self._channel)

    def __enter__(self) -> RegistryClient:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the channel."""
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._closed = True
        self._channel.close()

    def register(
        self,
        base: Base,
        parts: Sequence[WeightedAdapter] = (),
        *,
        files: Mapping[str, bytes] | None = None,
        lineage: Lineage = Lineage(),  # noqa: B008 (immutable)
        metrics: Mapping[str, float] | None = None,
        note: str = "",
    ) -> Version:
        """Register a version; ``files`` that the service's store lacks are uploaded first."""
        for data in (files or {}).values():
            upload(self._channel, data)
        request = pb.RegisterRequest(
            base=messages.base_to(base),
            adapters=messages.parts_to(parts),
            lineage=messages.lineage_to(lineage),
            metrics=metrics or {},
            note=note,
        )
        with calling(self._address):
            return messages.version_from(self._stub.Register(request).version)

    def get(self, reference: str) -> Version:
        """A version by alias, id, or a prefix of an id; without its base's modules."""
        _named(reference)
        with calling(self._address):
            return messages.version_from(self._stub.GetVersion(pb.GetVersionRequest(version=reference)).version)

    def resolve(self, reference: str) -> str:
        """The id that an alias points at."""
        _named(reference)
        with calling(self._address):
            return self._stub.Resolve(pb.ResolveRequest(version=reference)).id

    def list(self, *, limit: int = 50, following: int = 0, base: str = "") -> Page:
        """A page of versions, newest first."""
        with calling(self._address):
            page = self._stub.ListVersions(pb.ListVersionsRequest(limit=limit, following=following, base=base))
        return Page(tuple(map(messages.version_from, page.versions)), page.following)

    def adapter(self, digest: str) -> bytes:
        """An adapter's file."""
        return download(self._channel, digest)

    def merge(
        self, references: Sequence[tuple[str, float]], how: Merge = "stack", *, rank: int | None = None, note: str = ""
    ) -> Version:
        """Merge versions of one base into a new one."""
        sources = [pb.MergeSource(version=version, weight=weight) for version, weight in references]
        with calling(self._address):
            answer = self._stub.Merge(pb.MergeRequest(sources=sources, method=METHODS[how], rank=rank, note=note))
        return messages.version_from(answer.version)

    def aliases(self) -> dict[str, str]:
        """The id of the version that every alias points at."""
        with calling(self._address):
            return dict(sorted(self._stub.ListAliases(pb.ListAliasesRequest()).aliases.items()))

    def set_alias(self, alias: str, reference: str, *, expected: str, reason: str = "") -> Move:
        """Move an alias to a version, if it still points at ``expected``."""
        request = pb.SetAliasRequest(alias=alias, version=reference, expected=expected, reason=reason)
        with calling(self._address):
            return messages.move_from(self._stub.SetAlias(request).move)

    def rollback(self, alias: str, *, expected: str, reason: str = "") -> Move:
        """Move an alias back to the version before."""
        if not expected:
            raise NotFound(f"There is no alias {alias!r}.")
        with calling(self._address):
            return messages.move_from(self._stub.Rollback(pb.RollbackRequest(alias=alias, expected=expected, reason=reason)).move)

    def history(self, alias: str) -> tuple[Move, ...]:
        """All moves of an alias."""
        with calling(self._address):
            return tuple(map(messages.move_from, self._stub.ListMoves(pb.ListMovesRequest(alias=alias)).moves))

    def lineage(self, reference: str, depth: int | None = None) -> Lineage:
        """The lineage of a version."""
        _named(reference)
        with calling(self._address):
            answer = self._stub.GetLineage(pb.GetLineageRequest(version=reference, depth=depth))
        return messages.lineage_from(answer.lineage)

    def latest(self) -> int:
        """The number of the last event: a caller that reads the state after this, and watches from this number on, misses nothing."""
        answers = self._stub.WatchRegistry(pb.WatchRegistryRequest())
        try:
            with calling(self._address):
                return next(iter(answers)).number
        finally:
            answers.cancel()

    def watch(self, after: int | None = None) -> Iterator[RegistryEvent]:
        """Events as they come, after number ``after`` (None: from now on), until the client is closed.

        When the service restarts, the watch is started again after the last event, at any replica: no event is missed or repeated.

        Raises:
            InvalidInput: the registry has fewer events than ``after``.
            Unavailable: the service did not answer the first call.
        """
        begun = False
        while not self._closed:
            answers = self._stub.WatchRegistry(pb.WatchRegistryRequest(after=after), wait_for_ready=begun)
            try:
                with calling(self._address):
                    for answer in answers:
                        begun, after = True, answer.number
                        if answer.HasField("event"):
                            yield messages.event_from(answer.event)
            except Unavailable:
                if not begun:
                    raise
                time.sleep(PAUSE)
            finally:
                answers.cancel()


def _named(reference: str) -> None:
    """Raise the engine's NotFound for a reference that the protocol does not allow."""
    if not 1 <= len(reference) <= 64:
        raise NotFound(f"There is no version or alias {reference[:80]!r}.", hint="See: sfumato models ls")
