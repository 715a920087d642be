"""The models that a run registers, and the lineage graph of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sfumato.registry.records import Base, Edge, Lineage, Node, Version


@dataclass(frozen=True, slots=True)
class Product:
    """A model of a finished run: the SHA-256 of its adapter, its metrics, a note, and its lineage.

    ``lineage`` is called with the base model and the version that was registered before this one (first the base model's).
    """

    adapter: str
    note: str
    metrics: Mapping[str, float]
    lineage: Callable[[Base, Version], Lineage]


@dataclass(slots=True)
class LineageGraph:
    """Nodes and edges without duplicates, in the order of insertion."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)

    def add(self, node: Node, relation: str, source: Node) -> None:
        """Add an edge and both its nodes; no edge if they are the same node (the sum of one adapter is that adapter)."""
        self.nodes.setdefault(node.id, node)
        self.nodes.setdefault(source.id, source)
        if node.id != source.id:
            self.edges[Edge(node.id, relation, source.id)] = None

    def lineage(self) -> Lineage:
        """The graph in the registry's form."""
        return Lineage(tuple(self.nodes.values()), tuple(self.edges))
