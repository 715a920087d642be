"""Probes: a process is alive while its event loop runs, and ready while it serves."""

import asyncio
import urllib.error
import urllib.request

import pytest

from sfumato.runtime import probes
from sfumato.runtime.probes import Probes, listening


def _told(port: int, path: str) -> int:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_readiness_follows_the_state() -> None:
    own = Probes()
    with listening("127.0.0.1:0", own) as port:
        assert (_told(port, "/livez"), _told(port, "/readyz"), _told(port, "/metrics")) == (200, 503, 200)
        own.ready = True
        assert _told(port, "/readyz") == 200


def test_a_stuck_event_loop_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Probes(ready=True)

    async def live() -> None:
        beating = asyncio.create_task(own.beat())
        await asyncio.sleep(0)
        assert own.alive
        monkeypatch.setattr(probes, "SILENCE", -1.0)  # as if its last beat were long ago
        assert (_told(port, "/livez"), _told(port, "/readyz")) == (503, 503)
        beating.cancel()

    with listening("127.0.0.1:0", own) as port:
        asyncio.run(live())
        assert own.alive  # it has ended, and does not hang
