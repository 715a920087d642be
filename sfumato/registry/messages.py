"""Conversion between records and protobuf messages, for the service and its clients."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from sfumato.errors import InvalidInput
from sfumato.registry.records import Base, Edge, Lineage, Move, Node, RegistryEvent, Version, WeightedAdapter, version_id
from sfumato.v1 import common_pb2, registry_pb2

JSON_HINT = "Give a JSON object, with finite numbers."


def base_to(base: Base) -> registry_pb2.BaseModel:
    """With its linear layers, when they are known."""
    linears = [registry_pb2.Linear(name=name, outputs=shape[0], inputs=shape[1]) for name, shape in (base.modules or {}).items()]
    return registry_pb2.BaseModel(id=base.id, name=base.name, linears=linears)


def base_from(message: registry_pb2.BaseModel) -> Base:
    """A message without linear layers gives ``modules`` of None.

    Raises:
        InvalidInput: a layer is named twice.
    """
    modules = {linear.name: [linear.outputs, linear.inputs] for linear in message.linears}
    if len(modules) != len(message.linears):
        raise InvalidInput("base.linears", "one is named twice.")
    return Base(message.id, message.name, modules or None)


def parts_to(parts: Iterable[WeightedAdapter]) -> list[common_pb2.AdapterRef]:
    """Adapters and their weights."""
    return [common_pb2.AdapterRef(artifact=part.adapter, weight=part.weight) for part in parts]


def parts_from(messages: Iterable[common_pb2.AdapterRef]) -> tuple[WeightedAdapter, ...]:
    """An absent weight is 1."""
    return tuple(WeightedAdapter(ref.artifact, ref.weight if ref.HasField("weight") else 1.0) for ref in messages)


def version_to(version: Version) -> registry_pb2.ModelVersion:
    """Without the base's linear layers, which are many."""
    return registry_pb2.ModelVersion(
        id=version.id,
        number=version.number,
        base=registry_pb2.BaseModel(id=version.base.id, name=version.base.name),
        adapters=parts_to(version.parts),
        metrics=dict(version.metrics),
        note=version.note,
        created=version.created,
        aliases=version.aliases,
    )


def version_from(message: registry_pb2.ModelVersion) -> Version:
    """Without the base's modules."""
    return Version(
        message.id,
        message.number,
        base_from(message.base),
        parts_from(message.adapters),
        dict(sorted(message.metrics.items())),
        message.note,
        message.created,
        tuple(message.aliases),
    )


def lineage_to(lineage: Lineage) -> registry_pb2.LineageGraph:
    """A node's content becomes JSON."""
    nodes = [
        registry_pb2.LineageNode(kind=node.kind, digest=node.digest, content=json.dumps(node.content) if node.content else "")
        for node in lineage.nodes
    ]
    edges = [registry_pb2.LineageEdge(node=edge.node, relation=edge.relation, source=edge.source) for edge in lineage.edges]
    return registry_pb2.LineageGraph(nodes=nodes, edges=edges)


def lineage_from(message: registry_pb2.LineageGraph, own: str = "") -> Lineage:
    """``own`` is the id of the node at which edges without a node start.

    Raises:
        InvalidInput: a node's content is not a JSON object.
    """
    nodes = tuple(Node(node.kind, node.digest, _content(node.content, index)) for index, node in enumerate(message.nodes))
    return Lineage(nodes, tuple(Edge(edge.node or own, edge.relation, edge.source) for edge in message.edges))


def own_node(base: Base, parts: tuple[WeightedAdapter, ...]) -> str:
    """The id of a version's own node."""
    return f"version:{version_id(base.id, parts)}"


def move_to(move: Move) -> registry_pb2.AliasMove:
    """Field by field."""
    return registry_pb2.AliasMove(
        alias=move.alias,
        revision=move.revision,
        previous=move.previous,
        version=move.version,
        reason=move.reason,
        moved=move.moved,
    )


def move_from(message: registry_pb2.AliasMove) -> Move:
    """Field by field."""
    return Move(message.alias, message.revision, message.previous, message.version, message.reason, message.moved)


def event_to(event: RegistryEvent) -> registry_pb2.RegistryEvent:
    """The content by the event's kind; an unknown kind has only number and time."""
    told = registry_pb2.RegistryEvent(number=event.number, happened=event.happened)
    match event.kind:
        case "registered":
            found = registry_pb2.VersionRegistered(version=event.subject, base=event.content["base"], note=event.content["note"])
            told.registered.CopyFrom(found)
        case "alias":
            told.moved.CopyFrom(registry_pb2.AliasMove(alias=event.subject, moved=event.happened, **event.content))
        case "collected":
            told.collected.version = event.subject
    return told


def event_from(message: registry_pb2.RegistryEvent) -> RegistryEvent:
    """The event as the registry stores it."""
    kind, subject, content = "", "", dict[str, Any]()
    match message.WhichOneof("what"):
        case "registered":
            kind, subject = "registered", message.registered.version
            content = {"base": message.registered.base, "note": message.registered.note}
        case "moved":
            moved = message.moved
            kind, subject = "alias", moved.alias
            content = {"version": moved.version, "previous": moved.previous, "revision": moved.revision, "reason": moved.reason}
        case "collected":
            kind, subject = "collected", message.collected.version
    return RegistryEvent(message.number, kind, subject, content, message.happened)


def _content(text: str, index: int) -> Mapping[str, Any]:
    field = f"lineage.nodes[{index}].content"

    def constant(name: str) -> NoReturn:
        raise InvalidInput(field, f"holds {name}.", hint=JSON_HINT)

    try:
        content = json.loads(text, parse_constant=constant) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(field, "is no JSON.", hint=JSON_HINT) from error
    if not isinstance(content, dict):
        raise InvalidInput(field, "is no JSON object.", hint=JSON_HINT)
    return content
