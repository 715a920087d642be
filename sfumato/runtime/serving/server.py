"""A service's process: it listens, loads its engines, says how it is, answers calls and does tasks, and drains when told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sfumato.errors import InvalidInput, SfumatoError, Unavailable
from sfumato.runtime import logs
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import Bus
from sfumato.runtime.bus.worker import Worker
from sfumato.runtime.probes import PROBES
from sfumato.runtime.serving.artifacts import NAME as ARTIFACTS
from sfumato.runtime.serving.artifacts import mount
from sfumato.runtime.serving.boundary import Boundary
from sfumato.runtime.serving.credentials import credentials
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.observed import Observed
from sfumato.runtime.settings import BusSettings, ServingSettings, Settings, TelemetrySettings
from sfumato.runtime.tasks import Handler
from sfumato.runtime.telemetry import observing

log = logging.getLogger(__name__)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A service of the contract: its full name, what registers its servicer, and the lane of the engine behind it.

    ``handlers`` are its tasks by kind (``scoring.score``, of the queue ``scoring``), where it has any: they are done in the lane's
    thread, between calls.
    ``beside`` is what lives beside its calls, where anything does: entered before it says that it serves, left when it is told to end.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    engine_queue: EngineQueue[Any]
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    beside: AbstractAsyncContextManager[object] | None = None

    @property
    def short(self) -> str:
        """What its logs and its traces call it: scoring for sfumato.v1.ScoringService."""
        return self.name.rpartition(".")[2].removesuffix("Service").lower()

    @property
    def queues(self) -> dict[str, dict[str, Handler]]:
        """Its handlers by the queue of the bus that their tasks come from, which a kind's name begins with."""
        queues: dict[str, dict[str, Handler]] = {}
        for kind, handler in self.handlers.items():
            queues.setdefault(kind.partition(".")[0], {})[kind] = handler
        return queues


class Server:
    """Start it, load it, and drain it in the end, all in one event loop."""

    def __init__(
        self, services: Sequence[Service], settings: ServingSettings, address: str = "127.0.0.1:0", artifacts: ArtifactStore | None = None
    ) -> None:
        """``address`` is where it listens when the settings do not say; it also offers the store of ``artifacts``."""
        self._services, self._settings, self._artifacts = services, settings, artifacts
        self._address = settings.address or address
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] (its types do not know it)
        self._beside = AsyncExitStack()

    async def start(self) -> int:
        """Listen; the port. Health answers from now on, everything else says that it is loading.

        Raises:
            InvalidInput: the address cannot be used, or the files of TLS.
        """
        secure, settings = credentials(self._settings), self._settings
        self._server = grpc.aio.server(
            interceptors=[Observed(), Boundary(settings.token.get_secret_value())],
            maximum_concurrent_rpcs=settings.max_calls,
            options=[
                ("grpc.max_receive_message_length", settings.max_message),
                ("grpc.max_send_message_length", settings.max_message),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a lottery
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in self._services:
            service.register(self._server)
        names = [service.name for service in self._services]
        if self._artifacts is not None:
            names.append(mount(self._server, self._artifacts, settings.max_artifact))
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        for name in ("", *names):
            await self._health.set(name, SERVING if name == ARTIFACTS else NOT_SERVING)
        port = self._bind(secure)
        await self._server.start()
        return port

    def _bind(self, secure: grpc.ServerCredentials | None) -> int:
        try:
            if secure is not None:
                return self._server.add_secure_port(self._address, secure)
            return self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            hint = "Is it taken? Set SFUMATO_GRPC_ADDRESS to another."
            raise InvalidInput("address", f"{self._address} cannot be listened on.", hint=hint) from error

    async def load(self) -> None:
        """Load the engines, one after another; each service is SERVING when its own is there. Raises what loading raises."""
        for service in self._services:
            await service.engine_queue.open()
            if service.beside is not None:
                await self._beside.enter_async_context(service.beside)
            await self._health.set(service.name, SERVING)
        await self._health.set("", SERVING)
        PROBES.ready = True

    async def drain(self) -> None:
        """Take no more calls, give those that are here the settings' grace to end, and cancel what is left."""
        PROBES.ready = False
        for service in self._services:
            service.engine_queue.close()
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(self._server.stop(self._settings.grace), self._beside.aclose())
        for service in self._services:
            service.engine_queue.end()


def run(services: Callable[[ServingSettings], Sequence[Service]], address: str) -> None:
    """A service's program: answer calls, and do tasks where ``SFUMATO_BUS_URL`` is set, until SIGTERM or SIGINT.

    ``address`` is where it listens, unless ``SFUMATO_GRPC_ADDRESS`` says so. Exit status 2 where the settings, an address or the
    weights are unusable, 1 where there is no bus or an engine does not let go within the grace.
    """
    try:
        telemetry = TelemetrySettings()
        logs.configure(telemetry)
        settings = ServingSettings()
        offered = services(settings)
        with observing(offered[0].short, telemetry) as metrics:
            if metrics:
                log.info("Metrics on port %d.", metrics)
            stuck = asyncio.run(_serve(offered, settings, address))
    except SfumatoError as error:
        log.error("%s", error)
        raise SystemExit(1 if isinstance(error, Unavailable) else 2) from error
    if stuck:
        # An engine that did not let go within the grace is left as it is: artifacts are written at once or not at all.
        log.warning("Ended with an engine at work.")
        logging.shutdown()
        os._exit(1)


async def _serve(offered: Sequence[Service], settings: ServingSettings, address: str) -> bool:
    """Serve until a signal; whether an engine is still at work after the grace.

    Raises:
        SfumatoError: what loading raised, or what ended a worker; calls and tasks in hand were ended in good order.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    beating = asyncio.create_task(PROBES.beat())
    artifacts = ArtifactStore(Settings().artifacts_url)
    server = Server(offered, settings, address, artifacts)
    port = await server.start()
    log.info("Listening on port %d; loading.", port)
    loading, stopping = asyncio.create_task(server.load()), asyncio.create_task(stop.wait())
    working: list[asyncio.Task[None]] = []
    try:
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            log.info("Serving %s.", ", ".join(service.name for service in offered))
            queues = [(service, queue) for service in offered for queue in service.queues] if _on_bus() else []
            working = [asyncio.create_task(_work(service, queue, artifacts, stop)) for service, queue in queues]
            await asyncio.wait([*working, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info("Draining.")
        stop.set()  # workers finish what is in hand or give it back, while calls end
        await asyncio.gather(server.drain(), *working, return_exceptions=True)
        beating.cancel()
    for job in working:
        job.result()
    return any(service.engine_queue.busy for service in offered)


def _on_bus() -> bool:
    """Whether anybody said where the bus is."""
    settings = BusSettings()
    return "url" in settings.model_fields_set and bool(settings.url)


async def _work(service: Service, queue: str, artifacts: ArtifactStore, stop: asyncio.Event) -> None:
    """Do the service's tasks of a queue between its calls, until told to stop.

    Raises:
        Unavailable: there is no bus.
    """
    async with AsyncExitStack() as stack:
        bus = Bus(BusSettings(), f"sfumato {service.short}")
        connecting, stopping = asyncio.create_task(stack.enter_async_context(bus)), asyncio.create_task(stop.wait())
        await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            connecting.cancel()
            return
        connecting.result()
        log.info("Taking tasks of %s.", queue)
        await Worker(bus, queue, service.queues[queue], artifacts, call=service.engine_queue.call_unbounded).run(stop)
