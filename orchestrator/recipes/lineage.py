"""What a run registers: models, and the graph of everything that each came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sfumato.registry.records import Base, Edge, Lineage, Node, Version


@dataclass(frozen=True, slots=True)
class Product:
    """A model that a finished run made: its adapter by SHA-256, what was measured, a note, and its lineage.

    ``lineage`` is given the base model and the version that was registered before this one (first the base model's).
    """

    adapter: str
    note: str
    metrics: Mapping[str, float]
    lineage: Callable[[Base, Version], Lineage]


@dataclass(slots=True)
class LineageGraph:
    """Nodes and edges as they are added, each once, in that order."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)

    def add(self, node: Node, relation: str, source: Node) -> None:
        """Add an edge and both its ends. Where both ends are the same thing (a sum of one adapter is that adapter), there is no edge."""
        self.nodes.setdefault(node.id, node)
        self.nodes.setdefault(source.id, source)
        if node.id != source.id:
            self.edges[Edge(node.id, relation, source.id)] = None

    def lineage(self) -> Lineage:
        """The graph as the registry keeps it."""
        return Lineage(tuple(self.nodes.values()), tuple(self.edges))
