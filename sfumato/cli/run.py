"""``sfumato run``: a recipe from its spec to its report, resumable at any point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.runs import Server

if TYPE_CHECKING:
    from orchestrator.runs.records import Record, Records
    from sfumato.runs.records import Outcome
    from sfumato.runtime.artifacts import ArtifactStore
    from sfumato.runtime.settings import Settings


def run(
    spec: Annotated[Path | None, typer.Argument(help="A run spec (YAML); see configs/.", metavar="[SPEC]")] = None,
    resume: Annotated[str, typer.Option("--resume", metavar="ID", help="Continue a run by its id.")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Check the spec, print what it would cost; start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the report's path.")] = False,
    runs: Annotated[Path | None, typer.Option(help="Where runs lie (default: runs/, or SFUMATO_RUNS).")] = None,
    server: Server = "",
    local: Annotated[bool, typer.Option("--local", help="Run it in this process, whatever is up.")] = False,
    register: Annotated[bool, typer.Option("--register", help="Register the models in this folder's registry when the run ends.")] = False,
) -> None:
    """Run a spec until its method ends; what is finished already is not done again. Prints the path of the report.

    A run's id is its spec's name and a hash of all its result depends on, so the same spec continues where it stopped. The orchestrator
    at --server does it, else that of the system that is up here, else this process; Ctrl-C ends this process's run, and only the
    watching of another's. The files are the same either way, byte by byte.

    Examples: sfumato run configs/artaug-vista.yaml; sfumato run configs/artaug-flux1-dev.yaml --plan; sfumato run --resume ID
    """
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
        if register:
            raise InvalidInput("register", "an orchestrator registers models by its own setting.", hint="SFUMATO_ORCHESTRATOR_REGISTRY")
        folder = _remote(spec, resume, server, settings)
    else:
        folder = _here(spec, resume, settings, register=register)
    typer.echo(_result(folder) if as_json else folder / "report.html")


def _remote(spec: Path | None, resume: str, server: str, settings: Settings) -> Path:
    """Have an orchestrator do it, and watch; the folder of its files."""
    from orchestrator.runs.specs import submittable
    from sfumato.cli import remote

    with remote.connect(server, settings) as client:
        run = remote.continued(client, resume) if spec is None else client.submit(*submittable(spec))[0]
        return remote.follow(client, run.id, settings)


def _result(folder: Path) -> str:
    """What a script is told of a finished run."""
    from orchestrator.recipes.catalog import recipe_named

    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    files = {"report": str(folder / "report.html"), "figures": str(folder / "report.json")}
    if (folder / "adapter.safetensors").is_file():
        files["adapter"] = str(folder / "adapter.safetensors")
    return json.dumps({"id": folder.name, **files, **recipe_named(figures["recipe"]).headline(figures)}, indent=1)


def _here(spec: Path | None, resume: str, settings: Settings, *, register: bool) -> Path:
    """Begin a run in this process, or continue it; the folder of its files."""
    from orchestrator.runs.records import Records
    from orchestrator.runs.submission import check_weights, submission_of_file
    from sfumato.errors import InvalidInput, NotFound
    from sfumato.runtime.artifacts import ArtifactStore

    records = Records(ArtifactStore(settings.artifacts_url), settings.runs)
    if spec is not None:
        submitted = submission_of_file(spec, settings)
        name, record = submitted.id, submitted.record
    else:
        try:
            name, record = resume, records.record(resume)[0]
        except NotFound as error:
            hint = "Its id is the name of its folder there."
            raise InvalidInput("run", f"there is no run {resume!r} in {settings.runs}.", hint=hint) from error
        ended = records.outcome(name)
        if ended is not None and ended.outcome.state == "finished" and (settings.runs / name / "report.html").is_file():
            return settings.runs / name
        check_weights(record, settings)
    _execute(name, record, records, settings, register=register)
    return settings.runs / name


def _execute(name: str, record: Record, records: Records, settings: Settings, *, register: bool) -> None:
    """Execute a run with workers on this machine, and write its files into its folder."""
    from contextlib import nullcontext

    from rich.console import Console

    from orchestrator.engine.stages import Waiting
    from orchestrator.runs.drive import RunExecution
    from orchestrator.runs.journal import JournalWriter
    from orchestrator.transports.local import LocalTransport
    from sfumato.cli.machine import local_services
    from sfumato.cli.models import opened
    from sfumato.cli.progress import RunProgress, clock
    from sfumato.errors import SfumatoError
    from sfumato.runs.records import Event, Outcome
    from sfumato.runtime.artifacts import ArtifactStore
    from sfumato.runtime.journal import RunJournal

    console, folder, artifacts = Console(stderr=True), settings.runs / name, ArtifactStore(settings.artifacts_url)
    folder.mkdir(parents=True, exist_ok=True)
    records.begin(name, record)
    records.reopen(name, finished=True)
    console.print(f"run [bold]{name}[/bold]")
    services = local_services(record, folder, settings)
    slow = any(service.companion is not None for service in services.values())
    told = f"starting {', '.join(record.recipe.services)}" + ("; the VLM server takes about a minute on a CPU" if slow else "")
    console.print(told, soft_wrap=True)
    iterations: set[tuple[str, int]] = set()
    try:
        with (
            RunJournal(folder / "metrics.jsonl") as journal,
            JournalWriter(journal) as written,
            RunProgress(console, folder, artifacts.get) as shown,
            LocalTransport(services, settings.artifacts_url) as transport,
        ):

            def tell(event: Event) -> None:
                written.write(event)
                shown.show(event)
                iterations.update([event.section] if event.iteration else [])

            registry = (lambda: opened(settings, "", True)) if register else None
            outcome = RunExecution(name, record, artifacts, lambda: nullcontext(transport), registry).drive(tell)
            busy = transport.busy_share()
    except (KeyboardInterrupt, SystemExit):
        console.print(f"stopped; what is finished is kept. Continue with: sfumato run --resume {name}", soft_wrap=True)
        raise
    except Waiting as waiting:
        waiting.hint = f"Look at them: sfumato review {name}"
        raise
    except SfumatoError as error:
        records.end(name, Outcome(state="failed", error=error.message, hint=error.hint))
        raise
    _write_files(outcome, folder, artifacts)
    records.end(name, outcome)
    took = clock(sum(journal.seconds().values()))
    told = f"{outcome.stop_reason} after {len(iterations)} iterations and {took}; {busy:.1%} of the time was in the services"
    console.print(told, soft_wrap=True)
    for lost in outcome.dead_lettered:
        console.print(str(lost), soft_wrap=True, markup=False, highlight=False)


def _write_files(outcome: Outcome, folder: Path, artifacts: ArtifactStore) -> None:
    """Write the files of a finished run, the report last."""
    from sfumato.runtime.files import write_whole

    for file, digest in sorted(outcome.files.items(), key=lambda row: row[0] == "report.html"):
        write_whole(folder / file, artifacts.get(digest))
