"""Runs the programs of a system on this machine: start, wait until healthy, restart after a crash, stop in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sfumato.errors import Unavailable
from sfumato.runtime.backoff import restarting
from sfumato.runtime.child_processes import ChildProcess
from sfumato.runtime.client import channel

LONGEST_LINE = 2**16
STEADY = 60.0
"""Seconds of life after which a program that ends is restarted at once, without a pause."""
LOOK = 0.2
"""Seconds between health checks."""
UNUSABLE = 2
"""Exit status of a program that would fail again: settings, an address or weights are unusable."""

Tell = Callable[[str, bytes], None]
"""Receives every line that a program writes and every change of its state: the program's name, and the line."""


@dataclass(frozen=True, slots=True)
class Program:
    """A module to run, its gRPC address, and its environment variables in addition to this process's."""

    name: str
    module: str
    address: str
    environment: Mapping[str, str]


@dataclass(slots=True, eq=False)
class _ProgramState:
    """A supervised program, and its process while it runs."""

    program: Program
    process: ChildProcess | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    keeping: asyncio.Task[None] | None = None
    served: bool = False
    last_words: deque[bytes] = field(default_factory=lambda: deque(maxlen=12))


class _ProcessEnded(Exception):
    """The program's process ended without being stopped, or could not be started."""


