"""The artifact store: bytes by their SHA-256, checked at every read. A folder by default, or a bucket by URL."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights, Unavailable
from sfumato.runtime.settings import StoreSettings

DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """Content-addressed blobs, and named objects such as manifests. Writes are atomic."""

    def __init__(self, url: str) -> None:
        """Open a folder (created if absent) or an obstore URL such as ``s3://bucket/prefix``.

        Raises:
            InvalidInput: it cannot be opened.
        """
        self.url = url
        try:
            self._store = from_url(url, config=_keys(url)) if "://" in url else LocalStore(Path(url).absolute(), mkdir=True)
        except Exception as error:  # obstore's errors have no common base with those of the operating system
            raise InvalidInput("artifacts", f"{url} cannot be opened: {error}") from error

    def put(self, data: bytes) -> str:
        """Store ``data``; returns its SHA-256. Bytes that are stored already are not written again.

        Raises:
            Unavailable: the store cannot be written, for example because the disk is full or access is denied.
        """
        digest = hashlib.sha256(data).hexdigest()
        if not self._exists(_blob(digest)):
            self.write_key(_blob(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes whose SHA-256 is ``digest``.

        Raises:
            MissingWeights: they are not in the store.
            BrokenWeights: the stored bytes have another SHA-256.
        """
        data = self.read_key(_blob(digest))
        if data is None:
            raise MissingWeights(f"Artifact {digest} is not in {self.url}.", hint="Run again: missing artifacts are computed again.")
        if hashlib.sha256(data).hexdigest() != digest:
            raise BrokenWeights(f"Artifact {digest} in {self.url} is damaged.", hint=f"Delete {_blob(digest)} there and run again.")
        return data

    def holds(self, digest: str) -> bool:
        """Whether a blob is stored (its content is checked when it is read)."""
        return self._exists(_blob(digest))

    def size(self, digest: str) -> int | None:
        """The size of a blob in bytes; None if it is not stored."""
        try:
            return int(obstore.head(self._store, _blob(digest))["size"])
        except FileNotFoundError:
            return None

    def delete(self, digest: str) -> None:
        """Remove a blob, if it is stored."""
        self.delete_key(_blob(digest))

    def keys(self, prefix: str) -> Iterator[str]:
        """The names of all objects in a folder of the store, such as ``manifests/``, in any order."""
        for batch in obstore.list(self._store, prefix):
            for entry in batch:
                yield entry["path"]

    def stamped(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """The names of all objects in a folder of the store and when each was written, in any order."""
        for batch in obstore.list(self._store, prefix):
            for entry in batch:
                yield entry["path"], entry["last_modified"]

    def read_key(self, key: str) -> bytes | None:
        """A named object; None if it is not stored."""
        found = self.read_stamped(key)
        return None if found is None else found[0]

    def read_stamped(self, key: str) -> tuple[bytes, datetime] | None:
        """A named object and when it was written; None if it is not stored."""
        try:
            found = obstore.get(self._store, key)
        except FileNotFoundError:
            return None
        return bytes(found.bytes()), found.meta["last_modified"]

    def write_key(self, key: str, data: bytes) -> None:
        """Write or replace a named object, whole or not at all.

        Raises:
            Unavailable: the store cannot be written, for example because the disk is full or access is denied.
        """
        self._write(key, data, "overwrite")

    def create_key(self, key: str, data: bytes) -> bool:
        """Write a named object unless it exists; returns whether this call wrote it. Of concurrent calls exactly one writes.

        Raises:
            Unavailable: the store cannot be written, for example because the disk is full or access is denied.
        """
        try:
            self._write(key, data, "create")
        except AlreadyExistsError:
            return False
        return True

    def _write(self, key: str, data: bytes, mode: Literal["create", "overwrite"]) -> None:
        try:
            obstore.put(self._store, key, data, mode=mode)
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            raise Unavailable(
                f"The artifact store {self.url} cannot be written: {str(error).splitlines()[0]}.",
                hint="Is the disk full? Make room and run the same command again: finished work is kept.",
            ) from error

    def delete_key(self, key: str) -> None:
        """Remove a named object, if it is stored."""
        if self._exists(key):
            obstore.delete(self._store, key)

    def _exists(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True


def _keys(url: str) -> Any:
    """A bucket's credentials from the settings or their files; None if the store is to find its own."""
    if not url.startswith(("s3://", "s3a://")):
        return None
    return {name: key.get_secret_value() for name, key in StoreSettings() if key.get_secret_value()} or None


def _blob(digest: str) -> str:
    """The name of a blob. The digest may come from a request, so it is checked: it must not become another path."""
    if not DIGEST.fullmatch(digest):
        raise InvalidInput("digest", f"{digest[:80]!r} is not a SHA-256.", hint="Give its 64 lower-case hexadecimal digits.")
    return f"blobs/{digest[:2]}/{digest}"
