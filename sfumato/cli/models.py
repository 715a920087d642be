"""``sfumato models``: model versions, their lineage, and the aliases that production follows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.runs.records import Record
    from services.registry.engine import Registry
    from sfumato.registry.models import Models
    from sfumato.registry.records import Lineage, Version
    from sfumato.runtime.artifacts import ArtifactStore
    from sfumato.runtime.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The registry: versions, lineage, aliases.")

Reference = Annotated[str, typer.Argument(help="An alias, an id, or the first 6 digits of one or more.", metavar="VERSION")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Reason = Annotated[str, typer.Option(help="A few words for the alias's history.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of runs (default: runs/, or SFUMATO_RUNS).")]
Server = Annotated[
    str,
    typer.Option(
        help="The registry's address (default: the running system's, else the database).",
        metavar="HOST:PORT",
        envvar=["SFUMATO_REGISTRY_SERVER", "SFUMATO_SERVER"],
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Open the database even if a system is running.")]


@app.callback()
def root() -> None:
    """The registry: versions, lineage, aliases.

    The commands use the service at --server, else the running system of this folder, else the database: SFUMATO_REGISTRY_URL, or
    registry.sqlite in the folder of runs.
    """


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="The id of a finished run.", metavar="RUN_ID")],
    alias: Annotated[str, typer.Option(help="Point this alias at the run's last model.")] = "",
    note: Annotated[str, typer.Option(help="A note.")] = "",
    as_json: AsJson = False,
    runs: Runs = None,
    server: Server = "",
    local: Local = False,
) -> None:
    """Register a finished run's models, one per iteration, with their lineage: pairs, prompts, scores, seeds, libraries.

    Example: sfumato models register artaug-vista-1a2b3c4d5e --alias production
    """
    from orchestrator.runs.registering import register_run
    from sfumato.runtime.artifacts import ArtifactStore

    settings = settings_of(runs)
    artifacts = ArtifactStore(settings.artifacts_url)
    record = _finished(run, settings, artifacts)
    with opened(settings, server, local) as registry:
        made = register_run(run, record.recipe, record.plan(), artifacts, registry, note=note)
        if alias:
            _point(registry, alias, made[-1].id, f"run {run}")
        entries = [_entry(registry.get(version.id)) for version in made]
    if as_json:
        typer.echo(json.dumps({"run": run, "versions": entries}, indent=1))
    else:
        for entry in entries:
            typer.echo(f"{entry['id'][:12]}  {entry['note']}  {' '.join(entry['aliases'])}".rstrip())


def _finished(run: str, settings: Settings, artifacts: ArtifactStore) -> Record:
    """The record of a finished run.

    Raises:
        InvalidInput: there is no such run, or it is not finished.
    """
    from orchestrator.runs.records import Records
    from sfumato.errors import InvalidInput, NotFound

    records = Records(artifacts, settings.runs)
    try:
        record, ended = records.record(run)[0], records.outcome(run)
    except NotFound as error:
        hint = "Its id is the name of its folder there."
        raise InvalidInput("run", f"there is no run {run!r} in {settings.runs}.", hint=hint) from error
    if ended is None or ended.outcome.state != "finished":
        raise InvalidInput("run", f"{run} is not finished.", hint=f"Let it continue: sfumato run --resume {run}")
    return record


@app.command(name="ls")
def list_versions(
    limit: Annotated[int, typer.Option(min=1, max=500, help="The most versions to list, newest first.")] = 50,
    following: Annotated[int, typer.Option(help="The token of the next page, as --json gives it.", metavar="TOKEN")] = 0,
    as_json: AsJson = False,
    runs: Runs = None,
    server: Server = "",
    local: Local = False,
) -> None:
    """List the versions.

    Example: sfumato models ls
    """
    with opened(settings_of(runs), server, local) as registry:
        page = registry.list(limit=limit, following=following)
    if as_json:
        typer.echo(json.dumps({"versions": [_entry(version) for version in page.versions], "following": page.following}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("version", "aliases", "base", "adapters", "registered", "note")
    for version in page.versions:
        weights = ", ".join(f"{part.adapter[:8]} x {part.weight:g}" for part in version.parts) or "none"
        table.add_row(version.id[:12], " ".join(version.aliases), version.base.name, weights, _when(version.created), version.note)
    Console().print(table)
    if page.following:
        typer.echo(f"more: sfumato models ls --following {page.following}")


@app.command()
def show(version: Reference, as_json: AsJson = False, runs: Runs = None, server: Server = "", local: Local = False) -> None:
    """Print a version's parts and metrics; for an alias also its history.

    Example: sfumato models show production
    """
    with opened(settings_of(runs), server, local) as registry:
        found = registry.get(version)
        history = registry.history(version) if version in found.aliases else ()
    if as_json:
        typer.echo(json.dumps(_entry(found) | {"history": [asdict(move) for move in history]}, indent=1))
        return
    typer.echo(f"version  {found.id}")
    typer.echo(f"base     {found.base.name} ({found.base.id[:12]})")
    for part in found.parts:
        typer.echo(f"adapter  {part.adapter} x {part.weight:g}")
    for name, value in found.metrics.items():
        typer.echo(f"metric   {name} = {value:g}")
    for label, words in (("aliases", " ".join(found.aliases)), ("note", found.note), ("since", _when(found.created))):
        if words:
            typer.echo(f"{label:<8} {words}")
    for move in history:
        typer.echo(f"{_when(move.moved)}  {move.alias} -> {move.version[:12]}  {move.reason}".rstrip())


@app.command()
def lineage(
    version: Reference,
    depth: Annotated[int | None, typer.Option(min=0, help="The most steps back (default: all).")] = None,
    as_json: AsJson = False,
    runs: Runs = None,
    server: Server = "",
    local: Local = False,
) -> None:
    """Print a version's lineage: adapters, pairs, prompts, parents, run, seeds, libraries; each node once.

    Example: sfumato models lineage production --depth 2
    """
    with opened(settings_of(runs), server, local) as registry:
        found, graph = registry.get(version), registry.lineage(version, depth)
    if as_json:
        nodes = [{"id": node.id, "content": dict(node.content)} for node in graph.nodes]
        typer.echo(json.dumps({"version": found.id, "nodes": nodes, "edges": [asdict(edge) for edge in graph.edges]}, indent=1))
        return
    from rich.console import Console

    Console(highlight=False).print(_tree(graph, f"version:{found.id}"))


@app.command()
def promote(
    version: Reference,
    to: Annotated[str, typer.Option(help="The alias to move.")] = "production",
    expected: Annotated[str, typer.Option(help="Move it only if it points at this version now (default: in any case).")] = "",
    reason: Reason = "",
    runs: Runs = None,
    server: Server = "",
    local: Local = False,
) -> None:
    """Point an alias at a version; of concurrent moves one succeeds.

    Example: sfumato models promote 3fa94c --to production --reason "better skies"
    """
    with opened(settings_of(runs), server, local) as registry:
        typer.echo(_point(registry, to, version, reason, registry.resolve(expected) if expected else None))


@app.command()
def rollback(
    alias: Annotated[str, typer.Argument(help="The alias to move back.")] = "production",
    reason: Reason = "",
    runs: Runs = None,
    server: Server = "",
    local: Local = False,
) -> None:
    """Point an alias at its previous version; each repetition goes one version further back.

    Example: sfumato models rollback production --reason "too dark"
    """
    with opened(settings_of(runs), server, local) as registry:
        move = registry.rollback(alias, expected=registry.aliases().get(alias, ""), reason=reason)
    typer.echo(f"{move.alias}: {move.previous[:12]} -> {move.version[:12]}")


@app.command()
def gc(
    days: Annotated[float, typer.Option(min=0, help="Keep everything younger than this many days.")] = 7.0,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it instead of only listing it.")] = False,
    as_json: AsJson = False,
    runs: Runs = None,
) -> None:
    """Remove versions that no alias ever pointed at and that no kept version came from. Files of runs stay.

    For operators: it works directly on the database and the artifact store, whether services are running or not.

    Example: sfumato models gc --days 30 --remove
    """
    with _database(settings_of(runs)) as registry:
        found = registry.collect(older_than=days * 86_400, dry_run=not remove)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"removed": remove}, indent=1))
        return
    done = "removed" if remove else "would be removed (add --remove)"
    typer.echo(f"{len(found.versions)} versions, {len(found.adapters)} adapters, {found.bytes:,} bytes {done}")


def settings_of(runs: Path | None) -> Settings:
    """This machine's settings, with the folder of runs replaced if one is given."""
    from sfumato.runtime.settings import Settings

    return Settings() if runs is None else Settings(runs=runs)


