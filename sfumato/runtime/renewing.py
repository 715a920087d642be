"""Certificates that are renewed while in use: detecting replaced files, and a channel that uses the new ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from sfumato.errors import InvalidInput

log = logging.getLogger(__name__)


def state_of(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Inode and modification time of each file, which change when it is replaced (the kubelet replaces links); None if it is absent."""
    return [_state(path) for path in paths]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class RenewingChannel(grpc.Channel):
    """A channel for `grpc.intercept_channel` with interceptors of all four kinds, which look up the method at every call.

    A call that begins after the files were replaced uses a new channel; open calls stay on their channel, so old channels are closed
    together with this one only.
    """

    def __init__(self, opened: Callable[[], grpc.Channel], paths: Sequence[Path]) -> None:
        """``opened`` makes a channel from the current files at ``paths``. Raises what ``opened`` raises."""
        self._opened, self._paths, self._lock, self._closed = opened, paths, threading.Lock(), False
        self._seen = state_of(paths)
        self._channels = [opened()]

    def _now(self) -> grpc.Channel:
        with self._lock:
            state = state_of(self._paths)
            if state != self._seen and not self._closed:
                self._renew(state)
            return self._channels[-1]

    def _renew(self, state: list[tuple[int, int] | None]) -> None:
        try:
            renewed = self._opened()
        except InvalidInput as error:
            log.warning("A certificate cannot be read again (%s); the one before goes on.", error)
            return
        self._channels.append(renewed)
        if state_of(self._paths) == state:  # otherwise key and certificate may not match: the next call checks again
            self._seen = state
            log.info("A client's certificate was renewed.")

    def unary_unary(self, *words: Any, **options: Any) -> Any:
        """As `grpc.Channel`."""
        return self._now().unary_unary(*words, **options)

    def unary_stream(self, *words: Any, **options: Any) -> Any:
        """As `grpc.Channel`."""
        return self._now().unary_stream(*words, **options)

    def stream_unary(self, *words: Any, **options: Any) -> Any:
        """As `grpc.Channel`."""
        return self._now().stream_unary(*words, **options)

    def stream_stream(self, *words: Any, **options: Any) -> Any:
        """As `grpc.Channel`."""
        return self._now().stream_stream(*words, **options)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """As `grpc.Channel`."""
        self._channels[-1].subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        """As `grpc.Channel`."""
        self._channels[-1].unsubscribe(callback)

    def close(self) -> None:
        """Close it and the older channels."""
        with self._lock:
            self._closed = True
            for channel in self._channels:
                channel.close()

    def __enter__(self) -> RenewingChannel:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
