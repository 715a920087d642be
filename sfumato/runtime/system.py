"""The file in which `sfumato up` records the running system of this machine, for other commands."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sfumato.runtime.files import write_whole
from sfumato.runtime.processes import process_started

FILE = "system.json"


class Member(BaseModel):
    """One process of a system: where it answers over gRPC, and where it serves its metrics (both host:port)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str
    address: str
    metrics: str


class System(BaseModel):
    """A running system: the process of `sfumato up`, the bus, and the services by name (a second worker is ``generator-2``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    # When that process was started, in seconds since the epoch: process ids are reused.
    started: float
    bus: str
    members: dict[str, Member]

    def address(self, service: str) -> str:
        """The address of a service.

        Raises:
            KeyError: there is no such service.
        """
        return self.members[service].address

    def write(self, runs: Path) -> None:
        """Write it where `find_system` reads it, whole or not at all."""
        write_whole(runs / FILE, self.model_dump_json(indent=1).encode() + b"\n")


def find_system(runs: Path) -> System | None:
    """The running system of this folder of runs; None if none is up."""
    try:
        system = System.model_validate_json((runs / FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return system if process_started(system.pid) == system.started else None
