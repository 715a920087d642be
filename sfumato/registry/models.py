"""The registry's interface, which the engine on a database and the client of a service share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from sfumato.registry.records import Base, Lineage, Move, Page, Version, WeightedAdapter

Merge = Literal["stack", "mean"]


class Models(Protocol):
    """`services.registry.engine.Registry` documents the methods and their errors in full."""

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
        """Register a version; ``files``, by SHA-256, are adapters that the artifact store may lack."""
        ...

    def get(self, reference: str) -> Version:
        """A version by alias, id, or a prefix of an id."""
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
        """Merge versions of one base into a new one."""
        ...

    def aliases(self) -> dict[str, str]:
        """The id of the version that every alias points at."""
        ...

    def set_alias(self, alias: str, reference: str, *, expected: str, reason: str = "") -> Move:
        """Move an alias to a version, if it still points at ``expected``."""
        ...

    def rollback(self, alias: str, *, expected: str, reason: str = "") -> Move:
        """Move an alias back to the version before."""
        ...

    def history(self, alias: str) -> tuple[Move, ...]:
        """All moves of an alias."""
        ...

    def lineage(self, reference: str, depth: int | None = None) -> Lineage:
        """The lineage of a version."""
        ...

    def close(self) -> None:
        """Close the database or the channel."""
        ...
