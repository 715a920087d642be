"""What can be asked of a registry, wherever it is: the engine on a database, or the client of a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from sfumato.registry.records import Base, Lineage, Move, Page, Version, WeightedAdapter

Merge = Literal["stack", "mean"]


class Models(Protocol):
    """`services.registry.engine.Registry` says of each what it does in full, and how it fails."""

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
        """Keep a version; ``files`` by SHA-256 are adapters that its artifact store may not have."""
        ...

    def get(self, reference: str) -> Version:
        """A version by alias, id, or the beginning of one."""
        ...

    def resolve(self, reference: str) -> str:
        """The id that an alias points at."""
        ...

    def list(self, *, limit: int = 50, following: int = 0, base: str = "") -> Page:
        """A page of versions, newest first."""
        ...

    def adapter(self, digest: str) -> bytes:
        """An adapter's file."""
        ...

    def merge(self, references: Sequence[tuple[str, float]], how: Merge = "stack", *, rank: int | None = None, note: str = "") -> Version:
        """Versions of one base as a new one."""
        ...

    def aliases(self) -> dict[str, str]:
        """The id of the version that every alias points at."""
        ...

    def set_alias(self, alias: str, reference: str, *, expected: str, reason: str = "") -> Move:
        """Let an alias point at a version, if it still points at ``expected``."""
        ...

    def rollback(self, alias: str, *, expected: str, reason: str = "") -> Move:
        """Let an alias point where it pointed before."""
        ...

    def history(self, alias: str) -> tuple[Move, ...]:
        """All moves of an alias."""
        ...

    def lineage(self, reference: str, depth: int | None = None) -> Lineage:
        """Everything a version came of."""
        ...

    def close(self) -> None:
        """Let go of the database or the channel."""
        ...