class Supervisor:
    """Starts programs and restarts them until it is stopped; in one event loop, in the main thread."""

    def __init__(self, logs: Path, tell: Tell, *, ready: float = 900.0, grace: float = 40.0) -> None:
        """Each program's output goes to a file in ``logs`` and to ``tell``.

        A program must be healthy within ``ready`` seconds of its start and end within ``grace`` seconds of SIGTERM.
        """
        self._logs, self._tell, self._ready, self._grace = logs, tell, ready, grace
        self._groups: list[list[_ProgramState]] = []
        self._stopping = False

    async def start(self, programs: Sequence[Program]) -> None:
        """Start these programs and wait until all are SERVING.

        Raises:
            Unavailable: a program is not usable as configured, or not healthy in time; the message holds the end of its log.
        """
        begun = [_ProgramState(program) for program in programs]
        self._groups.append(begun)
        for kept in begun:
            kept.keeping = asyncio.create_task(self._keep(kept))
        await asyncio.gather(*(self._healthy(kept) for kept in begun))
        for kept in begun:
            kept.served = True

    async def stop(self) -> None:
        """Stop all programs in reverse order of their start; kill those that do not end within the grace."""
        self._stopping = True
        for group in reversed(self._groups):
            await asyncio.gather(*(self._end(kept) for kept in group))

    def kill(self) -> None:
        """Kill all programs."""
        self._stopping = True
        for kept in (kept for group in self._groups for kept in group):
            if kept.process is not None and not kept.ended.is_set():
                kept.process.kill()

    async def _keep(self, kept: _ProgramState) -> None:
        """Restart a program whenever it ends, with growing pauses if it ends soon after each start."""
        while not self._stopping:
            attempts = restarting(
                lambda error: isinstance(error, _ProcessEnded), lambda words: self._tell(kept.program.name, words.encode())
            )
            async for attempt in attempts:
                with attempt:
                    await self._live(kept)

    async def _live(self, kept: _ProgramState) -> None:
        """Run a program once, from its start to its end.

        Raises:
            _ProcessEnded: it ended within `STEADY` seconds, or could not be started.
        """
        program, began = kept.program, time.monotonic()
        with self._log(program) as log:
            kept.ended = asyncio.Event()
            process = kept.process = _started(program)
            _when_ended(process, kept.ended)
            again = asyncio.create_task(self._tell_again(kept)) if kept.served else None
            assert process.stdout is not None
            async with _reading(process.stdout) as output:
                async for line in _lines(output):
                    self._line(kept, log, line)
            await kept.ended.wait()
            code = process.returncode
            assert code is not None
            if again is not None:
                again.cancel()
        if self._stopping:
            return
        ended = f"ended {f'by {signal.Signals(-code).name}' if code < 0 else f'with code {code}'}"
        if code == UNUSABLE and not kept.served:
            raise Unavailable(f"{program.name} {ended}. Its last words:\n{_words(kept)}")
        if time.monotonic() - began < STEADY:
            raise _ProcessEnded(ended)
        self._tell(program.name, f"{ended}; it is started again now".encode())

    def _log(self, program: Program) -> RawIOBase:
        """A program's log. Raises _ProcessEnded: it cannot be opened."""
        path = self._logs / f"{program.name}.log"
        try:
            return path.open("ab", buffering=0)
        except OSError as error:
            raise _ProcessEnded(f"cannot be started: {path} cannot be opened ({error.strerror})") from error

    def _line(self, kept: _ProgramState, log: RawIOBase, line: bytes) -> None:
        kept.last_words.append(line)
        self._tell(kept.program.name, line)
        try:
            log.write(line + b"\n")
        except OSError as error:  # a full disk does not keep a program from being started again
            self._tell(kept.program.name, f"its log cannot be written ({error.strerror})".encode())

    async def _tell_again(self, kept: _ProgramState) -> None:
        began = time.monotonic()
        await self._healthy(kept)
        self._tell(kept.program.name, f"it is up again after {time.monotonic() - began:.1f} s".encode())

    async def _healthy(self, kept: _ProgramState) -> None:
        """Wait until a program is SERVING.

        Raises:
            Unavailable: it is not usable as configured, or not healthy in time.
        """
        deadline = time.monotonic() + self._ready
        while not await asyncio.to_thread(serving, kept.program.address):
            if kept.keeping is not None and kept.keeping.done():
                kept.keeping.result()
            if time.monotonic() > deadline:
                raise Unavailable(f"{kept.program.name} was not ready after {self._ready:.0f} s. Its last words:\n{_words(kept)}")
            await asyncio.sleep(LOOK)

    async def _end(self, kept: _ProgramState) -> None:
        process, keeping, alive = kept.process, kept.keeping, False
        if process is not None and not kept.ended.is_set():
            alive = True
            process.terminate()
            try:
                await asyncio.wait_for(kept.ended.wait(), self._grace)
            except TimeoutError:
                self._tell(kept.program.name, f"did not end within {self._grace:.0f} s and is killed".encode())
                process.kill()
                await kept.ended.wait()
        if keeping is not None:
            if alive:
                await asyncio.wait([keeping], timeout=2.0)  # for the rest of its output
            keeping.cancel()  # it may be in a pause between two starts
            await asyncio.wait([keeping])


def serving(address: str) -> bool:
    """Whether the program at this address reports SERVING."""
    with channel(address) as asked:
        health: Any = health_pb2_grpc.HealthStub(asked)  # its types lack the calls
        try:
            return health.Check(health_pb2.HealthCheckRequest(), timeout=2.0).status == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False


def _started(program: Program) -> ChildProcess:
    """A program's process. Raises _ProcessEnded: the machine has no memory or no process left for it."""
    try:
        return ChildProcess(
            [sys.executable, "-m", program.module],
            env=os.environ | dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise _ProcessEnded(f"cannot be started ({error.strerror})") from error


def _when_ended(process: ChildProcess, ended: asyncio.Event) -> None:
    """Set an event of this loop when a process and its descendants have ended, from a thread that waits for it."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the system ends at once
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, name=f"wait-{process.pid}", daemon=True).start()


@contextlib.asynccontextmanager
async def _reading(pipe: IO[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    """A pipe as a stream of this loop."""
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        yield stream
    finally:
        transport.close()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a stream; a line that is too long is split."""
    rest = b""
    while data := await stream.read(LONGEST_LINE):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > LONGEST_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


def _words(kept: _ProgramState) -> str:
    return b"\n".join(kept.last_words).decode(errors="replace")
