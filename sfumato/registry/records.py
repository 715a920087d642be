"""The registry's immutable data types, and how their ids are computed."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.errors import InvalidInput
from sfumato.runtime.tasks import canonical

# Raised when the meaning of a version's content changes.
REVISION = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
# A prefix of an id with at least 6 digits names it; an alias must not look like one.
PREFIX = re.compile(r"[0-9a-f]{6,64}")
ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,62}")
KIND = re.compile(r"[a-z][a-z_]{0,30}")
MAX_ADAPTERS = 64
MAX_TEXT = 2000
MAX_CONTENT = 1 << 20


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """One adapter of a version: the SHA-256 of its file, and the weight of its update."""

    adapter: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Base:
    """A base model: ``id`` is the hash of its files (`sfumato.runtime.models.versions.model_version`), ``name`` its common name.

    ``modules``: ``[out, in]`` by ``<denoiser>.<module>``, or None when unknown; adapters are not checked against them then.
    """

    id: str
    name: str
    modules: Mapping[str, list[int]] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the lineage, named by the digest of its bytes if it has any (``content`` is empty then), else of its content."""

    kind: str
    digest: str
    content: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def about(cls, kind: str, **content: Any) -> Node:
        """A node that consists of its content only: a prompt, a pair, an iteration, a run."""
        return cls(kind, digest_of({"kind": kind, "content": content}), content)

    @property
    def id(self) -> str:
        """``<kind>:<digest>``."""
        return f"{self.kind}:{self.digest}"


@dataclass(frozen=True, slots=True)
class Edge:
    """``node`` came of ``source``; both are ids of nodes, ``relation`` says how."""

    node: str
    relation: str
    source: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """A graph from products to their sources."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """A registered model; it never changes, except ``aliases``, which point at it now. ``created`` in seconds since 1970."""

    id: str
    number: int
    base: Base
    parts: tuple[WeightedAdapter, ...]
    metrics: Mapping[str, float]
    note: str
    created: float
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of versions, newest first; ``following`` is the token of the next page, 0 on the last page."""

    versions: tuple[Version, ...]
    following: int


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an alias from ``previous`` (empty: it was new) to ``version``; ``revision`` counts its moves from 1."""

    alias: str
    revision: int
    previous: str
    version: str
    reason: str
    moved: float


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """An event of kind ``registered``, ``alias`` or ``collected``. Numbers have no gaps."""

    number: int
    kind: str
    subject: str
    content: Mapping[str, Any]
    happened: float


@dataclass(frozen=True, slots=True)
class Collection:
    """What garbage collection deletes (or would): ids of versions, adapters and lineage nodes; bytes freed in the store."""

    versions: tuple[str, ...]
    adapters: tuple[str, ...]
    nodes: tuple[str, ...]
    bytes: int


def digest_of(content: Any) -> str:
    """SHA-256 of the content's canonical JSON.

    Raises:
        InvalidInput: the content is not JSON, or too long.
    """
    try:
        data = canonical(content)
    except (TypeError, ValueError) as error:
        raise InvalidInput("lineage", f"holds what is not JSON: {error}.") from error
    if len(data) > MAX_CONTENT:
        hint = "Put it into the artifact store and name its digest."
        raise InvalidInput("lineage", f"one thing has {len(data):,} bytes; the limit is {MAX_CONTENT:,}.", hint=hint)
    return hashlib.sha256(data).hexdigest()


def version_id(base: str, parts: tuple[WeightedAdapter, ...]) -> str:
    """A version's id: the hash of its base, its adapters and their weights, in their order (the order changes the last bits of a sum)."""
    adapters = [{"sha256": part.adapter, "weight": float(part.weight)} for part in parts]
    return hashlib.sha256(canonical({"revision": REVISION, "base": base, "adapters": adapters})).hexdigest()


def check_digest(field_name: str, value: str) -> str:
    """The value, if it is a SHA-256 in lower-case hex.

    Raises:
        InvalidInput: it is not.
    """
    if not DIGEST.fullmatch(value):
        raise InvalidInput(field_name, f"{value[:80]!r} is no SHA-256.", hint="Give its 64 lower-case hexadecimal digits.")
    return value


def check_parts(parts: tuple[WeightedAdapter, ...]) -> None:
    """Check that the adapters and weights can form a version.

    Raises:
        InvalidInput: too many adapters, not a digest, or a weight that is not finite.
    """
    if len(parts) > MAX_ADAPTERS:
        raise InvalidInput("adapters", f"{len(parts)} are more than {MAX_ADAPTERS}.", hint="Merge some of them first.")
    for part in parts:
        check_digest("adapters", part.adapter)
        if not math.isfinite(part.weight):
            raise InvalidInput("adapters", f"the weight {part.weight} is not a finite number.")


def check_alias(name: str) -> str:
    """The name, if it is a valid alias that cannot be taken for an id.

    Raises:
        InvalidInput: it is not.
    """
    if not ALIAS.fullmatch(name):
        raise InvalidInput("alias", f"{name[:80]!r} is no alias.", hint="Use a-z, 0-9 and .-_, at most 63, beginning with a letter.")
    if PREFIX.fullmatch(name):
        raise InvalidInput("alias", f"{name!r} could be the beginning of an id.", hint="Use a name with another letter than a to f.")
    return name


def check_text(field_name: str, value: str) -> str:
    """The text, if it is short enough and has no NUL, which databases cannot store.

    Raises:
        InvalidInput: it is too long, or has a NUL.
    """
    if len(value) > MAX_TEXT or "\0" in value:
        raise InvalidInput(field_name, f"is longer than {MAX_TEXT} characters, or holds a NUL.")
    return value


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, if they are finite numbers with short names; sorted by name.

    Raises:
        InvalidInput: names the metric that is not.
    """
    for name, value in metrics.items():
        check_text("metrics", name)
        if not math.isfinite(value):
            raise InvalidInput("metrics", f"{name[:80]} is not a finite number.")
    return {name: float(value) for name, value in sorted(metrics.items())}
