"""A process that races others for one alias: ``python racing.py DATABASE_URL FOLDER VERSION...``.

It waits for a line on standard input, so that all begin together, and prints ``won`` or ``lost`` for each
version.
"""

from __future__ import annotations

import sys
from contextlib import closing

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.errors import Conflict
from sfumato.runtime.artifacts import ArtifactStore


def main(url: str, folder: str, versions: list[str]) -> None:
    """Try once with each version, always from where the alias was at the round's beginning."""
    with closing(Registry(Database(url), ArtifactStore(folder))) as registry:
        for number, version in enumerate(versions):
            print("ready", flush=True)
            expected = sys.stdin.readline().strip()
            try:
                registry.set_alias("production", version, expected=expected, reason=f"round {number}")
                print("won", flush=True)
            except Conflict:
                print("lost", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
