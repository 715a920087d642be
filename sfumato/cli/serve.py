"""``sfumato serve``: the fused model behind OpenAI's API of images."""

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
"""Seconds that requests in work have to end."""


class Safety(StrEnum):
    """What looks at pictures before they are given out."""

    off = "off"
    nudenet = "nudenet"


def serve(
    model: Annotated[str, typer.Argument(help="The base's name and the alias that is followed.")] = "vista@production",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 3000,
    base: Annotated[str, typer.Option(help="The base model's weights: vista, a name on the hub, or a folder.")] = "",
    registry: Annotated[str, server_option("registry")] = "",
    scoring: Annotated[str, typer.Option(help="A scoring service that judges new versions' pictures.", metavar="HOST:PORT")] = "",
    canary: Annotated[float | None, typer.Option(min=0, max=1, help="The share of requests for the alias canary.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A file of keys that clients must show; without it anybody may ask.")] = None,
    safety: Annotated[Safety | None, typer.Option(help="nudenet: pictures in which it finds nudity are held back.")] = None,
) -> None:
    """Serve the model that an alias of the registry points at, and follow it as it moves, until Ctrl-C; a second one does
    not wait for what is in work.

    Registry and scoring service are those of the system that is up here; where none is, a registry is started on the database of this
    folder. Every option is a setting too but for the address; docs/services/inference.md has them all.

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
        os.environ["SFUMATO_MODEL_FOLDERS"] = "true"  # whoever types a folder here may read it
    with ExitStack() as stack:
        address = registry or os.environ.get("SFUMATO_INFERENCE_REGISTRY", "") or server_of("registry", "", False, settings.runs)
        os.environ["SFUMATO_INFERENCE_REGISTRY"] = address or stack.enter_context(_own_registry())
        _listen(host, port)


def _listen(host: str, port: int) -> None:
    """Answer until told to stop.

    Raises:
        InvalidInput: the address cannot be listened on, or a setting is unusable.
        MissingWeights, BrokenWeights: the base model cannot be loaded.
    """
    import uvicorn

    from services.inference.service import Inference, state

    class Server(uvicorn.Server):
        """Ctrl-C ends it in good order; again, at once."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            if self.force_exit:  # everything is broken off, and would say so at length
                logging.disable()

    with _bound(host, port) as listening:
        typer.echo(f"http://{host}:{listening.getsockname()[1]}")
        sys.stdout.flush()
        config = uvicorn.Config(
            Inference.to_asgi(), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE
        )
        server = Server(config)
        with suppress(KeyboardInterrupt, SystemExit):  # it ends in good order, and then passes the signal on
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
    """The address of a registry on this folder's database, for as long as this process lives."""
    from sfumato.runtime import children
    from sfumato.runtime.processes import HOST, free_ports

    address = f"{HOST}:{free_ports([0])[0]}"
    environment = {"SFUMATO_GRPC_ADDRESS": address, "SFUMATO_LOG_LEVEL": "WARNING", "SFUMATO_METRICS_ADDRESS": ""}
    # A session of its own: Ctrl-C is this process's, which needs the registry to the end.
    process = children.start([sys.executable, "-m", "services.registry.app"], env=os.environ | environment, start_new_session=True)
    try:
        yield address
    finally:
        process.terminate()
        process.wait()
