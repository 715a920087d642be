"""A service's gRPC server: it listens, loads its engines, says how it is, answers, and drains when it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sfumato.errors import InvalidInput, SfumatoError
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.serving.artifacts import NAME as ARTIFACTS
from sfumato.runtime.serving.artifacts import mount
from sfumato.runtime.serving.boundary import Boundary
from sfumato.runtime.serving.lane import Lane
from sfumato.runtime.settings import ServingSettings, Settings

log = logging.getLogger(__name__)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNSET_CREDENTIALS = "Set SFUMATO_GRPC_TLS_CERTIFICATE and SFUMATO_GRPC_TLS_KEY."


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """A service of the contract: its full name, what registers its servicer, and the lane of the engine behind it."""

    name: str
    register: Callable[[grpc.aio.Server], None]
    lane: Lane[Any]


class Server:
    """Start it, load it, and drain it in the end, all in one event loop."""

    def __init__(
        self, services: Sequence[Service], settings: ServingSettings, address: str = "127.0.0.1:0", artifacts: ArtifactStore | None = None
    ) -> None:
        """``address`` is where it listens when the settings do not say; it also offers the store of ``artifacts``."""
        self._services, self._settings, self._artifacts = services, settings, artifacts
        self._address = settings.address or address
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] (its types do not know it)

    async def start(self) -> int:
        """Listen; the port. Health answers from now on, everything else says that it is loading.

        Raises:
            InvalidInput: the address cannot be used, or the files of TLS.
        """
        secure, settings = credentials(self._settings), self._settings
        self._server = grpc.aio.server(
            interceptors=[Boundary(settings.token.get_secret_value())],
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
            await service.lane.open()
            await self._health.set(service.name, SERVING)
        await self._health.set("", SERVING)

    async def drain(self) -> None:
        """Take no more calls, give those that are here the settings' grace to end, and cancel what is left."""
        for service in self._services:
            service.lane.close()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.grace)
        for service in self._services:
            service.lane.end()


def run(services: Callable[[ServingSettings], Sequence[Service]], address: str) -> None:
    """A service's program: serve until SIGTERM or SIGINT, as ``SFUMATO_GRPC_*`` says; ``address`` is where, unless that says so.

    Exit status 2 where the settings, the address or the weights are unusable.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        stuck = asyncio.run(_serve(services, ServingSettings(), address))
    except SfumatoError as error:
        log.error("%s", error)
        raise SystemExit(2) from error
    if stuck:
        # An engine that did not let go within the grace is left as it is: artifacts are written at once or not at all.
        log.warning("Ended with an engine at work.")
        logging.shutdown()
        os._exit(1)


async def _serve(services: Callable[[ServingSettings], Sequence[Service]], settings: ServingSettings, address: str) -> bool:
    """Serve until a signal; whether an engine is still at work after the grace."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    offered = services(settings)
    server = Server(offered, settings, address, ArtifactStore(Settings().artifacts_url))
    port = await server.start()
    log.info("Listening on port %d; loading.", port)
    loading, stopping = asyncio.create_task(server.load()), asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if loading.done():
            loading.result()
            log.info("Serving %s.", ", ".join(service.name for service in offered))
            await stopping
    finally:
        log.info("Draining.")
        await server.drain()
    return any(service.lane.busy for service in offered)


def credentials(settings: ServingSettings) -> grpc.ServerCredentials | None:
    """The server's side of TLS, with clients' certificates required where an authority is named; None for none.

    Raises:
        InvalidInput: half of it is set, or a file cannot be read.
    """
    if settings.tls_certificate is None and settings.tls_key is None:
        if settings.tls_client_authority is not None:
            raise InvalidInput("tls_client_authority", "clients' certificates need TLS.", hint=UNSET_CREDENTIALS)
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise InvalidInput("tls_certificate", "TLS needs both a certificate and a key.", hint=UNSET_CREDENTIALS)
    pair = (_pem("tls_key", settings.tls_key), _pem("tls_certificate", settings.tls_certificate))
    authority = settings.tls_client_authority
    if authority is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], _pem("tls_client_authority", authority), require_client_auth=True)


def _pem(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read ({error.strerror}).") from error
