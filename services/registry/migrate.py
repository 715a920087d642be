"""Brings the registry's database up to date and ends: ``python -m services.registry.migrate``, with ``SFUMATO_REGISTRY_URL``.

A replica does the same when it starts. Before an upgrade of several it is done once, by itself, so that what goes wrong goes
wrong before any of them is replaced. Migrations only add: replicas of the version before go on with the newer schema.
"""

from __future__ import annotations

import logging

from services.registry.database import HEAD, Database
from sfumato.errors import InvalidInput, SfumatoError
from sfumato.runtime import logs
from sfumato.runtime.settings import Settings, TelemetrySettings

log = logging.getLogger(__name__)


def main() -> int:
    """Migrate; exit status 0, 1 where the database does not answer, 2 where the settings are unusable."""
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
