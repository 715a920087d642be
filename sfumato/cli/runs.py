"""``sfumato runs``: what an orchestrator drives, and what is wanted of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sfumato.runtime.settings import Settings
    from sfumato.v1 import orchestrator_pb2 as contract

app = typer.Typer(no_args_is_help=True, help="Runs that an orchestrator drives: list, watch, pause, resume, cancel.")

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
Runs = Annotated[Path | None, typer.Option(help="Where runs lie (default: runs/, or SFUMATO_RUNS).")]


@app.command()
def ls(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most, the newest first.")] = 50,
    as_json: AsJson = False,
    server: Server = "",
    runs: Runs = None,
) -> None:
    """List runs: their state, how far they are, how long they may still take."""
    from sfumato.cli import remote
    from sfumato.v1 import orchestrator_pb2 as contract

    found: list[contract.Run] = []
    with remote.connect(server, _settings(runs)) as link:
        token = ""
        while len(found) < limit and (token or not found):
            size = min(limit - len(found), 500)
            page = link.call("List", contract.OrchestratorServiceListRequest(page_size=size, page_token=token))
            found += page.runs
            token = page.next_page_token
            if not token:
                break
    if as_json:
        typer.echo(json.dumps([remote.as_json(run) for run in found], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "state", "at", "left", "submitted", box=None, pad_edge=False)
    for run in found:
        table.add_row(run.id, _state(run), _at(run), _left(run), run.submitted.ToDatetime().strftime("%Y-%m-%d %H:%M"))
    Console().print(table if found else "There are no runs yet: sfumato run SPEC")


@app.command()
def show(
    run: Run,
    files: Annotated[Path | None, typer.Option(help="Fetch the files of a finished run into this folder.")] = None,
    as_json: AsJson = False,
    server: Server = "",
    runs: Runs = None,
) -> None:
    """Say all that is known of a run."""
    from sfumato.cli import remote
    from sfumato.v1 import orchestrator_pb2 as contract

    with remote.connect(server, _settings(runs)) as link:
        told = link.call("Get", contract.OrchestratorServiceGetRequest(run_id=run))
        if files is not None:
            files.mkdir(parents=True, exist_ok=True)
            for name, digest in told.run.outcome.files.items():
                remote.save(link, files / name, digest)
    if as_json:
        typer.echo(json.dumps({**remote.as_json(told.run), "spec": json.loads(told.spec)}, indent=1))
        return
    import yaml
    from rich.console import Console
    from rich.table import Table

    console, table = Console(highlight=False), Table.grid(padding=(0, 2))
    rows = {"run": told.run.id, "state": _state(told.run), "at": _at(told.run), "left": _left(told.run), "driver": told.run.driver}
    outcome = told.run.outcome
    rows |= {"note": told.run.note, "stopped by": outcome.stop_reason, "error": outcome.error, "hint": outcome.hint}
    rows |= {f"{part} weights": version[:12] for part, version in sorted(told.run.models.items())}
    rows |= {"files": "\n".join(f"{digest[:12]}  {name}" for name, digest in sorted(outcome.files.items()))}
    rows |= {"set aside": "\n".join(map(remote.lost, outcome.set_aside))}
    rows |= {"spec": yaml.safe_dump(json.loads(told.spec), sort_keys=False, default_flow_style=None, width=100).strip()}
    for name, words in rows.items():
        if words:
            table.add_row(name, words)
    console.print(table, soft_wrap=True, markup=False)


@app.command()
def watch(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Show how a run goes on, and fetch its files when it is finished. Ctrl-C ends the watching, not the run.

    With --json every change is a line of JSON on standard output, and no file is fetched.
    """
    from sfumato.cli import remote

    settings = _settings(runs)
    with remote.connect(server, settings) as link:
        if not as_json:
            typer.echo(remote.follow(link, run, settings) / "report.html")
            return
        for update in link.watch(run, lambda: None):
            told = remote.as_json(update.run) if update.HasField("run") else remote.event_of(update.event).model_dump(mode="json")
            typer.echo(json.dumps({"run" if update.HasField("run") else "event": told}))


@app.command()
def pause(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Stop a run for now; what is begun is finished and kept."""
    from sfumato.v1.orchestrator_pb2 import PauseRequest

    _tell("Pause", PauseRequest(run_id=run), as_json, server, runs)


@app.command()
def resume(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Go on with a run that was paused, cancelled or interrupted, or that failed, from what it had finished."""
    from sfumato.v1.orchestrator_pb2 import ResumeRequest

    _tell("Resume", ResumeRequest(run_id=run), as_json, server, runs)


@app.command()
def cancel(run: Run, as_json: AsJson = False, server: Server = "", runs: Runs = None) -> None:
    """Give a run up; what it had finished is kept."""
    from sfumato.v1.orchestrator_pb2 import CancelRequest

    _tell("Cancel", CancelRequest(run_id=run), as_json, server, runs)


def _tell(method: str, request: Any, as_json: bool, server: str, runs: Path | None) -> None:
    from sfumato.cli import remote

    with remote.connect(server, _settings(runs)) as link:
        run = link.call(method, request).run
    typer.echo(json.dumps(remote.as_json(run), indent=1) if as_json else " ".join(filter(None, (f"{run.id} {_state(run)}.", run.note))))


def _settings(runs: Path | None) -> Settings:
    from sfumato.runtime.settings import Settings

    return Settings() if runs is None else Settings(runs=runs)


def _state(run: contract.Run) -> str:
    from sfumato.cli.remote import state_of

    return state_of(run) + (f" ({run.waiting} pairs)" if run.waiting else "")


def _at(run: contract.Run) -> str:
    """How far a run is, in words."""
    if not run.HasField("latest"):
        return ""
    where = f"iteration {run.latest.iteration}" if run.latest.iteration else "comparison"
    return f"{where} · {run.latest.stage}" + (f" {run.latest.done}/{run.latest.total}" if run.latest.total else "")


def _left(run: contract.Run) -> str:
    """How long it may go on."""
    if not run.HasField("remaining"):
        return ""
    minutes, seconds = divmod(run.remaining.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
