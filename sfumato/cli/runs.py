"""``sfumato runs``: the runs that an orchestrator executes, and what to do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.cli.local_runs import LocalRuns
    from sfumato.runs.client import RunClient
    from sfumato.runs.records import RunStatus
    from sfumato.runtime.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Runs that an orchestrator executes: list, watch, pause, resume, cancel.")

PAGE = 500
"""The most runs that a page of the service has."""

SERVER_VARIABLES = ["SFUMATO_ORCHESTRATOR_SERVER", "SFUMATO_SERVER"]
Server = Annotated[
    str,
    typer.Option(
        help="The orchestrator's address, or several with commas (default: that of the system that is up here).",
        metavar="HOST:PORT",
        envvar=SERVER_VARIABLES,
    ),
]
Run = Annotated[str, typer.Argument(help="The run's id.", metavar="RUN_ID")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Local = Annotated[bool, typer.Option("--local", help="Read the records in this folder; ask no orchestrator.")]
Runs = Annotated[Path | None, typer.Option(help="The folder of the runs (default: runs/, or SFUMATO_RUNS).")]


@app.command()
def ls(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most, the newest first.")] = 50,
    as_json: AsJson = False,
    server: Server = "",
    local: Local = False,
    runs: Runs = None,
) -> None:
    """List runs: their state, their progress, the estimated time that is left. With --local, those on record in this folder."""
    from sfumato.cli import remote

    found: list[RunStatus] = []
    with _opened(server, local, _settings(runs)) as client:
        token = ""
        while len(found) < limit:
            page, token = client.page(min(limit - len(found), PAGE), token)
            found += page
            if not token:
                break
    if as_json:
        typer.echo(json.dumps([remote.as_json(run) for run in found], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "state", "at", "left", "submitted", box=None, pad_edge=False)
    for run in found:
        table.add_row(run.id, _state(run), _at(run), _left(run), run.submitted.strftime("%Y-%m-%d %H:%M"))
    Console().print(table if found else "There are no runs yet: sfumato run SPEC")


@app.command()
def show(
    run: Run,
    files: Annotated[Path | None, typer.Option(help="Fetch the files of a finished run into this folder.")] = None,
    as_json: AsJson = False,
    server: Server = "",
    local: Local = False,
    runs: Runs = None,
) -> None:
    """Show everything that is known about a run."""
    from sfumato.cli import remote

    with _opened(server, local, _settings(runs)) as client:
        status, spec = client.get(run)
        outcome = None if status.ended is None else status.ended.outcome
        if files is not None:
            files.mkdir(parents=True, exist_ok=True)
            for name, digest in (outcome.files if outcome else {}).items():
                remote.save(client, files / name, digest)
    if as_json:
        typer.echo(json.dumps({**remote.as_json(status), "spec": json.loads(spec)}, indent=1))
        return
    import yaml
    from rich.console import Console
    from rich.table import Table

    console, table = Console(highlight=False), Table.grid(padding=(0, 2))
    rows = {"run": status.id, "state": _state(status), "at": _at(status), "left": _left(status), "driver": status.driver}
    rows |= {"note": status.note}
    rows |= {f"{part} weights": version[:12] for part, version in sorted(status.models.items())}
    if outcome:
        rows |= {"stopped by": outcome.stop_reason, "error": outcome.error, "hint": outcome.hint}
        rows |= {"files": "\n".join(f"{digest[:12]}  {name}" for name, digest in sorted(outcome.files.items()))}
        rows |= {"dead letters": "\n".join(map(str, outcome.dead_lettered))}
    rows |= {"spec": yaml.safe_dump(json.loads(spec), sort_keys=False, default_flow_style=None, width=100).strip()}
    for name, words in rows.items():
        if words:
            table.add_row(name, words)
    console.print(table, soft_wrap=True, markup=False)


@app.command()
def watch(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Show the progress of a run, and fetch its files when it is finished. Ctrl-C ends the watching, not the run.

    With --json every change is a line of JSON on standard output, and no file is fetched.
    """
    from sfumato.cli import remote
    from sfumato.runs.records import RunStatus

    settings = _settings(runs)
    with remote.connect(server, settings) as client:
        if not as_json:
            typer.echo(remote.follow(client, run, settings) / "report.html")
            return
        for update in client.watch(run):
            if isinstance(update, RunStatus):
                typer.echo(json.dumps({"run": remote.as_json(update)}))
            else:
                typer.echo(json.dumps({"event": update.model_dump(mode="json")}))


@app.command()
def pause(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Pause a run; tasks that have started are finished and kept."""
    with _client(server, runs) as client:
        _tell(client.pause(run), as_json)


@app.command()
def resume(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Continue a run that was paused, cancelled or interrupted, or that failed, from what it has finished."""
    with _client(server, runs) as client:
        _tell(client.resume(run), as_json)


@app.command()
def cancel(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Cancel a run; what it has finished is kept."""
    with _client(server, runs) as client:
        _tell(client.cancel(run), as_json)


def _client(server: str, runs: Path | None) -> RunClient:
    from sfumato.cli import remote

    return remote.connect(server, _settings(runs))


def _tell(run: RunStatus, as_json: bool) -> None:
    from sfumato.cli import remote

    typer.echo(json.dumps(remote.as_json(run), indent=1) if as_json else " ".join(filter(None, (f"{run.id} {_state(run)}.", run.note))))


def _opened(server: str, local: bool, settings: Settings) -> RunClient | LocalRuns:
    """The orchestrator that a command is about, or the records in this folder."""
    if local:
        from sfumato.cli.local_runs import LocalRuns

        return LocalRuns(settings)
    from sfumato.cli import remote

    return remote.connect(server, settings)


def _settings(runs: Path | None) -> Settings:
    from sfumato.runtime.settings import Settings

    return Settings() if runs is None else Settings(runs=runs)


def _state(run: RunStatus) -> str:
    return run.state.value + (f" ({run.waiting} questions)" if run.waiting else "")


def _at(run: RunStatus) -> str:
    """How far a run is, in words."""
    from sfumato.runs.records import section_name

    event = run.latest
    if event is None:
        return ""
    return f"{section_name(*event.section)} · {event.stage}" + (f" {event.done}/{event.total}" if event.total else "")


def _left(run: RunStatus) -> str:
    """The estimate of the time that is left."""
    if run.remaining is None:
        return ""
    minutes, seconds = divmod(round(run.remaining.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
