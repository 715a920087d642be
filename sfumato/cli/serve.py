"""``sfumato serve``: the fused model with OpenAI's image API."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from sfumato.cli.servers import server_of, server_option

GRACE = 30
"""Seconds that open requests have to end."""
ENDING = 40.0
"""Seconds that an own registry has to end; it is killed after them."""


class Safety(StrEnum):
    """The check of images before they are returned."""

    off = "off"
    nudenet = "nudenet"


def serve(
    model: Annotated[str, typer.Argument(help="The base's name and the alias to follow.")] = "vista@production",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 3000,
    base: Annotated[str, typer.Option(help="The base model's weights: vista, a name on the hub, or a folder.")] = "",
    registry: Annotated[str, server_option("registry")] = "",
    scoring: Annotated[str, typer.Option(help="A scoring service that checks new versions.", metavar="HOST:PORT")] = "",
    canary: Annotated[float | None, typer.Option(min=0, max=1, help="The canary alias's share of requests.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A file of API keys; without it no key is required.")] = None,
    safety: Annotated[Safety | None, typer.Option(help="nudenet: withhold pictures in which it finds nudity.")] = None,
) -> None:
    """Serve the model that an alias of the registry points at, and follow the alias when it moves, until Ctrl-C; a second Ctrl-C does
    not wait for open requests.

    Registry and scoring service are those of the running system of this folder; if none is running, a registry is started on this
    folder's database. Every option except the address is a setting too; see docs/services/inference.md.

    Example: sfumato serve vista@production --port 3000

    Example: curl -s localhost:3000/v1/images/generations -H 'content-type: application/json' -d '{"prompt": "a full moon over a lake"}'
    """
    from sfumato.runtime.settings import Settings

    settings = Settings()
    if not os.environ.get("SFUMATO_INFERENCE_SCORING"):
        scoring = scoring or server_of("scoring", "", False, settings.runs)
    given = {"MODEL": model, "BASE": base, "SCORING": scoring, "SAFETY": safety, "KEYS": keys, "CANARY": canary}
    os.environ.update({f"SFUMATO_INFERENCE_{name}": str(value) for name, value in given.items() if value not in ("", None)})
    if base:
        os.environ["SFUMATO_MODEL_FOLDERS"] = "true"  # the user of this command may read its folders
    with ExitStack() as stack:
        address = registry or os.environ.get("SFUMATO_INFERENCE_REGISTRY", "") or server_of("registry", "", False, settings.runs)
        os.environ["SFUMATO_INFERENCE_REGISTRY"] = address or stack.enter_context(_own_registry())
        _listen(host, port)


def _listen(host: str, port: int) -> None:
    """Serve until stopped.

    Raises:
        InvalidInput: the address cannot be listened on, or a setting is unusable.
        MissingWeights, BrokenWeights: the base model cannot be loaded.
    """
    import uvicorn

    from services.inference.service import Inference, state

    class ImageServer(uvicorn.Server):
        """Ctrl-C drains it; a second Ctrl-C ends it at once."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            if self.force_exit:  # every open request is cut and would log an error
                logging.disable()

    with _bound(host, port) as listening:
        typer.echo(f"http://{host}:{listening.getsockname()[1]}")
        sys.stdout.flush()
        config = uvicorn.Config(
            Inference.to_asgi(), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE
        )
        server = ImageServer(config)
        with suppress(KeyboardInterrupt, SystemExit):  # it drains, then raises the signal again
            server.run(sockets=[listening])
    if server.force_exit:
        raise KeyboardInterrupt
    if state.failure is not None:
        raise state.failure


def _bound(host: str, port: int) -> socket.socket:
    from sfumato.errors import InvalidInput

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidInput("port", f"{host}:{port} cannot be listened on ({error.strerror}).", hint="Name a free one: --port 0") from error


@contextmanager
def _own_registry() -> Iterator[str]:
    """The address of a registry on this folder's database, which runs within the block."""
    from sfumato.runtime.child_processes import ChildProcess
    from sfumato.runtime.processes import HOST, free_ports

    address = f"{HOST}:{free_ports([0])[0]}"
    environment = {"SFUMATO_GRPC_ADDRESS": address, "SFUMATO_LOG_LEVEL": "WARNING", "SFUMATO_METRICS_ADDRESS": ""}
    process = ChildProcess([sys.executable, "-m", "services.registry.app"], env=os.environ | environment)
    try:
        yield address
    finally:
        process.end(ENDING)
