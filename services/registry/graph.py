"""The lineage graph, from products to their sources. It is append-only and acyclic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.registry import tables
from sfumato.errors import InvalidInput
from sfumato.registry.records import KIND, Edge, Lineage, Node, check_digest, digest_of

# Maximum ids of one query; SQLite allows 32 766.
CHUNK = 1000


def grow(session: Session, lineage: Lineage) -> None:
    """Add nodes and edges; existing ones are left unchanged.

    Raises:
        InvalidInput: a digest that is not its content's, an edge to a missing node, or a cycle.
    """
    nodes = {node.id: _checked(node) for node in lineage.nodes}
    edges = dict.fromkeys(lineage.edges)
    ends = {end for edge in edges for end in (edge.node, edge.source)}
    there = _existing(session, ends | set(nodes))
    nowhere = sorted(ends - there - set(nodes))
    if nowhere:
        raise InvalidInput("lineage", f"an edge leads to {nowhere[0][:100]!r}, which is not there.", hint="Send its node as well.")
    for edge in edges:
        if not KIND.fullmatch(edge.relation):
            raise InvalidInput("lineage", f"{edge.relation[:80]!r} is no name of a relation.", hint="Use a-z and _, at most 31.")
    known = {(row.node_id, row.relation, row.source_id) for row in _edges_of(session, {edge.node for edge in edges} & there)}
    new = [edge for edge in edges if (edge.node, edge.relation, edge.source) not in known]
    _refuse_circles(session, new, there)
    session.add_all(tables.NodeRow(id=id, kind=node.kind, content=dict(node.content)) for id, node in nodes.items() if id not in there)
    session.flush()
    session.add_all(tables.EdgeRow(node_id=edge.node, relation=edge.relation, source_id=edge.source) for edge in new)
    session.flush()


def reached(session: Session, roots: Iterable[str], depth: int | None = None) -> tuple[set[str], list[Edge]]:
    """The ids of the roots and of all nodes they came of, and the edges between them, at most ``depth`` steps away."""
    seen, edges = set(roots), []
    front, steps = set(seen), 0
    while front and (depth is None or steps < depth):
        rows = list(_edges_of(session, front))
        edges += [Edge(row.node_id, row.relation, row.source_id) for row in rows]
        front = {row.source_id for row in rows} - seen
        seen |= front
        steps += 1
    return seen, edges


def load(session: Session, roots: Iterable[str], depth: int | None = None) -> Lineage:
    """The graph from the roots on; nodes and edges in the order of their ids."""
    ids, edges = reached(session, roots, depth)
    rows = [row for part in chunks(sorted(ids)) for row in session.scalars(select(tables.NodeRow).where(tables.NodeRow.id.in_(part)))]
    nodes = sorted((Node(row.kind, row.id.partition(":")[2], row.content) for row in rows), key=lambda node: node.id)
    return Lineage(tuple(nodes), tuple(sorted(edges, key=lambda edge: (edge.node, edge.relation, edge.source))))


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in parts that fit into one query."""
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))


def _checked(node: Node) -> Node:
    if not KIND.fullmatch(node.kind):
        raise InvalidInput("lineage", f"{node.kind[:80]!r} is no kind of thing.", hint="Use a-z and _, at most 31.")
    check_digest("lineage", node.digest)
    if node.content and node.digest != digest_of({"kind": node.kind, "content": node.content}):
        raise InvalidInput("lineage", f"the digest of a {node.kind} is not its content's.", hint="Make it with Node.about.")
    return node


def _existing(session: Session, ids: set[str]) -> set[str]:
    queries = (select(tables.NodeRow.id).where(tables.NodeRow.id.in_(part)) for part in chunks(sorted(ids)))
    return {id for query in queries for id in session.scalars(query)}


def _edges_of(session: Session, nodes: set[str]) -> Iterator[tables.EdgeRow]:
    for part in chunks(sorted(nodes)):
        yield from session.scalars(select(tables.EdgeRow).where(tables.EdgeRow.node_id.in_(part)))


def _refuse_circles(session: Session, new: Sequence[Edge], there: set[str]) -> None:
    """Refuse cycles. Only a new edge can close one, through what its source came of."""
    _, old = reached(session, {edge.source for edge in new} & there)
    sources: dict[str, set[str]] = {}
    for edge in (*old, *new):
        sources.setdefault(edge.node, set()).add(edge.source)
    try:
        TopologicalSorter(sources).prepare()
    except CycleError as error:
        raise InvalidInput("lineage", f"goes in a circle through {error.args[1][0]}.", hint="Nothing comes of itself.") from error
