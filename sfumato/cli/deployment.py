"""The programs of `sfumato up` and their order: the one place that knows all services and their ports."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.cli.companion import BackgroundVlm
from sfumato.cli.machine import worker_environment
from sfumato.errors import SfumatoError, Unavailable
from sfumato.runtime.backoff import restarting
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.cancel import in_thread
from sfumato.runtime.processes import HOST, free_ports, process_started
from sfumato.runtime.settings import ServingSettings, Settings
from sfumato.runtime.supervisor import STEADY, Program
from sfumato.runtime.system import Member, System

BUS_PORT = 4222
METRICS = 100
"""Difference between a service's metrics port and its own port."""
PORTS = {"generator": 7101, "grounding": 7102, "scoring": 7103, "trainer": 7104, "registry": 7105, "orchestrator": 7106}
ORDER = (("registry",), ("generator", "grounding", "scoring", "trainer"), ("orchestrator",))
"""Groups of services; a group is started when the previous one is healthy."""
SCALED = ("generator", "trainer")
"""Services with long, independent tasks, which more processes do faster."""
LOOK = 0.5
"""Seconds between checks that the bus and the VLM server are running."""

Say = Callable[[str, str], None]


@dataclass
class Deployment:
    """The parts of a system, not started yet."""

    nats: NatsServer
    vlm: Callable[[], BackgroundVlm] | None
    groups: list[list[Program]]
    members: dict[str, Member]
    logs: Path
    _up: bool = field(default=False, init=False)

    async def begin(self, stack: AsyncExitStack, say: Say) -> Sequence[Coroutine[Any, Any, None]]:
        """Start the bus and begin to start the VLM server; returns the coroutines that keep them up. The stack stops them.

        Raises:
            Unavailable: nats-server is not installed, or does not come up.
        """
        stack.push_async_callback(in_thread, self.nats.stop)
        await in_thread(self.nats.start)
        say("bus", self.nats.url)
        keepers = [self._keep_bus(say)]
        if self.vlm is not None:
            say("vlm", f"vLLM is starting; its log is {self.logs / 'vlm.log'}")
            keepers.append(self._keep_vlm(self.vlm, say))
        return keepers

    def is_up(self) -> None:
        """From now on a VLM server that ends is started again; before, its error ends the system's start."""
        self._up = True

    def system(self) -> System:
        """The addresses of the running system."""
        pid = os.getpid()
        return System(pid=pid, started=process_started(pid), bus=self.nats.url, members=self.members)

    async def _keep_bus(self, say: Say) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                self.nats.check()
            except Unavailable as error:
                say("bus", f"{error.message.splitlines()[0]} It is started again.")
                async for attempt in restarting(lambda error: isinstance(error, Unavailable), partial(say, "bus")):
                    with attempt:
                        await in_thread(self.nats.start)
                say("bus", "it is up again")

    async def _keep_vlm(self, make: Callable[[], BackgroundVlm], say: Say) -> None:
        while True:
            async for attempt in restarting(lambda error: self._up and isinstance(error, SfumatoError), partial(say, "vlm")):
                with attempt:
                    await self._live_vlm(make(), say)

    async def _live_vlm(self, vlm: BackgroundVlm, say: Say) -> None:
        """Run a VLM server from its start to its end. Raises what ended it, unless it was up for long."""
        began = time.monotonic()
        vlm.start()
        try:
            while True:
                await asyncio.sleep(LOOK)
                try:
                    vlm.check()
                except SfumatoError as error:
                    if not self._up or time.monotonic() - began < STEADY:
                        raise
                    return say("vlm", f"{error.message} It is started again now.")
        finally:
            await in_thread(vlm.stop)


def deployment(settings: Settings, workers: int, in_process: bool, any_ports: bool) -> Deployment:
    """The system of this machine: ``in_process`` keeps the vision-language model in the grounding service, without vLLM.

    Raises:
        InvalidInput: an unknown profile.
        MissingWeights, BrokenWeights: the built-in vision-language model is not there, or damaged.
    """
    scaled = workers or settings.workers or min(os.cpu_count() or 1, 4)
    names = {service: [service] for group in ORDER for service in group}
    for service in SCALED:
        names[service] += [f"{service}-{index}" for index in range(2, scaled + 1)]
    wished = [BUS_PORT]
    for service, port in PORTS.items():
        for name in names[service]:
            wished += [port, port + METRICS] if name == service else [0, 0]
    ports = iter(free_ports([0] * len(wished) if any_ports else wished))
    nats = NatsServer(settings.runs / "nats", port=next(ports))
    members = {
        name: Member(service=service, address=f"{_scheme()}{HOST}:{next(ports)}", metrics=f"{HOST}:{next(ports)}")
        for service in PORTS
        for name in names[service]
    }
    logs = settings.runs / "logs"
    vlm, seeing = _vlm(settings, in_process, logs)
    shared = worker_environment(settings) | {"SFUMATO_BUS_URL": f"nats://{HOST}:{nats.port}", "SFUMATO_LOG_FORMAT": "json"}

    def program(name: str, service: str) -> Program:
        module = _module(service)
        member = members[name]
        own = {"SFUMATO_GRPC_ADDRESS": member.address.removeprefix(_scheme()), "SFUMATO_METRICS_ADDRESS": member.metrics}
        own |= seeing if service == "grounding" else {}
        own |= {"SFUMATO_ORCHESTRATOR_REGISTRY": members["registry"].address} if service == "orchestrator" else {}
        return Program(name, module, member.address, shared | own)

    groups = [[program(name, service) for service in group for name in names[service]] for group in ORDER]
    return Deployment(nats, vlm, groups, members, logs)


def _module(service: str) -> str:
    return "orchestrator.app" if service == "orchestrator" else f"services.{service}.app"


def _vlm(settings: Settings, in_process: bool, logs: Path) -> tuple[Callable[[], BackgroundVlm] | None, dict[str, str]]:
    """The function that creates the VLM server, if there is one, and the grounding service's environment for it."""
    if in_process:
        return None, {"SFUMATO_GROUNDING_BACKEND": "transformers"}
    if settings.vlm_url:
        return None, {}
    from services.grounding.app import QuestionSettings
    from sfumato.cli.vlm import served_model

    asking = QuestionSettings()
    model = served_model(asking.profile, asking.model, settings.vlm_gpus)
    (port,) = free_ports([0])
    first = BackgroundVlm(model, logs / "vlm.log", settings.threads, port)
    return lambda: BackgroundVlm(model, logs / "vlm.log", settings.threads, port), first.environment


def _scheme() -> str:
    """The prefix of the services' addresses: ``tls://`` if the settings configure TLS."""
    return "tls://" if ServingSettings().tls_certificate is not None else ""
