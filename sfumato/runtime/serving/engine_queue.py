"""An engine's queue: one thread, and a bounded number of calls that wait for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from sfumato.errors import Busy, Unavailable
from sfumato.runtime import telemetry

Engine = TypeVar("Engine")
Result = TypeVar("Result")


class CallerGone(Exception):
    """The call was cancelled, its deadline passed, or the service is shutting down."""


class Caller:
    """The caller of a call, as the engine's thread sees it."""

    def __init__(self, tell: Callable[[Any], object]) -> None:
        self._gone = threading.Event()
        self._tell = tell

    def check(self) -> None:
        """Raise `CallerGone` if the caller is gone: call it between the steps of long work."""
        if self._gone.is_set():
            raise CallerGone

    def tell(self, update: Any) -> None:
        """Pass an update to the caller (see `EngineQueue.stream`)."""
        self._tell(update)

    def leave(self) -> None:
        """Record that the caller is gone."""
        self._gone.set()


class EngineQueue(Generic[Engine]):
    """Runs calls on the engine one at a time, in order of arrival, all in the same thread.

    A call whose caller leaves while it waits is not started; a running call learns it from its `Caller`. The next call starts when the
    running one has left the thread.
    """

    def __init__(
        self, load: Callable[[], Engine], *, waiting: int = 32, unload: Callable[[Engine], object] = lambda engine: None
    ) -> None:
        """``load`` creates the engine, in its thread; ``waiting`` calls may wait while one runs; ``unload`` releases the engine."""
        self._load, self._waiting, self._unload = load, waiting, unload
        self._engine: Engine | None = None
        self._closed = False
        self._inside = 0
        self._free = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def open(self) -> None:
        """Load the engine; calls are accepted afterwards. Raises what loading raises."""
        await self._free.acquire()
        self._inside += 1
        loading = asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        loading.add_done_callback(self._left)
        self._engine = await asyncio.shield(loading)

    def close(self) -> None:
        """Accept no more calls; accepted calls go on."""
        self._closed = True

    def end(self) -> None:
        """End the thread; calls that have not started are dropped."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None and not self.busy:
            self._unload(self._engine)

    @property
    def busy(self) -> bool:
        """Whether calls are waiting or running, or the engine is loading."""
        return self._inside > 0

    @property
    def engine(self) -> Engine:
        """The engine, for what does not need its thread.

        Raises:
            Unavailable: it is not loaded yet, or the service is shutting down.
        """
        if self._closed:
            raise Unavailable("This service is shutting down.", hint="Ask another replica, or try again in a moment.")
        if self._engine is None:
            raise Unavailable("This service is still loading its model.", hint="Wait until its health is SERVING.")
        return self._engine

    async def call(self, work: Callable[[Engine, Caller], Result], tell: Callable[[Any], object] = lambda update: None) -> Result:
        """Run ``work`` on the engine, in its thread, after the calls before it; returns its result.

        Raises:
            Unavailable: as `engine`.
            Busy: too many calls are waiting.
        """
        if self._engine is not None and self._inside > self._waiting:
            raise Busy(f"{self._waiting} calls are waiting for this service already.", hint="Try again later, or ask another replica.")
        return await self.call_unbounded(work, tell)

    async def call_unbounded(self, work: Callable[[Engine, Caller], Result], tell: Callable[[Any], object] = lambda update: None) -> Result:
        """As `call`, without the limit of waiting calls: for a caller that submits work as fast as it is done, such as a bus worker.

        Raises:
            Unavailable: as `engine`.
        """
        engine, caller = self.engine, Caller(tell)
        self._inside += 1
        telemetry.waiting.inc()
        try:
            await self._free.acquire()
        except asyncio.CancelledError:
            self._inside -= 1
            raise
        finally:
            telemetry.waiting.dec()
        here = contextvars.copy_context()  # the trace and the log's context fields, for the engine's thread
        working = asyncio.get_running_loop().run_in_executor(self._thread, lambda: here.run(_measured, work, engine, caller))
        working.add_done_callback(self._left)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            caller.leave()
            raise

    async def stream(self, work: Callable[[Engine, Caller], Result]) -> AsyncIterator[Any]:
        """The updates that ``work`` sends to its caller, then its result. Raises: as `call`."""
        loop, updates, end = asyncio.get_running_loop(), asyncio.Queue[Any](), object()
        call = asyncio.create_task(self.call(work, lambda update: loop.call_soon_threadsafe(updates.put_nowait, update)))
        call.add_done_callback(lambda _: updates.put_nowait(end))
        call.add_done_callback(_seen)
        try:
            while (update := await updates.get()) is not end:
                yield update
            yield await call
        finally:
            call.cancel()

    def _left(self, working: asyncio.Future[Any]) -> None:
        """The engine is free again."""
        self._inside -= 1
        self._free.release()
        _seen(working)


def _measured(work: Callable[[Engine, Caller], Result], engine: Engine, caller: Caller) -> Result:
    """Run the work and measure its time."""
    started = time.perf_counter()
    with telemetry.in_work.track_inprogress():
        try:
            return work(engine, caller)
        finally:
            telemetry.engine_seconds.inc(time.perf_counter() - started)


def _seen(finished: asyncio.Future[Any]) -> None:
    """Retrieve the exception, which asyncio would report if no caller is left to do so."""
    if not finished.cancelled():
        finished.exception()