@contextmanager
def opened(settings: Settings, server: str, local: bool) -> Iterator[Models]:
    """The registry: the service, or the database."""
    from sfumato.cli.servers import server_of

    address = server_of("registry", server, local, settings.runs)
    if not address:
        with _database(settings) as registry:
            yield registry
        return
    from sfumato.registry.client import RegistryClient

    with RegistryClient(address) as client:
        yield client


@contextmanager
def _database(settings: Settings) -> Iterator[Registry]:
    from services.registry.database import Database
    from services.registry.engine import Registry
    from sfumato.runtime.artifacts import ArtifactStore

    registry = Registry(Database(settings.registry_database), ArtifactStore(settings.artifacts_url))
    try:
        yield registry
    finally:
        registry.close()


def _point(registry: Models, alias: str, version: str, reason: str, expected: str | None = None) -> str:
    """Move an alias from ``expected``, or from where it points; returns a sentence about it."""
    current = registry.aliases().get(alias, "") if expected is None else expected
    move = registry.set_alias(alias, version, expected=current, reason=reason)
    if move.version == current:
        return f"{alias} points at {current[:12]} already"
    return f"{move.alias}: {move.previous[:12] or 'new'} -> {move.version[:12]}"


def _entry(version: Version) -> dict[str, Any]:
    """A version as JSON, without the base's modules, which are many."""
    entry = asdict(version)
    entry["base"] = {"id": version.base.id, "name": version.base.name}
    return entry


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _tree(graph: Lineage, start: str) -> Any:
    """The graph as a printable tree; a node that is reached again has no children there."""
    from rich.markup import escape
    from rich.tree import Tree

    sources: dict[str, list[tuple[str, str]]] = {}
    for edge in graph.edges:
        sources.setdefault(edge.node, []).append((edge.relation, edge.source))
    content = {node.id: node.content for node in graph.nodes}
    tree, seen = Tree(escape(_line(start, content))), {start}
    open_ends = [(start, tree)]
    while open_ends:
        node, branch = open_ends.pop(0)
        for relation, source in sources.get(node, []):
            twice = source in seen and bool(sources.get(source))
            inner = branch.add(escape(f"{relation} {_line(source, content)}{' (see above)' if twice else ''}"))
            if source not in seen:
                seen.add(source)
                open_ends.append((source, inner))
    return tree


def _line(id: str, content: Mapping[str, Mapping[str, Any]]) -> str:
    """A node as one line: kind, start of its digest, and its first few plain values."""
    kind, _, digest = id.partition(":")
    plain = [f"{key}={value}" for key, value in content.get(id, {}).items() if isinstance(value, str | int | float)]
    return f"{kind} {digest[:12]} {', '.join(plain[:4])}".rstrip()[:160]
