"""Keeps programs of this machine up: starts them, waits until they are healthy, starts again what dies, ends them in good order."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sfumato.errors import Unavailable
from sfumato.runtime import child_processes
from sfumato.runtime.backoff import restarting
from sfumato.runtime.client import channel

LONGEST_LINE = 2**16
STEADY = 60.0
"""Seconds of life after which a program that dies is started again at once, as if it were the first time."""
LOOK = 0.2
"""Seconds between looks at health."""
UNUSABLE = 2
"""Exit status of a program that no second start would help: settings, an address or weights are unusable."""

Tell = Callable[[str, bytes], None]
"""Told every line that a program writes, and what becomes of it: its name, and the words."""


@dataclass(frozen=True, slots=True)
class Program:
    """A module to run, where it answers over gRPC, and what its environment has besides this process's."""

    name: str
    module: str
    address: str
    environment: Mapping[str, str]


@dataclass(slots=True, eq=False)
class _ProgramState:
    """A program that is kept up, and its process while it has one."""

    program: Program
    process: asyncio.subprocess.Process | None = None
    keeping: asyncio.Task[None] | None = None
    served: bool = False
    last_words: deque[bytes] = field(default_factory=lambda: deque(maxlen=12))


class _ProcessEnded(Exception):
    """The program's process ended by itself."""


class Supervisor:
    """Starts programs and keeps them up until it is told to stop; all in one event loop, in the main thread."""

    def __init__(self, logs: Path, tell: Tell, *, ready: float = 900.0, grace: float = 40.0) -> None:
        """Each program's output goes to a file of ``logs`` and to ``tell``.

        ``ready`` is the seconds in which it must be healthy, ``grace`` those that it has to end.
        """
        self._logs, self._tell, self._ready, self._grace = logs, tell, ready, grace
        self._groups: list[list[_ProgramState]] = []
        self._stopping = False

    async def start(self, programs: Sequence[Program]) -> None:
        """Start these and wait until all of them are SERVING.

        Raises:
            Unavailable: one cannot be used as it is set up, or is not healthy in time; its last words are told.
        """
        begun = [_ProgramState(program) for program in programs]
        self._groups.append(begun)
        for kept in begun:
            kept.keeping = asyncio.create_task(self._keep(kept))
        await asyncio.gather(*(self._healthy(kept) for kept in begun))
        for kept in begun:
            kept.served = True

    async def stop(self) -> None:
        """End all programs, those that were started last first; by force what does not go within the grace."""
        self._stopping = True
        for group in reversed(self._groups):
            await asyncio.gather(*(self._end(kept) for kept in group))

    def kill(self) -> None:
        """End them at once."""
        self._stopping = True
        for kept in (kept for group in self._groups for kept in group):
            if kept.process is not None and kept.process.returncode is None:
                kept.process.kill()

    async def _keep(self, kept: _ProgramState) -> None:
        """Start a program as often as it ends; less and less often where it does not live long."""
        while not self._stopping:
            attempts = restarting(
                lambda error: isinstance(error, _ProcessEnded), lambda words: self._tell(kept.program.name, words.encode())
            )
            async for attempt in attempts:
                with attempt:
                    await self._live(kept)

    async def _live(self, kept: _ProgramState) -> None:
        """One life of a program, from its start to its end.

        Raises:
            _ProcessEnded: it ended by itself, and soon.
        """
        program, began = kept.program, time.monotonic()
        with (self._logs / f"{program.name}.log").open("ab") as log:
            process = kept.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                program.module,
                env=os.environ | dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends them in order
                preexec_fn=functools.partial(child_processes.end_with, os.getpid()),
            )
            again = asyncio.create_task(self._tell_again(kept)) if kept.served else None
            assert process.stdout is not None
            async for line in _lines(process.stdout):
                self._line(kept, log, line)
            code = await process.wait()
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

    def _line(self, kept: _ProgramState, log: BinaryIO, line: bytes) -> None:
        log.write(line + b"\n")
        log.flush()
        kept.last_words.append(line)
        self._tell(kept.program.name, line)

    async def _tell_again(self, kept: _ProgramState) -> None:
        began = time.monotonic()
        await self._healthy(kept)
        self._tell(kept.program.name, f"it is up again after {time.monotonic() - began:.1f} s".encode())

    async def _healthy(self, kept: _ProgramState) -> None:
        """Wait until a program is SERVING.

        Raises:
            Unavailable: it cannot be used, or is not healthy in time.
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
        if process is not None and process.returncode is None:
            alive = True
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self._grace)
            except TimeoutError:
                self._tell(kept.program.name, f"did not end within {self._grace:.0f} s and is ended by force".encode())
                process.kill()
                await process.wait()
        if keeping is not None:
            if alive:
                await asyncio.wait([keeping], timeout=2.0)  # for its last words
            keeping.cancel()  # it may sleep between two lives
            await asyncio.wait([keeping])


def serving(address: str) -> bool:
    """Whether the program that listens there says that it is SERVING."""
    with channel(address) as asked:
        health: Any = health_pb2_grpc.HealthStub(asked)  # its types know no calls
        try:
            return health.Check(health_pb2.HealthCheckRequest(), timeout=2.0).status == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines as they come; one that is too long in pieces."""
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
