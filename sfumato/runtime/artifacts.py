"""The artifact store: bytes under their SHA-256, checked whenever they are read. A folder by default, a bucket by URL."""

from __future__ import annotations

import hashlib
from pathlib import Path

import obstore
from obstore.store import LocalStore, from_url

from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights


class ArtifactStore:
    """Content-addressed blobs, and a few small objects under names of their own (manifests). Writes are atomic."""

    def __init__(self, url: str) -> None:
        """Open a folder (created if need be) or an obstore URL such as ``s3://bucket/prefix``.

        Raises:
            InvalidInput: the place cannot be used.
        """
        self.url = url
        try:
            self._store = from_url(url) if "://" in url else LocalStore(Path(url).absolute(), mkdir=True)
        except Exception as error:  # obstore's errors have no common base with those of the operating system
            raise InvalidInput("artifacts", f"{url} cannot be opened: {error}") from error

    def put(self, data: bytes) -> str:
        """Store ``data``; its SHA-256. Bytes that are there already are not written again."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._exists(_blob(digest)):
            obstore.put(self._store, _blob(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes whose SHA-256 is ``digest``.

        Raises:
            MissingWeights: they are not in the store.
            BrokenWeights: what is there has another SHA-256.
        """
        data = self.read_key(_blob(digest))
        if data is None:
            raise MissingWeights(f"Artifact {digest} is not in {self.url}.", hint="Run again: what is missing is made anew.")
        if hashlib.sha256(data).hexdigest() != digest:
            raise BrokenWeights(f"Artifact {digest} in {self.url} is damaged.", hint=f"Delete {_blob(digest)} there and run again.")
        return data

    def holds(self, digest: str) -> bool:
        """Whether a blob is there (its content is checked when it is read)."""
        return self._exists(_blob(digest))

    def read_key(self, key: str) -> bytes | None:
        """A named object, or None where there is none."""
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None

    def write_key(self, key: str, data: bytes) -> None:
        """Write or replace a named object."""
        obstore.put(self._store, key, data)

    def _exists(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True


def _blob(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"
