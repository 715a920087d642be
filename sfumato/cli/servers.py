"""Where a command runs: a named service, the running system of this folder, or this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Local = Annotated[bool, typer.Option("--local", help="Work in this process even if a system is running.")]


def server_option(service: str) -> typer.models.OptionInfo:
    """The option ``--server`` of a command that a service can do."""
    return typer.Option(
        help=f"Address of a {service} service (default: the running system's, else this process).",
        metavar="HOST:PORT",
        envvar=[f"SFUMATO_{service.upper()}_SERVER", "SFUMATO_SERVER"],
    )


def server_of(service: str, server: str, local: bool, runs: Path) -> str:
    """The address of the service that a command calls; empty if it works in this process.

    Args:
        service: the service's name in a system, such as registry.
        server: ``--server`` or its environment variable; takes precedence over the running system.
        local: ``--local``; takes precedence over everything.
        runs: the folder of runs, where `sfumato up` records a running system.
    """
    if local or server:
        return "" if local else server
    from sfumato.runtime.system import find_system

    system = find_system(runs)
    return system.address(service) if system is not None and service in system.members else ""
