"""A service's process: it listens, loads its engines, reports its health, answers calls and does tasks, and drains when it is stopped."""

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

PINGS = 10_000
"""The fewest milliseconds between a client's pings on a quiet connection."""
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A service of the contract: its full name, the function that registers its servicer, and the queue of its engine.

    ``handlers`` do its tasks by kind (``scoring.score`` comes from the bus queue ``scoring``), in the engine's thread, between calls.
    ``beside`` is a context for background work: entered before the service reports SERVING, left when it is stopped.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    engine_queue: EngineQueue[Any]
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    beside: AbstractAsyncContextManager[object] | None = None

    @property
    def short(self) -> str:
        """Its name in logs and traces: scoring for sfumato.v1.ScoringService."""
        return self.name.rpartition(".")[2].removesuffix("Service").lower()

    @property
    def queues(self) -> dict[str, dict[str, Handler]]:
        """Its handlers by the bus queue of their tasks, which is the first part of a kind's name."""
        queues: dict[str, dict[str, Handler]] = {}
        for kind, handler in self.handlers.items():
            queues.setdefault(kind.partition(".")[0], {})[kind] = handler
        return queues


class Server:
    """A gRPC server of services: `start`, `load` and finally `drain` it in one event loop."""

    def __init__(
        self, services: Sequence[Service], settings: ServingSettings, address: str = "127.0.0.1:0", artifacts: ArtifactStore | None = None
    ) -> None:
        """``address`` is used if the settings name none; the store ``artifacts`` is served too."""
        self._services, self._settings, self._artifacts = services, settings, artifacts
        self._address = settings.address or address
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] (its types do not know it)
        self._beside = AsyncExitStack()

    async def start(self) -> int:
        """Listen; returns the port. Health answers from now on; all other calls are refused while the engine loads.

        Raises:
            InvalidInput: the address or the TLS files cannot be used.
        """
        secure, settings = credentials(self._settings), self._settings
        self._server = grpc.aio.server(
            interceptors=[Observed(), Boundary(settings.token.get_secret_value())],
            maximum_concurrent_rpcs=settings.max_calls,
            options=[
                ("grpc.max_receive_message_length", settings.max_message),
                ("grpc.max_send_message_length", settings.max_message),
                ("grpc.so_reuseport", 0),  # a taken port is an error, not shared
                ("grpc.http2.min_ping_interval_without_data_ms", PINGS),  # a client's keep-alive would otherwise count as abuse
                ("grpc.keepalive_permit_without_calls", 1),
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
        """Load the engines one after another; each service is SERVING when its engine is loaded. Raises what loading raises."""
        for service in self._services:
            await service.engine_queue.open()
            if service.beside is not None:
                await self._beside.enter_async_context(service.beside)
            await self._health.set(service.name, SERVING)
        await self._health.set("", SERVING)
        PROBES.ready = True

    async def drain(self) -> None:
        """Accept no more calls, let open calls end within the settings' grace, and cancel the rest."""
        PROBES.ready = False
        for service in self._services:
            service.engine_queue.close()
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(self._server.stop(self._settings.grace), self._beside.aclose())
        for service in self._services:
            service.engine_queue.end()


def run(services: Callable[[ServingSettings], Sequence[Service]], address: str) -> None:
    """A service's program: answer calls, and do tasks if ``SFUMATO_BUS_URL`` is set, until SIGTERM or SIGINT.

    It listens on ``address`` unless ``SFUMATO_GRPC_ADDRESS`` is set. Exit status 2 if the settings, an address or the weights are
    unusable, 1 if the bus does not answer or an engine does not finish within the grace.
    """
    try:
        telemetry = TelemetrySettings()
        logs.configure(telemetry)
        settings, bus = ServingSettings(), BusSettings()
        offered = services(settings)
        with observing(offered[0].short, telemetry) as metrics:
            if metrics:
                log.info("Metrics on port %d.", metrics)
            stuck = asyncio.run(_serve(offered, settings, bus, address))
    except SfumatoError as error:
        log.error("%s", error)
        raise SystemExit(1 if isinstance(error, Unavailable) else 2) from error
    if stuck:
        # An engine that is still busy is abandoned: artifacts are written whole or not at all.
        log.warning("Stopped while an engine is busy.")
        logging.shutdown()
        os._exit(1)


async def _serve(offered: Sequence[Service], settings: ServingSettings, bus: BusSettings, address: str) -> bool:
    """Serve until a signal; returns whether an engine is still busy after the grace.

    Raises:
        SfumatoError: what loading raised, or what ended a worker; open calls and tasks were drained.
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
            queues = [(service, queue) for service in offered for queue in service.queues] if _configured(bus) else []
            working = [asyncio.create_task(_work(service, queue, bus, artifacts, stop)) for service, queue in queues]
            await asyncio.wait([*working, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info("Draining.")
        stop.set()  # workers finish their tasks or give them back, while calls end
        await asyncio.gather(server.drain(), *working, return_exceptions=True)
        beating.cancel()
    for job in working:
        job.result()
    return any(service.engine_queue.busy for service in offered)


def _configured(settings: BusSettings) -> bool:
    """Whether the bus is configured."""
    return "url" in settings.model_fields_set and bool(settings.url)


async def _work(service: Service, queue: str, settings: BusSettings, artifacts: ArtifactStore, stop: asyncio.Event) -> None:
    """Do the service's tasks of one bus queue between its calls, until ``stop`` is set.

    Raises:
        Unavailable: the bus does not answer.
    """
    async with AsyncExitStack() as stack:
        bus = Bus(settings, f"sfumato {service.short}")
        connecting, stopping = asyncio.create_task(stack.enter_async_context(bus)), asyncio.create_task(stop.wait())
        await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            connecting.cancel()
            return
        connecting.result()
        log.info("Taking tasks of %s.", queue)
        await Worker(bus, queue, service.queues[queue], artifacts, call=service.engine_queue.call_unbounded).run(stop)
