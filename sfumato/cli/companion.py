"""The VLM server of a run: started in the background while the first pictures are painted, ended with the run."""

from __future__ import annotations

import threading
from pathlib import Path

from sfumato.errors import SfumatoError, Unavailable
from sfumato.runtime.processes import free_ports
from sfumato.runtime.settings import Settings
from sfumato.runtime.vlm import HOST, VlmModel, serving

LOOK = 1.0
"""Seconds between looks whether the server is still there."""


class BackgroundVlm:
    """Serves a model, whatever its profile, from a thread of its own. ``url`` is known before the server is up."""

    def __init__(self, model: VlmModel, log: Path, threads: int, port: int = 0) -> None:
        """``port`` is where it will listen; a free one where 0."""
        self._model, self._log, self._threads = model, log, threads
        (self._port,) = free_ports([port])
        self._ended = threading.Event()
        self._error: SfumatoError | None = None
        self._thread = threading.Thread(target=self._serve, name="vlm", daemon=True)

    @property
    def url(self) -> str:
        """Where it will answer."""
        return f"http://{HOST}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a worker must know to wait for it and to ask it."""
        return {"SFUMATO_VLM_URL": self.url, "SFUMATO_VLM_WAIT": str(self._model.ready)}

    def start(self) -> None:
        """Begin to start it; returns at once."""
        self._thread.start()

    def check(self) -> None:
        """Raise what kept it from starting, or ended it.

        Raises:
            Unavailable: vLLM is not installed, did not start, or ended.
            MissingWeights: there is no such model.
        """
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End it, whether it is up already or not."""
        self._ended.set()
        self._thread.join(60)

    def _serve(self) -> None:
        key = Settings().vlm_api_key.get_secret_value()
        options = {"port": self._port, "threads": self._threads, "log": self._log, "api_key": key}
        try:
            with serving(self._model, on_wait=self._leave_if_ended, **options) as server:
                while not self._ended.wait(LOOK):
                    if server.process.poll() is not None:
                        hint = f"Out of memory? See {self._log}; finished work is kept: run the same command again."
                        raise Unavailable(f"The VLM server ended with code {server.process.returncode}.", hint=hint)
        except _Ended:
            return
        except SfumatoError as error:
            self._error = error

    def _leave_if_ended(self, _: float) -> None:
        if self._ended.is_set():
            raise _Ended


class _Ended(Exception):
    """The run ended while the server was still starting."""
