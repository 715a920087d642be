"""Migrates the registry's database and exits: ``python -m services.registry.migrate``, with ``SFUMATO_REGISTRY_URL``.

A replica does the same when it starts. Before an upgrade of several replicas the migration runs once on its own, so that it fails before
a replica is replaced. Migrations only add: replicas of the version before work with the newer schema.
"""

from __future__ import annotations

import logging

from services.registry.database import HEAD, Database
from sfumato.errors import InvalidInput, SfumatoError
from sfumato.runtime import logs
from sfumato.runtime.settings import Settings, TelemetrySettings

log = logging.getLogger(__name__)


def main() -> int:
    """Migrate; exit status 0, 1 when the database does not answer, 2 when the settings are unusable."""
    logs.configure(TelemetrySettings())
    try:
        Database(Settings().registry_database).close()
    except SfumatoError as error:
        log.error("%s", error)
        return 2 if isinstance(error, InvalidInput) else 1
    log.info("The registry's database is at revision %s.", HEAD)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
