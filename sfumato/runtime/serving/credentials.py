"""The server's side of TLS: its certificate and the authorities of client certificates, from files that may be replaced while it serves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc

from sfumato.errors import InvalidInput
from sfumato.runtime.renewing import state_of
from sfumato.runtime.settings import ServingSettings

log = logging.getLogger(__name__)

UNSET_CREDENTIALS = "Set SFUMATO_GRPC_TLS_CERTIFICATE and SFUMATO_GRPC_TLS_KEY."


def credentials(settings: ServingSettings) -> grpc.ServerCredentials | None:
    """The credentials of a port, with client certificates required if an authority is set; None without TLS.

    Raises:
        InvalidInput: the settings are incomplete, or a file cannot be read.
    """
    if settings.tls_certificate is None and settings.tls_key is None:
        if settings.tls_client_authority is not None:
            raise InvalidInput("tls_client_authority", "clients' certificates need TLS.", hint=UNSET_CREDENTIALS)
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise InvalidInput("tls_certificate", "TLS needs both a certificate and a key.", hint=UNSET_CREDENTIALS)
    files = {"tls_key": settings.tls_key, "tls_certificate": settings.tls_certificate}
    if settings.tls_client_authority is not None:
        files["tls_client_authority"] = settings.tls_client_authority
    for field, path in files.items():
        try:
            path.read_bytes()
        except OSError as error:
            raise InvalidInput(field, f"{path} cannot be read ({error.strerror}).") from error
    renewed = _Renewed(*files.values())
    fetch: Any = renewed  # grpc's types do not allow None, which means unchanged
    return grpc.dynamic_ssl_server_credentials(renewed.read(), fetch, settings.tls_client_authority is not None)


class _Renewed:
    """Called by gRPC at every handshake: the new credentials if the files were replaced."""

    def __init__(self, key: Path, certificate: Path, authority: Path | None = None) -> None:
        self._key, self._certificate, self._authority = key, certificate, authority
        self._paths = [path for path in (key, certificate, authority) if path is not None]
        self._seen = state_of(self._paths)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """A new configuration; None if the files are unchanged or are being replaced: then the current one stays."""
        state = state_of(self._paths)
        if state == self._seen:
            return None
        try:
            configuration = self.read()
        except OSError as error:
            log.warning("The certificate cannot be read again (%s); the one before goes on.", error)
            return None
        if state_of(self._paths) != state:  # key and certificate may not match: the next handshake checks again
            return None
        self._seen = state
        log.info("The certificate was renewed.")
        return configuration

    def read(self) -> grpc.ServerCertificateConfiguration:
        """A configuration from the current files."""
        pair = self._key.read_bytes(), self._certificate.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], self._authority.read_bytes() if self._authority else None)
