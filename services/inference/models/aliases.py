"""Where the registry's aliases point, told as they move: none is missed, whatever goes away in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog

from sfumato.errors import SfumatoError
from sfumato.registry.client import RegistryClient

log = structlog.get_logger(__name__)

Moved = Callable[[Mapping[str, str]], None]
PAUSE = 1.0
"""Seconds before a registry that does not answer is asked again."""


class AliasWatcher:
    """Watches a registry from a thread of its own and says where all aliases point, at first and after every move.

    The number of the last event is taken before the aliases are read, and the watch goes on from that number: a move in between
    is told twice rather than never. Aliases are read, not taken from the event, for others may have moved since. When the registry
    goes away the client goes on after the last event it gave; when it comes back as another one (restored from an older copy),
    everything is read anew.
    """

    def __init__(self, registry: RegistryClient, moved: Moved, pause: float = PAUSE) -> None:
        """``moved`` is called from the thread, with the version ids of all aliases."""
        self._registry, self._moved, self._pause = registry, moved, pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)
        self.trouble = "the registry has not answered yet"

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, and close the registry's client, which ends the watch."""
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
            except ValueError:  # gRPC's word for a call on a channel that was closed
                if not self._ended.is_set():
                    raise
            if not self._ended.is_set():
                log.warning("the registry is asked anew", trouble=self.trouble)
                self._ended.wait(self._pause)
