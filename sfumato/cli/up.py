"""``sfumato up`` and ``sfumato down``: the whole system on this machine, one process per service."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.errors import Conflict, NotFound, Unavailable
from sfumato.runtime.cancel import cancel_all

if TYPE_CHECKING:
    from sfumato.cli.deployment import Deployment
    from sfumato.cli.view import View
    from sfumato.runtime.system import System

ENDING = 120.0
"""Seconds that a system has to stop, including the graces of its programs."""


class VlmBackend(StrEnum):
    """Where the vision-language model runs: a vLLM server, or the grounding service's process."""

    vllm = "vllm"
    transformers = "transformers"


class Ports(StrEnum):
    """The system's ports: the default ones if they are free, or any free ones."""

    fixed = "fixed"
    auto = "auto"


def up(
    workers: Annotated[int, typer.Option(min=0, max=64, help="Number of generators, and of trainers; 0: the cores, at most 4.")] = 0,
    backend: Annotated[VlmBackend, typer.Option(help="Where the VLM runs: vllm, or transformers on small machines.")] = VlmBackend.vllm,
    ports: Annotated[Ports, typer.Option(help="fixed: 4222, 7101-7106 and 7201-7206 if free; auto: any free ones.")] = Ports.fixed,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is up; `sfumato down` stops it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="When it is up, print all addresses as one JSON object.")] = False,
) -> None:
    """Start the whole system on this machine and keep it up until Ctrl-C.

    The bus (nats-server), the registry, the services with their workers, and the orchestrator, each a process whose log goes to
    runs/logs and, with its name, to this terminal. Processes that end are started again.

    Example: sfumato up --workers 2
    """
    from sfumato.cli.deployment import deployment
    from sfumato.cli.view import View, print_table
    from sfumato.runtime.settings import Settings
    from sfumato.runtime.system import find_system

    settings, view = Settings(), View()
    settings.runs.mkdir(parents=True, exist_ok=True)
    if find_system(settings.runs) is not None:
        raise Conflict(f"A system of {settings.runs} is up already.", hint="`sfumato down` ends it.")
    if detach:
        system = _detached(settings.runs, [f"--workers={workers}", f"--backend={backend}", f"--ports={ports}"])
        if as_json:
            return typer.echo(system.model_dump_json(indent=1))
        return print_table(system)
    with _alone(settings.runs):
        planned = deployment(settings, workers, backend is VlmBackend.transformers, ports is Ports.auto)
        status = asyncio.run(_run(planned, settings.runs, view, as_json))
    raise typer.Exit(status)


def down() -> None:
    """Stop the running system of this folder.

    Example: sfumato down
    """
    from sfumato.runtime.processes import process_started
    from sfumato.runtime.settings import Settings
    from sfumato.runtime.system import find_system

    runs = Settings().runs
    system = find_system(runs)
    if system is None:
        raise NotFound(f"No system of {runs} is up.", hint="`sfumato up` starts one; is SFUMATO_RUNS its folder?")
    os.kill(system.pid, signal.SIGTERM)
    deadline = time.monotonic() + ENDING
    while process_started(system.pid) == system.started:
        if time.monotonic() > deadline:
            raise Unavailable(f"Process {system.pid} has not ended after {ENDING:.0f} s.", hint="See its logs, or end it by force.")
        time.sleep(0.1)
    typer.echo("The system is down.")


async def _run(planned: Deployment, runs: Path, view: View, as_json: bool) -> int:
    """Start the system, keep it up until it is stopped, stop it; returns 0, or 130 if it was stopped before it was up."""
    from sfumato.runtime.loop_watch import LoopWatch
    from sfumato.runtime.supervisor import Supervisor

    began, stop, was_up = time.monotonic(), asyncio.Event(), False
    supervisor = Supervisor(planned.logs, view.line)

    def told_to_stop() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    planned.logs.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        stack.enter_context(LoopWatch(planned.logs / "watch.log", told_to_stop))
        keepers = [asyncio.create_task(keeper) for keeper in await planned.begin(stack, view.say)]
        stack.push_async_callback(cancel_all, keepers)
        stack.push_async_callback(supervisor.stop)
        for group in planned.groups:
            view.say("starting", ", ".join(program.name for program in group))
            if not await _done(supervisor.start(group), stop, keepers):
                break
        else:
            planned.is_up()
            system, was_up = planned.system(), True
            system.write(runs)
            stack.callback((runs / "system.json").unlink, missing_ok=True)
            view.show(system, time.monotonic() - began)
            if as_json:
                typer.echo(system.model_dump_json(indent=1))
            await _done(asyncio.Event().wait(), stop, keepers)
        view.say("stopping", "everything, in reverse order; Ctrl-C again ends it at once")
    view.say("down", f"after {time.monotonic() - began:.0f} s")
    return 0 if was_up else 130


async def _done(work: Awaitable[object], stop: asyncio.Event, keepers: list[asyncio.Task[None]]) -> bool:
    """Wait for the work; returns False if ``stop`` is set first. Raises what the work or a keeper raises."""
    working, stopping = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping, *keepers], return_when=asyncio.FIRST_COMPLETED)
        for task in (*keepers, working):
            if task.done():
                task.result()
        return working.done()
    finally:
        await cancel_all([working, stopping])


@contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel releases with this process.

    Raises:
        Conflict: another process holds it.
    """
    with ExitStack() as stack:
        lock = stack.enter_context((runs / "system.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"A system of {runs} is being started or ended.", hint="`sfumato down` ends one that is up.") from None
        yield


def _detached(runs: Path, options: list[str]) -> System:
    """Run the same command as another process; returns when the system is up.

    Raises:
        Unavailable: it ended before; the message holds the end of its log.
    """
    from sfumato.runtime.system import find_system

    (runs / "logs").mkdir(exist_ok=True)
    log = runs / "logs" / "up.log"
    line = [sys.executable, "-m", "sfumato.cli.main", "up", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    while (system := find_system(runs)) is None or system.pid != process.pid:
        if process.poll() is not None:
            raise Unavailable(f"The system did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
    return system
