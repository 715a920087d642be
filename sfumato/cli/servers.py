"""Where a command is done: by a service somewhere, by the system that is up in this folder, or here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Local = Annotated[bool, typer.Option("--local", help="Work in this process, whatever is up.")]


def server_option(service: str) -> typer.models.OptionInfo:
    """The option ``--server`` of a command that one service can do."""
    return typer.Option(
        help=f"Address of a {service} service (default: that of the system that is up here, else this process).",
        metavar="HOST:PORT",
        envvar=[f"SFUMATO_{service.upper()}_SERVER", "SFUMATO_SERVER"],
    )


def server_of(service: str, server: str, local: bool, runs: Path) -> str:
    """The address of the service that a command is to ask; empty where it is to be done here.

    Args:
        service: its name in a system, such as registry.
        server: what ``--server`` says, or its environment variable; it goes before the system.
        local: what ``--local`` says; it goes before everything.
        runs: the folder in which `sfumato up` leaves word of a system.
    """
    if local or server:
        return "" if local else server
    from sfumato.runtime.system import find_system

    system = find_system(runs)
    return system.address(service) if system is not None and service in system.members else ""
