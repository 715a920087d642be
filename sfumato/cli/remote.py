"""Runs that an orchestrator executes: submitted, followed and fetched from the command line. Replicas may come and go meanwhile."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console

from sfumato.cli.servers import server_of
from sfumato.errors import SfumatoError, Unavailable
from sfumato.runs.client import RunClient
from sfumato.runs.messages import status_to
from sfumato.runs.records import RunState, RunStatus
from sfumato.runtime.files import write_whole
from sfumato.runtime.settings import Settings
from sfumato.runtime.system import find_system

if TYPE_CHECKING:
    from sfumato.cli.local_runs import LocalRuns

SERVICE = "orchestrator"
NO_SERVER = "Start one with `sfumato up`, or name one: --server HOST:PORT, or SFUMATO_ORCHESTRATOR_SERVER."


def addresses(server: str, local: bool, settings: Settings) -> list[str]:
    """The addresses of the orchestrator's replicas; ``server`` may name several, with commas. None for a run in this process."""
    if local or server:
        return [] if local else [address.strip() for address in server.split(",") if address.strip()]
    found = server_of(SERVICE, server, local, settings.runs)
    system = find_system(settings.runs)
    others = [member.address for name, member in system.members.items() if name.startswith(f"{SERVICE}-")] if system else []
    return [found, *others] if found else []


def connect(server: str, settings: Settings) -> RunClient:
    """The orchestrator that a command is about.

    Raises:
        Unavailable: no address is given, and no system is up in this folder.
    """
    found = addresses(server, False, settings)
    if not found:
        raise Unavailable("No orchestrator is named, and none runs here.", hint=NO_SERVER)
    return RunClient(found)


def continued(client: RunClient, name: str) -> RunStatus:
    """Continue a run; a finished one stays as it is, as in a run of this process.

    Raises:
        NotFound: there is no such run.
    """
    status, _ = client.get(name)
    return status if status.state is RunState.FINISHED else client.resume(name)


def follow(client: RunClient, name: str, settings: Settings) -> Path:
    """Show the progress of a run until it is finished, and fetch its files into its folder among the runs; that folder.

    Raises:
        SfumatoError: it failed, was cancelled or paused, or waits for a person.
    """
    from sfumato.cli.progress import RunProgress

    console, folder = Console(stderr=True), settings.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"run [bold]{name}[/bold]")
    shown: dict[tuple[str, int, str], tuple[int, float]] = {}
    status: RunStatus | None = None

    def on_lost() -> None:
        console.print("the connection is lost; the run continues without it. Connecting again.", soft_wrap=True)

    try:
        with RunProgress(console, folder, client.fetch) as progress:
            for update in client.watch(name, on_lost):
                if isinstance(update, RunStatus):
                    status = update
                    _raise_if_halted(status)
                    continue
                stage, mark = (*update.section, update.stage), (update.number, update.time)
                if shown.get(stage) != mark:
                    shown[stage] = mark
                    progress.show(update)
    except (KeyboardInterrupt, SystemExit):
        told = f"The run continues. Watch it: sfumato runs watch {name}  Cancel it: sfumato runs cancel {name}"
        console.print(told, soft_wrap=True, markup=False)
        raise
    if status is None or status.ended is None:
        raise SfumatoError(f"The orchestrator did not say how the run {name} ended.", hint=f"Ask again: sfumato runs watch {name}")
    _raise_unless_finished(status)
    outcome = status.ended.outcome
    for file, digest in outcome.files.items():
        save(client, folder / file, digest)
    console.print(f"{outcome.stop_reason}; {len(outcome.files)} files in {folder}", soft_wrap=True, markup=False)
    for lost in outcome.dead_lettered:
        console.print(str(lost), soft_wrap=True, markup=False, highlight=False)
    return folder


def save(client: RunClient | LocalRuns, path: Path, digest: str) -> None:
    """Fetch a file of a run, completely or not at all; a file that is there already is not fetched again."""
    if path.name in ("", ".", "..") or path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return
    write_whole(path, client.fetch(digest))


def as_json(status: RunStatus) -> dict[str, Any]:
    """A run for scripts: the fields of the contract's ``Run`` that are set, its state in one word, and its latest event."""
    told = MessageToDict(status_to(status), preserving_proto_field_name=True)
    latest = {} if status.latest is None else {"latest": status.latest.model_dump(mode="json")}
    return {**told, "state": status.state.value, **latest}


def _raise_if_halted(status: RunStatus) -> None:
    """Raise if the run does not continue before a person does something."""
    if status.state is RunState.WAITING:
        raise SfumatoError(f"{status.waiting} questions wait for a person.", hint=f"Answer them: sfumato review {status.id}")
    if status.state in (RunState.PAUSED, RunState.INTERRUPTED):
        raise SfumatoError(f"The run {status.id} is {status.state.value}.", hint=status.note)


def _raise_unless_finished(status: RunStatus) -> None:
    if status.ended is not None and status.state is RunState.FAILED:
        outcome = status.ended.outcome
        raise SfumatoError(f"The run {status.id} failed: {outcome.error}", hint=f"{outcome.hint} {status.note}".strip())
    if status.state is RunState.CANCELLED:
        raise SfumatoError(f"The run {status.id} was cancelled.", hint=status.note)
