"""The system that `sfumato up` runs on this machine, as a file tells it, so that other commands find it."""

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
    """A running system: the process that keeps it up, its bus, and its services by name (a second worker is ``generator-2``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    # When that process was started, in seconds of the epoch: a number may come again, this with it will not.
    started: float
    bus: str
    members: dict[str, Member]

    def address(self, service: str) -> str:
        """Where a service answers.

        Raises:
            KeyError: it has none of that name.
        """
        return self.members[service].address

    def write(self, runs: Path) -> None:
        """Leave it where `find_system` looks, whole or not at all."""
        write_whole(runs / FILE, self.model_dump_json(indent=1).encode() + b"\n")


def find_system(runs: Path) -> System | None:
    """The system of this folder of runs; None where none is up."""
    try:
        system = System.model_validate_json((runs / FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return system if process_started(system.pid) == system.started else None
