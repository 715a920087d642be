"""The artifact store: bytes by their SHA-256, checked at every read. A folder by default, or a bucket by URL."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, from_url

from sfumato.errors import Blocked, BrokenWeights, InvalidInput, MissingWeights, Unavailable
from sfumato.runtime.proxies import proxy_of
from sfumato.runtime.settings import StoreSettings

DIGEST = re.compile(r"[0-9a-f]{64}")
BUCKETS = ("s3://", "s3a://")
_CLIENT = ("allow_http", "allow_invalid_certificates", "connect_timeout", "timeout", "user_agent")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_LASTING = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of the disk is used up", errno.EROFS: "the disk is read-only"}
_LASTING |= {
    errno.ENOTDIR: "a file is in the place of a folder",
    errno.EACCES: "access is denied",
    errno.EPERM: "access is denied",
    errno.EFBIG: "the file is larger than is allowed",
}
"""Errors of the operating system that do not pass by themselves, which obstore gives as text: ``... (os error 28)``."""
_NUMBER = re.compile(r"\(os error (\d+)\)")


class ArtifactStore:
    """Content-addressed blobs, and named objects such as manifests. Writes are atomic.

    Every call raises `Unavailable` if the store cannot be reached, and `Blocked`, which is one, if it refuses: the disk is full, access is
    denied, there is no such bucket.
    """

    def __init__(self, url: str) -> None:
        """Open a folder (created if absent) or an obstore URL such as ``s3://bucket/prefix``.

        Raises:
            InvalidInput: it cannot be opened.
        """
        self.url = url
        try:
            self._store = _opened(url) if "://" in url else LocalStore(Path(url).absolute(), mkdir=True)
        except Exception as error:  # obstore's errors have no common base with those of the operating system
            raise InvalidInput("artifacts", f"{url} cannot be opened: {error}") from error

    def put(self, data: bytes) -> str:
        """Store ``data``; returns its SHA-256. Bytes that are stored already are not written again."""
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
            with self._told("read"):
                return int(obstore.head(self._store, _blob(digest))["size"])
        except FileNotFoundError:
            return None

    def delete(self, digest: str) -> None:
        """Remove a blob, if it is stored."""
        self.delete_key(_blob(digest))

    def keys(self, prefix: str) -> Iterator[str]:
        """The names of all objects in a folder of the store, such as ``manifests/``, in any order."""
        for path, _ in self.stamped(prefix):
            yield path

    def stamped(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """The names of all objects in a folder of the store and when each was written, in any order."""
        with self._told("read"):
            batches = iter(obstore.list(self._store, prefix))
        while True:
            with self._told("read"):
                batch = next(batches, ())
            if not batch:
                return
            for entry in batch:
                yield entry["path"], entry["last_modified"]

    def read_key(self, key: str) -> bytes | None:
        """A named object; None if it is not stored."""
        found = self.read_stamped(key)
        return None if found is None else found[0]

    def read_stamped(self, key: str) -> tuple[bytes, datetime] | None:
        """A named object and when it was written; None if it is not stored."""
        try:
            with self._told("read"):
                found = obstore.get(self._store, key)
                return bytes(found.bytes()), found.meta["last_modified"]
        except FileNotFoundError:
            return None

    def write_key(self, key: str, data: bytes) -> None:
        """Write or replace a named object, whole or not at all."""
        self._write(key, data, "overwrite")

    def create_key(self, key: str, data: bytes) -> bool:
        """Write a named object unless it exists; returns whether this call wrote it. Of concurrent calls exactly one writes."""
        try:
            self._write(key, data, "create")
        except AlreadyExistsError:
            return False
        return True

    def _write(self, key: str, data: bytes, mode: Literal["create", "overwrite"]) -> None:
        try:
            with self._told("written"):
                obstore.put(self._store, key, data, mode=mode)
        except FileNotFoundError as error:  # a folder is made with its first file, so it is a bucket that does not exist
            raise _refusal(self.url, "written", f"there is no bucket ({_first_line(error)})") from error

    def delete_key(self, key: str) -> None:
        """Remove a named object, if it is stored."""
        if self._exists(key):
            with self._told("written"):
                obstore.delete(self._store, key)

    def _exists(self, key: str) -> bool:
        try:
            with self._told("read"):
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn a failure of the store in the block into `Blocked` or `Unavailable`; ``what``: read or written.

        Raises:
            FileNotFoundError, AlreadyExistsError: there is no such object; there is one.
        """
        try:
            yield
        except (AlreadyExistsError, FileNotFoundError):
            raise
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise _refusal(self.url, what, f"access is denied ({_first_line(error)})") from error
        except (BaseError, OSError) as error:
            number = getattr(error, "errno", None) or next((int(found) for found in _NUMBER.findall(str(error))), 0)
            if number in _LASTING:
                raise _refusal(self.url, what, f"{_LASTING[number]} ({_first_line(error)})") from error
            hint = "Is it running and reachable? Run the same command again then: finished work is kept."
            raise Unavailable(f"The artifact store {self.url} cannot be {what}: {_first_line(error)}.", hint=hint) from error


def _refusal(url: str, what: str, why: str) -> Blocked:
    if "bucket" in why or url.startswith(BUCKETS):
        hint = "Check the bucket's name, its permissions and the credentials AWS_*."
    elif "denied" in why or "read-only" in why:
        hint = "Give the user of this process the right to write there."
    else:
        hint = "Make room."
    hint += " Then run the same command again: finished work is kept."
    return Blocked(f"The artifact store {url} cannot be {what}: {why}.", hint=hint)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _opened(url: str) -> Any:
    """The store at a URL. A bucket at an address of one's own goes through a proxy as `sfumato.runtime.proxies` says."""
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    if not url.startswith(BUCKETS) or not endpoint or os.environ.get("AWS_PROXY_URL"):
        return from_url(url, config=_keys(url))
    proxy = proxy_of(endpoint)
    # A client that is given a proxy reads no variables, and the exception keeps it from using that proxy.
    host = urlsplit(endpoint).hostname or ""
    options: Any = {"proxy_url": proxy} if proxy else {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": host}
    # Options that are given replace all those that the client reads from variables.
    given = {name: os.environ[f"AWS_{name.upper()}"] for name in _CLIENT if f"AWS_{name.upper()}" in os.environ}
    options |= {name: value.lower() in ("1", "true", "yes", "on") if name.startswith("allow") else value for name, value in given.items()}
    return from_url(url, config=_keys(url), client_options=options)


def _keys(url: str) -> Any:
    """A bucket's credentials from the settings or their files; None if the store is to find its own."""
    if not url.startswith(BUCKETS):
        return None
    return {name: key.get_secret_value() for name, key in StoreSettings() if key.get_secret_value()} or None


def _blob(digest: str) -> str:
    """The name of a blob. The digest may come from a request, so it is checked: it must not become another path."""
    if not DIGEST.fullmatch(digest):
        raise InvalidInput("digest", f"{digest[:80]!r} is not a SHA-256.", hint="Give its 64 lower-case hexadecimal digits.")
    return f"blobs/{digest[:2]}/{digest}"
