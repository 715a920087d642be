"""What a cluster is told of a process: it lives while its event loop turns, and is ready while it serves."""

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


def test_a_process_is_ready_while_it_says_so() -> None:
    own = Probes()
    with listening("127.0.0.1:0", own) as port:
        assert (_told(port, "/livez"), _told(port, "/readyz"), _told(port, "/metrics")) == (200, 503, 200)
        own.ready = True
        assert _told(port, "/readyz") == 200


def test_an_event_loop_that_stands_still_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
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
