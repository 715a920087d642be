"""Drives runs: acquires the lease on each run that is wanted and has no driver, and executes it.

The lease only avoids duplicate work; correctness does not depend on it. Two replicas that drive the same run send the same tasks, each of
which is done once, and produce the same bytes; the first outcome that is written stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Gauge
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from orchestrator.engine.stages import Waiting
from orchestrator.replica.board import LatestEvents
from orchestrator.replica.index import DESIRED, DesiredState, Index
from orchestrator.runs.drive import RunExecution, Stopped
from orchestrator.runs.records import Record, Records
from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.errors import Blocked, NotFound, SfumatoError, Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.runs.records import Event, Outcome
from sfumato.runtime.addresses import ServiceAddress
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.settings import BusSettings, FiledSettings
from sfumato.runtime.tasks import find
from sfumato.runtime.telemetry import bound

log = logging.getLogger(__name__)

ROUND = 1.0
"""Seconds between two reads of the desired states if no change is received."""
LATER = 30.0
"""Seconds until a run is driven again whose outcome could not be stored, for a reason that lasts."""
TRIES = 5
"""Retries of a run after the bus or the store was unavailable, before it counts as failed."""
KEPT = "Finished work is kept. Continue from there: sfumato runs resume ID"

runs_seen = Gauge("sfumato_runs", "Runs that have not ended, as this replica sees them, by desired state.", ["state"])
runs_driven = Gauge("sfumato_runs_driven", "Runs that this replica drives.")
in_flight = Gauge("sfumato_run_tasks_in_flight", "Tasks that a run driven by this replica has sent and waits for.", ["run"])
iteration_of = Gauge("sfumato_run_iteration", "The current loop iteration of a run driven by this replica; 0 outside of a loop.", ["run"])
metric_of = Gauge(
    "sfumato_run_metric",
    "The latest numeric metrics of a stage of a run driven by this replica; the method names them (docs/runs.md).",
    ["run", "stage", "metric"],
)
PER_RUN = (in_flight, iteration_of, metric_of)


class DriverSettings(FiledSettings):
    """Settings of a replica's driver: ``SFUMATO_ORCHESTRATOR_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_ORCHESTRATOR_", frozen=True)

    # Runs that a replica drives at the same time; each has a thread and a connection.
    runs: int = Field(default=16, ge=1, le=1000)
    # Lifetime of a lease without renewal, in seconds; after it another replica takes over the run.
    lease: float = Field(default=10.0, ge=1)
    # The address of the registry for the models of finished runs; empty: models are not registered automatically.
    registry: ServiceAddress = ""
    # Seconds between two publications of a run's events.
    tell: float = Field(default=0.25, ge=0.01)
    # The template (YAML) of the Kubernetes Job that is created for each joint training; empty: existing workers do them.
    joint_job: Path | None = None


@dataclass(slots=True, eq=False)
class _Driven:
    """A run that this replica drives."""

    attempt: int
    revision: int
    execution: RunExecution
    latest: LatestEvents = field(default_factory=LatestEvents)


