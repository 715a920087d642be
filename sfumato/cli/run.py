"""``sfumato run``: a recipe from its spec to its report, resumable at any point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.runs import Server

if TYPE_CHECKING:
    from orchestrator.recipes.artaug import Plan
    from sfumato.runtime.settings import Settings


def run(
    spec: Annotated[Path | None, typer.Argument(help="A run spec (YAML); see configs/.", metavar="[SPEC]")] = None,
    resume: Annotated[str, typer.Option("--resume", metavar="ID", help="Go on with a run by its id.")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Check the spec, print what it would cost; start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the report's path.")] = False,
    runs: Annotated[Path | None, typer.Option(help="Where runs lie (default: runs/, or SFUMATO_RUNS).")] = None,
    server: Server = "",
    local: Annotated[bool, typer.Option("--local", help="Run it in this process, whatever is up.")] = False,
) -> None:
    """Run the loop until it brings no more; what is finished already is not done again. Prints the path of the report.

    A run's id is its spec's name and a hash of all its result depends on, so the same spec goes on where it stood. The orchestrator at
    --server does it, else that of the system that is up here, else this process; Ctrl-C ends this process's run, and only the
    watching of another's. The files are the same either way, byte by byte.

    Examples: sfumato run configs/artaug-vista.yaml; sfumato run configs/artaug-flux1-dev.yaml --plan; sfumato run --resume ID
    """
    from sfumato.cli.planning import find_run, planned, read_record, recorded
    from sfumato.cli.servers import server_of
    from sfumato.errors import InvalidInput
    from sfumato.runtime.settings import Settings

    settings = Settings() if runs is None else Settings(runs=runs)
    if (spec is None) == (not resume):
        raise InvalidInput("spec", "give either a spec or --resume ID.", hint="Example: sfumato run configs/artaug-vista.yaml")
    if plan:
        from sfumato.cli.estimate import show_plan

        if spec is None:
            raise InvalidInput("plan", "it is made from a spec.", hint="Example: sfumato run configs/artaug-vista.yaml --plan")
        show_plan(spec, settings, as_json=as_json)
        return
    if server_of("orchestrator", server, local, settings.runs):
        folder = _remote(spec, resume, server, settings)
    elif resume:
        folder = find_run(resume, settings)
        if not read_record(folder).finished:
            _execute(recorded(folder, settings), folder, settings)
    else:
        assert spec is not None
        todo, folder = planned(spec, settings)
        _execute(todo, folder, settings)
    typer.echo(_result(folder) if as_json else folder / "report.html")


def _remote(spec: Path | None, resume: str, server: str, settings: Settings) -> Path:
    """Have an orchestrator do it, and watch; the folder of its files."""
    from sfumato.cli import remote

    with remote.connect(server, settings) as client:
        status = client.resume(resume) if spec is None else remote.submit(client, spec)
        return remote.follow(client, status.id, settings)


def _result(folder: Path) -> str:
    """What a script wants to know of a finished run."""
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    files = {"report": str(folder / "report.html"), "figures": str(folder / "report.json")}
    if (folder / "adapter.safetensors").is_file():
        files["adapter"] = str(folder / "adapter.safetensors")
    chosen = {key: figures[key] for key in ("stop_reason", "evaluation", "comparison")}
    return json.dumps({"id": folder.name, **files, "iterations": len(figures["iterations"]), **chosen}, indent=1)


def _execute(plan: Plan, folder: Path, settings: Settings) -> None:
    from orchestrator.events import Keeper, Teller
    from orchestrator.finishing import finish
    from orchestrator.transport import LocalTransport
    from rich.console import Console

    from orchestrator.engine import Engine, Progress, Waiting
    from orchestrator.recipes import artaug
    from orchestrator.recipes.artaug.state import set_aside
    from sfumato.cli.machine import local_services
    from sfumato.cli.planning import write_record
    from sfumato.cli.progress import RunProgress, clock
    from sfumato.runtime.artifacts import ArtifactStore
    from sfumato.runtime.journal import RunJournal

    console, teller = Console(stderr=True), Teller()
    artifacts = ArtifactStore(settings.artifacts_url)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(plan, folder, finished=False)
    console.print(f"run [bold]{folder.name}[/bold]")
    try:
        with (
            RunJournal(folder / "metrics.jsonl") as journal,
            Keeper(journal) as keeper,
            RunProgress(console, folder, artifacts.get) as shown,
            LocalTransport(local_services(plan, folder, settings), settings.artifacts_url) as transport,
        ):

            def notify(progress: Progress) -> None:
                event = teller.event(progress)
                keeper.keep(event)
                shown.show(event)

            state = Engine(plan, plan.spec.batch, transport, artifacts, notify).run(artaug.STAGES, artaug.start(plan))
            busy = transport.busy_share()
    except (KeyboardInterrupt, SystemExit):
        console.print(f"stopped; what is finished is kept. Go on with: sfumato run --resume {folder.name}", soft_wrap=True)
        raise
    except Waiting as waiting:
        waiting.hint = f"Look at them: sfumato review {folder.name}"
        raise
    for name, data in finish(plan, state, artifacts).items():
        _write(folder / name, data)
    write_record(plan, folder, finished=True)
    took = clock(sum(journal.seconds().values()))
    told = f"{state.stop_reason} after {len(state.iterations)} iterations and {took}; {busy:.1%} of the time was in the services"
    console.print(told, soft_wrap=True)
    for lost in set_aside(state):
        console.print(str(lost), soft_wrap=True, markup=False, highlight=False)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
