"""Runs that an orchestrator drives somewhere: submitted, watched and fetched from here. Replicas may come and go meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from rich.console import Console

from sfumato.cli.servers import server_of
from sfumato.errors import InvalidInput, SfumatoError, Unavailable
from sfumato.runtime.client import calling, channel, download
from sfumato.runtime.settings import Settings
from sfumato.types import Region
from sfumato.v1 import orchestrator_pb2 as contract
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceStub

if TYPE_CHECKING:
    from orchestrator.events import Event

SERVICE = "orchestrator"
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a watch that broke off is asked for again, longer each time."""
NO_SERVER = "Start one with `sfumato up`, or name one: --server HOST:PORT, or SFUMATO_ORCHESTRATOR_SERVER."
Answer = TypeVar("Answer")


def addresses(server: str, local: bool, settings: Settings) -> list[str]:
    """Where the orchestrator's replicas answer: ``server`` may name several, with commas. None where a run is to be done here."""
    if local or server:
        return [] if local else [address.strip() for address in server.split(",") if address.strip()]
    from sfumato.runtime.system import find_system

    found = server_of(SERVICE, server, local, settings.runs)
    system = find_system(settings.runs)
    others = [member.address for name, member in system.members.items() if name.startswith(f"{SERVICE}-")] if system else []
    return [found, *others] if found else []


class Remote:
    """An orchestrator behind one or several addresses, any of which will do. Use it in a ``with`` block."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self._stack = ExitStack()

    def __enter__(self) -> Remote:
        """Nothing is connected yet."""
        self._channels = [self._stack.enter_context(channel(address)) for address in self._addresses]
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def call(self, method: str, request: Any) -> Any:
        """One question; whichever replica is there answers it.

        Raises:
            Unavailable: none is.
            SfumatoError: the service's refusal.
        """
        return self._somewhere(lambda link: getattr(OrchestratorServiceStub(link), method)(request))

    def fetch(self, digest: str) -> bytes:
        """A file out of the service's artifact store."""
        return self._somewhere(lambda link: download(link, digest))

    def watch(self, name: str, broken: Callable[[], None]) -> Iterator[contract.OrchestratorServiceWatchResponse]:
        """What happens to a run, until it has ended; ``broken`` is called when the connection is lost, and it is made again."""
        request = contract.OrchestratorServiceWatchRequest(run_id=name)
        failed = 0
        while True:
            try:
                with calling(self._addresses[0]):
                    for update in OrchestratorServiceStub(self._channels[0]).Watch(request):
                        failed = 0
                        yield update
                return
            except Unavailable:
                if not failed:
                    broken()
                time.sleep(PAUSES[min(failed, len(PAUSES) - 1)])
                failed += 1
                self._turn()

    def _somewhere(self, ask: Callable[[Any], Answer]) -> Answer:
        for last in [False] * (len(self._channels) - 1) + [True]:
            try:
                with calling(self._addresses[0]):
                    return ask(self._channels[0])
            except Unavailable:
                if last:
                    raise
                self._turn()
        raise AssertionError("there is at least one address")

    def _turn(self) -> None:
        """Ask another one first."""
        self._addresses.append(self._addresses.pop(0))
        self._channels.append(self._channels.pop(0))


def connect(server: str, settings: Settings) -> Remote:
    """The orchestrator that a command is about.

    Raises:
        Unavailable: none is named, and none runs here.
    """
    found = addresses(server, False, settings)
    if not found:
        raise Unavailable("No orchestrator is named, and none runs here.", hint=NO_SERVER)
    return Remote(found)