class Driver:
    """Runs `run` as a task of the event loop; the owner awaits `stop` at the end."""

    def __init__(
        self, name: str, index: Index, records: Records, artifacts: ArtifactStore, bus: BusSettings, settings: DriverSettings
    ) -> None:
        """``name`` identifies this replica, such as its host and process."""
        self.name, self._settings = name, settings
        self._index, self._records, self._artifacts, self._bus = index, records, artifacts, bus
        self._driven: dict[str, _Driven] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._retries: Counter[str] = Counter()
        self._retry_at: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._closing = False
        self._threads = ThreadPoolExecutor(settings.runs, thread_name_prefix="run")

    async def run(self) -> None:
        """Drive until cancelled."""
        async with self._index.listening("*", self._on_change):
            while not self._closing:
                try:
                    await self._round()
                except Unavailable as error:
                    log.warning("%s", error)
                try:
                    await asyncio.wait_for(self._changed.wait(), ROUND)
                except TimeoutError:
                    continue
                finally:
                    self._changed.clear()

    async def stop(self, grace: float) -> bool:
        """Stop all runs and release their leases, so that other replicas continue them. Whether all stopped within ``grace``."""
        self._closing = True
        driven = dict(self._driven)
        for run in driven.values():
            run.execution.stop()
        await asyncio.gather(*(self._index.release(name, run.revision) for name, run in driven.items()), return_exceptions=True)
        _, left = await asyncio.wait(self._jobs, timeout=grace) if self._jobs else (set(), set())
        self._threads.shutdown(wait=False, cancel_futures=True)
        return not left

    def _on_change(self, bucket: str, data: bytes) -> None:
        # A renewed lease needs no action; a released one does, and so does a desired state.
        if bucket == DESIRED or not data:
            self._changed.set()

    async def _round(self) -> None:
        states = await self._index.all_desired()
        for state in ("run", "waiting", "pause"):
            runs_seen.labels(state).set(sum(state == ("waiting" if desired.waiting else desired.wanted) for desired in states.values()))
        for name, driven in list(self._driven.items()):
            desired = states.get(name) or await self._restored(name, driven)
            if desired is None or desired.wanted != "run" or desired.attempt != driven.attempt:
                driven.execution.stop()
        now = time.monotonic()
        for name, desired in states.items():
            if len(self._driven) >= self._settings.runs or self._closing:
                break
            if desired.wanted == "run" and not desired.waiting and name not in self._driven and self._retry_at.get(name, 0.0) <= now:
                revision = await self._index.take(name, self.name)
                if revision is not None:
                    self._begin(name, desired.attempt, revision)

    async def _restored(self, name: str, driven: _Driven) -> DesiredState | None:
        """Restore the desired state of a driven run after the bus lost it; None if the run has ended."""
        if await asyncio.to_thread(self._records.outcome, name) is not None:
            return None
        driven.latest.renew()
        return await self._index.change(name, lambda old: old or DesiredState(wanted="run", attempt=driven.attempt))

    def _begin(self, name: str, attempt: int, revision: int) -> None:
        job = asyncio.create_task(self._drive(name, attempt, revision))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _drive(self, name: str, attempt: int, revision: int) -> None:
        """Execute a run until it ends, stops, or waits."""
        with bound(run=name):
            try:
                record, _ = await asyncio.to_thread(self._records.record, name)
            except NotFound:
                log.warning("There is no record of the run %s.", name)
                await self._index.change(name, lambda _: None)
                return
            driven = self._driven[name] = _Driven(attempt, revision, self._execution(name, record))
            runs_driven.set(len(self._driven))
            side = [asyncio.create_task(self._renew(name, driven)), asyncio.create_task(self._publish_periodically(name, driven))]
            try:
                if await asyncio.to_thread(self._records.outcome, name) is None:
                    log.info("Driving the run %s.", name)
                    outcome = await self._outcome(name, driven)
                    await self._publish(name, driven)
                    if outcome is not None:
                        await asyncio.to_thread(self._records.end, name, outcome)
                        log.info("The run %s is %s.", name, outcome.state)
                if await asyncio.to_thread(self._records.outcome, name) is not None:
                    await self._index.change(name, lambda _: None)
            except Unavailable as error:
                log.warning("%s", error)  # the next replica that drives the run completes it
                self._retry_at[name] = time.monotonic() + (LATER if isinstance(error, Blocked) else ROUND)
            finally:
                await cancel_all(side)
                await self._leave(name, driven)

    def _execution(self, name: str, record: Record) -> RunExecution:
        """An execution of a run over the bus."""
        address = self._settings.registry
        registry = (lambda: RegistryClient(address)) if address else None
        return RunExecution(name, record, self._artifacts, lambda: JetStreamTransport(self._bus, self._artifacts), registry)

    async def _outcome(self, name: str, driven: _Driven) -> Outcome | None:
        """Execute a run; its outcome, None if it has not ended. Logs why."""
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._threads, driven.execution.drive, driven.latest.put)
        except Stopped:
            log.info("The run %s is stopped on this replica.", name)
        except Waiting as waiting:
            await self._wait(name, driven.attempt, waiting)
        except Blocked as error:
            log.warning("The run %s ends: %s", name, error)
            return await self._failed(name, driven, error)
        except Unavailable as error:
            self._retries[name] += 1
            log.warning("The run %s cannot continue now: %s", name, error)
            if self._retries[name] > TRIES:
                return await self._failed(name, driven, error)
            self._retry_at[name] = time.monotonic() + 2.0 ** self._retries[name]
        except SfumatoError as error:
            log.warning("The run %s failed: %s", name, error)
            return await self._failed(name, driven, error)
        except Exception as error:  # a defect: the outcome reports it, the log has the traceback
            log.exception("The run %s failed.", name)
            return await self._failed(name, driven, SfumatoError(f"Internal error of the orchestrator: {error!r}."[:1000]))
        else:
            self._retries.pop(name, None)
            return outcome
        return None

    async def _failed(self, name: str, driven: _Driven, error: SfumatoError) -> Outcome | None:
        """The outcome of a failed run; None if it was paused or resumed meanwhile."""
        desired = await self._index.desired(name)
        if desired is not None and (desired.attempt != driven.attempt or desired.wanted != "run"):
            return None
        self._retries.pop(name, None)
        return Outcome(state="failed", error=error.message, hint=f"{error.hint} {KEPT}".strip())

    async def _wait(self, name: str, attempt: int, waiting: Waiting) -> None:
        """Mark a run as waiting for a person; the answers may have arrived already."""
        log.info("The run %s waits for a person: %d pairs.", name, len(waiting.tasks))

        def left() -> int:
            return sum(find(task, self._artifacts) is None for task in waiting.tasks)

        def with_waiting(old: DesiredState | None, count: int) -> DesiredState | None:
            old = old or DesiredState(wanted="run", attempt=attempt)
            return old.model_copy(update={"waiting": count}) if old.attempt == attempt else old

        await self._index.change(name, lambda old: with_waiting(old, len(waiting.tasks)))
        if not await asyncio.to_thread(left):
            await self._index.change(name, lambda old: with_waiting(old, 0))

    async def _renew(self, name: str, driven: _Driven) -> None:
        """Renew the lease periodically; stop the run if another replica holds it."""
        while True:
            await asyncio.sleep(self._settings.lease / 3)
            try:
                revision = await self._index.renew(name, self.name, driven.revision)
            except Unavailable as error:
                log.warning("The lease on %s cannot be renewed now: %s", name, error)  # other replicas cannot acquire it either
                continue
            if revision is None:
                log.warning("Another replica drives the run %s.", name)
                driven.execution.stop()
                return
            driven.revision = revision

    async def _publish_periodically(self, name: str, driven: _Driven) -> None:
        """Publish the events of a run at most every ``tell`` seconds."""
        while True:
            await asyncio.sleep(self._settings.tell)
            await self._publish(name, driven)

    async def _publish(self, name: str, driven: _Driven) -> None:
        in_flight.labels(name).set(driven.execution.in_flight)
        if driven.latest.latest is not None:
            iteration_of.labels(name).set(driven.latest.latest.iteration)
        for section, events in driven.latest.take().items():
            for event in events:
                _measure(name, event)
            try:
                await self._index.publish(name, section, events)
            except Unavailable as error:
                log.debug("events cannot be published now: %s", error)
                driven.latest.renew()
                return

    async def _leave(self, name: str, driven: _Driven) -> None:
        self._driven.pop(name, None)
        runs_driven.set(len(self._driven))
        for gauge in PER_RUN:
            gauge.remove_by_labels({"run": name})
        try:
            await self._index.release(name, driven.revision)
        except Unavailable as error:
            log.debug("the lease on %s cannot be released and will expire: %s", name, error)
        self._changed.set()


def _measure(name: str, event: Event) -> None:
    """Set the metrics of a finished stage."""
    for metric, value in event.metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            metric_of.labels(name, event.stage, metric).set(value)
