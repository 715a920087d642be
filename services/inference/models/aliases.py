"""Watches where the registry's aliases point; no move is missed while the registry restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from sfumato.errors import SfumatoError
from sfumato.registry.client import RegistryClient

log = logging.getLogger(__name__)

Moved = Callable[[Mapping[str, str]], None]
PAUSE = 1.0
"""Seconds before the next attempt, after the registry did not answer or ended the watch."""


class AliasWatcher:
    """Watches a registry in its own thread and reports where all aliases point, at the start and after every move.

    The number of the last event is read before the aliases, and the watch starts at that number: a move in between is reported twice,
    never lost. After an event all aliases are read again, because others may have moved since. When the registry restarts, the client
    continues after the last event; when it comes back from an older copy, everything is read again.
    """

    def __init__(self, registry: RegistryClient, moved: Moved, pause: float = PAUSE) -> None:
        """``moved`` is called in the thread, with the version ids of all aliases."""
        self._registry, self._moved, self._pause = registry, moved, pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alias-watcher", daemon=True)
        self.trouble = "the registry has not answered yet"

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop: close the registry's client, which ends the watch, and join the thread."""
        self._ended.set()
        self._registry.close()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                after = self._registry.latest()
                self._moved(self._registry.aliases())
                self.trouble = ""
                for event in self._registry.watch(after):
                    if event.kind == "alias":
                        self._moved(self._registry.aliases())
            except SfumatoError as error:
                self.trouble = str(error)
            except ValueError:  # raised by gRPC for a call on a closed channel
                if not self._ended.is_set():
                    raise
            if not self._ended.is_set():
                log.warning("The registry is asked again: %s", self.trouble or "the watch ended")
                self._ended.wait(self._pause)