def submission_of(spec: Path) -> contract.SubmitRequest:
    """A spec and the prompts in the files it names. Of the files themselves only the names travel, for the report.

    Raises:
        InvalidInput: no such file, not YAML, or a file of prompts that cannot be read. All else is the service's to say.
    """
    from orchestrator.spec import prompts_in

    if not spec.is_file():
        raise InvalidInput("spec", f"there is no file {spec}.", hint="See configs/ for examples.")
    try:
        content = yaml.safe_load(spec.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput("spec", f"{spec} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise InvalidInput("spec", f"{spec} holds no mapping of keys to values.", hint="See configs/ for examples.")
    sets = {"train": ("prompts", "file"), "tune": ("tune", "file"), "heldout": ("evaluate", "file"), "ceiling": ("evaluate", "ceiling")}
    prompts: dict[str, list[str]] = {}
    for name, (part, key) in sets.items():
        section = content.get(part)
        if isinstance(section, dict) and isinstance(section.get(key), str):
            file = spec.parent / section[key]
            count = section.get("count")
            most = count if isinstance(count, int) and count >= 0 else None
            prompts[name] = list(prompts_in(file, most, part if key == "file" else f"{part}.{key}"))
            section[key] = file.name
    return contract.SubmitRequest(spec=json.dumps(content, default=str), prompts=contract.PromptSets(**prompts))


def follow(remote: Remote, name: str, settings: Settings) -> Path:
    """Show how a run goes on until it is finished, and fetch its files into its folder among the runs; that folder.

    Raises:
        SfumatoError: it failed, was cancelled or paused, or waits for a person.
    """
    from sfumato.cli.progress import RunProgress

    console, folder = Console(stderr=True), settings.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"run [bold]{name}[/bold]")
    shown: dict[tuple[int, str], tuple[int, float]] = {}
    run = contract.Run()

    def broken() -> None:
        console.print("the connection is lost; the run does not need it. Connecting again.", soft_wrap=True)

    try:
        with RunProgress(console, folder, remote.fetch) as progress:
            for update in remote.watch(name, broken):
                if update.HasField("run"):
                    run = update.run
                    _halted(run)
                    continue
                event = event_of(update.event)
                stage, mark = (event.iteration, event.stage), (event.number, event.time)
                if shown.get(stage) != mark:
                    shown[stage] = mark
                    progress.show(event)
    except (KeyboardInterrupt, SystemExit):
        told = f"The run goes on. Watch it: sfumato runs watch {name}  Give it up: sfumato runs cancel {name}"
        console.print(told, soft_wrap=True, markup=False)
        raise
    _ended(run)
    for file, digest in run.outcome.files.items():
        save(remote, folder / file, digest)
    console.print(f"{run.outcome.stop_reason}; {len(run.outcome.files)} files in {folder}", soft_wrap=True, markup=False)
    for aside in run.outcome.set_aside:
        console.print(lost(aside), soft_wrap=True, markup=False, highlight=False)
    return folder


def save(remote: Remote, path: Path, digest: str) -> None:
    """Fetch a file of a run, whole or not at all; one that is there already is not fetched again."""
    import hashlib

    if path.name in ("", ".", "..") or path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return
    part = path.with_name(f"{path.name}.tmp")
    part.write_bytes(remote.fetch(digest))
    part.replace(path)


def state_of(run: contract.Run) -> str:
    """A run's state in a word."""
    return contract.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()


def event_of(message: contract.Event) -> Event:
    """An event as `orchestrator.events` has it."""
    from orchestrator.events import Event, Pair

    pair = None
    if message.HasField("pair"):
        told = message.pair
        pair = Pair(prompt=told.prompt, before=told.before, after=told.after, regions=regions_of(told.regions))
    return Event(
        number=message.number,
        time=message.time.ToNanoseconds() / 1e9,
        iteration=message.iteration,
        stage=message.stage,
        done=message.done,
        total=message.total,
        reused=message.reused,
        set_aside=message.set_aside,
        note=message.note,
        metrics=_plain(message.metrics),
        pair=pair,
        outcome=message.outcome,
    )


def regions_of(messages: Sequence[Any]) -> tuple[Region, ...]:
    """Advice, out of a message."""
    return tuple(Region(told.prompt, (told.box.x1, told.box.y1, told.box.x2, told.box.y2)) for told in messages)


def lost(aside: contract.SetAside) -> str:
    """What a run went on without, in words."""
    from orchestrator.recipes.artaug.state import SetAside

    return str(SetAside(aside.iteration, aside.reason, aside.samples, aside.pairs))


def as_json(run: contract.Run) -> dict[str, Any]:
    """A run for scripts."""
    from google.protobuf.json_format import MessageToDict

    told = MessageToDict(run, preserving_proto_field_name=True)
    return {**told, "state": state_of(run)} | ({"latest": event_of(run.latest).model_dump(mode="json")} if run.HasField("latest") else {})


def _halted(run: contract.Run) -> None:
    """Raise where a run goes no further until somebody does something."""
    if run.state == contract.RUN_STATE_WAITING:
        raise SfumatoError(f"{run.waiting} pairs wait for a person.", hint=f"Look at them: sfumato review {run.id}")
    if run.state in (contract.RUN_STATE_PAUSED, contract.RUN_STATE_INTERRUPTED):
        raise SfumatoError(f"The run {run.id} is {state_of(run)}.", hint=run.note)


def _ended(run: contract.Run) -> None:
    if run.state == contract.RUN_STATE_FAILED:
        raise SfumatoError(f"The run {run.id} failed: {run.outcome.error}", hint=f"{run.outcome.hint} {run.note}".strip())
    if run.state == contract.RUN_STATE_CANCELLED:
        raise SfumatoError(f"The run {run.id} was cancelled.", hint=run.note)


def _plain(metrics: Any) -> dict[str, Any]:
    """Numbers as they were before the message: it knows no whole ones."""
    from google.protobuf.json_format import MessageToDict

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(part) for key, part in value.items()}
        if isinstance(value, list):
            return [whole(part) for part in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return whole(MessageToDict(metrics))
