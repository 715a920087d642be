"""Drives runs: takes those that are to go on and that nobody drives, and holds a lease on each while it does.

The lease spares work and is no more than that. Two replicas that drive the same run send the same tasks, of which each is done once,
and come to the same bytes; the one that is second to write the outcome finds it written.
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
from orchestrator.replica.index import DesiredState, Index
from orchestrator.runs.drive import RunExecution, Stopped
from orchestrator.runs.records import Record, Records
from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.errors import NotFound, SfumatoError, Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.runs.records import Event, Outcome
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.settings import BusSettings, FiledSettings
from sfumato.runtime.tasks import find
from sfumato.runtime.telemetry import bound

log = logging.getLogger(__name__)

ROUND = 1.0
"""Seconds between looks at what is wanted, where nothing was heard."""
TRIES = 5
"""Times that a run is taken up again after the bus or the store was away, before it counts as failed."""
KEPT = "Finished work is kept: sfumato runs resume ID goes on from there."

runs_seen = Gauge("sfumato_runs", "Runs that have not ended, as this replica sees them, by what is wanted of them.", ["state"])
runs_driven = Gauge("sfumato_runs_driven", "Runs that this replica drives.")
in_flight = Gauge("sfumato_run_tasks_in_flight", "Tasks that a run driven here has sent and waits for.", ["run"])
iteration_of = Gauge("sfumato_run_iteration", "The iteration of its loop that a run driven here is in; 0 outside of a loop.", ["run"])
metric_of = Gauge(
    "sfumato_run_metric",
    "What a stage of a run driven here reported last, in numbers; the method names them (docs/runs.md).",
    ["run", "stage", "metric"],
)
PER_RUN = (in_flight, iteration_of, metric_of)


class DriverSettings(FiledSettings):
    """How a replica drives: ``SFUMATO_ORCHESTRATOR_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_ORCHESTRATOR_", frozen=True)

    # Runs that a replica drives at once; each has a thread and a connection.
    runs: int = Field(default=16, ge=1, le=1000)
    # Seconds without a word from a replica after which another takes its runs.
    lease: float = Field(default=10.0, ge=1)
    # The address of the registry that the models of finished runs are registered in; empty: models are not registered automatically.
    registry: str = ""
    # Seconds between the words that are published of a run.
    tell: float = Field(default=0.25, ge=0.01)
    # A Kubernetes Job as YAML, of which one is started for each joint training; empty: workers that are there do them.
    joint_job: Path | None = None


@dataclass(slots=True, eq=False)
class _Driven:
    """A run that this replica drives."""

    attempt: int
    revision: int
    execution: RunExecution
    latest: LatestEvents = field(default_factory=LatestEvents)


class Driver:
    """Use `run` as a task of the event loop, and await `stop` in the end."""

    def __init__(
        self, name: str, index: Index, records: Records, artifacts: ArtifactStore, bus: BusSettings, settings: DriverSettings
    ) -> None:
        """``name`` is this replica's, such as its host and process."""
        self.name, self._settings = name, settings
        self._index, self._records, self._artifacts, self._bus = index, records, artifacts, bus
        self._driven: dict[str, _Driven] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._away: Counter[str] = Counter()
        self._rest: dict[str, float] = {}
        self._news = asyncio.Event()
        self._closing = False
        self._threads = ThreadPoolExecutor(settings.runs, thread_name_prefix="run")

    async def run(self) -> None:
        """Drive until cancelled."""
        async with self._index.listening("*", self._heard):
            while not self._closing:
                try:
                    await self._round()
                except Unavailable as error:
                    log.warning("%s", error)
                try:
                    await asyncio.wait_for(self._news.wait(), ROUND)
                except TimeoutError:
                    continue
                finally:
                    self._news.clear()

    async def stop(self, grace: float) -> bool:
        """Give all leases back at once, so that others go on, and end what runs here. Whether it has ended within the grace."""
        self._closing = True
        driven = dict(self._driven)
        for run in driven.values():
            run.execution.stop()
        await asyncio.gather(*(self._index.release(name, run.revision) for name, run in driven.items()), return_exceptions=True)
        _, left = await asyncio.wait(self._jobs, timeout=grace) if self._jobs else (set(), set())
        self._threads.shutdown(wait=False, cancel_futures=True)
        return not left

    def _heard(self, bucket: str, data: bytes) -> None:
        # Leases that others renew are no news, those that are given back are.
        if bucket.endswith("wishes") or not data:
            self._news.set()

    async def _round(self) -> None:
        wishes = await self._index.wishes()
        for state in ("run", "waiting", "pause"):
            runs_seen.labels(state).set(sum(state == ("waiting" if wish.waiting else wish.wish) for wish in wishes.values()))
        for name, driven in list(self._driven.items()):
            wish = wishes.get(name) or await self._missed(name, driven)
            if wish is None or wish.wish != "run" or wish.attempt != driven.attempt:
                driven.execution.stop()
        now = time.monotonic()
        for name, wish in wishes.items():
            if len(self._driven) >= self._settings.runs or self._closing:
                break
            if wish.wish == "run" and not wish.waiting and name not in self._driven and self._rest.get(name, 0.0) <= now:
                revision = await self._index.take(name, self.name)
                if revision is not None:
                    self._begin(name, wish.attempt, revision)

    async def _missed(self, name: str, driven: _Driven) -> DesiredState | None:
        """Nobody knows what is wanted of a run that is driven here: it has ended, or the bus lost all it held, and is told anew."""
        if await asyncio.to_thread(self._records.outcome, name) is not None:
            return None
        driven.latest.renew()
        return await self._index.change(name, lambda old: old or DesiredState(wish="run", attempt=driven.attempt))

    def _begin(self, name: str, attempt: int, revision: int) -> None:
        job = asyncio.create_task(self._drive(name, attempt, revision))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _drive(self, name: str, attempt: int, revision: int) -> None:
        """A run from here to wherever it comes."""
        with bound(run=name):
            try:
                record, _ = await asyncio.to_thread(self._records.record, name)
            except NotFound:
                log.warning("The run %s is not on record any more.", name)
                await self._index.change(name, lambda _: None)
                return
            driven = self._driven[name] = _Driven(attempt, revision, self._execution(name, record))
            runs_driven.set(len(self._driven))
            side = [asyncio.create_task(self._renew(name, driven)), asyncio.create_task(self._tell(name, driven))]
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
                log.warning("%s", error)  # what is left to say is said by whoever looks at the run next
            finally:
                await cancel_all(side)
                await self._leave(name, driven)

    def _execution(self, name: str, record: Record) -> RunExecution:
        """An execution of a run over the bus."""
        address = self._settings.registry
        registry = (lambda: RegistryClient(address)) if address else None
        return RunExecution(name, record, self._artifacts, lambda: JetStreamTransport(self._bus, self._artifacts), registry)

    async def _outcome(self, name: str, driven: _Driven) -> Outcome | None:
        """How a run ended; None where it has not, and why is told."""
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._threads, driven.execution.drive, driven.latest.put)
        except Stopped:
            log.info("The run %s stops here.", name)
        except Waiting as waiting:
            await self._wait(name, driven.attempt, waiting)
        except Unavailable as error:
            self._away[name] += 1
            log.warning("The run %s cannot go on now: %s", name, error)
            if self._away[name] > TRIES:
                return await self._failed(name, driven, error)
            self._rest[name] = time.monotonic() + 2.0 ** self._away[name]
        except SfumatoError as error:
            log.warning("The run %s failed: %s", name, error)
            return await self._failed(name, driven, error)
        except Exception as error:  # whatever a defect may raise: the run's owner is told, the log knows where
            log.exception("The run %s failed.", name)
            return await self._failed(name, driven, SfumatoError(f"The orchestrator failed at it: {error!r}."[:1000]))
        else:
            self._away.pop(name, None)
            return outcome
        return None

    async def _failed(self, name: str, driven: _Driven, error: SfumatoError) -> Outcome | None:
        """The outcome of a run that failed, unless it was told to stop or to begin anew meanwhile: then that counts."""
        wish = await self._index.wish(name)
        if wish is not None and (wish.attempt != driven.attempt or wish.wish != "run"):
            return None
        self._away.pop(name, None)
        return Outcome(state="failed", error=error.message, hint=f"{error.hint} {KEPT}".strip())

    async def _wait(self, name: str, attempt: int, waiting: Waiting) -> None:
        """Leave a run until a person has answered, who may have done so this moment."""
        log.info("The run %s waits for a person: %d pairs.", name, len(waiting.tasks))

        def left() -> int:
            return sum(find(task, self._artifacts) is None for task in waiting.tasks)

        def wish(old: DesiredState | None, count: int) -> DesiredState | None:
            old = old or DesiredState(wish="run", attempt=attempt)
            return old.model_copy(update={"waiting": count}) if old.attempt == attempt else old

        await self._index.change(name, lambda old: wish(old, len(waiting.tasks)))
        if not await asyncio.to_thread(left):
            await self._index.change(name, lambda old: wish(old, 0))

    async def _renew(self, name: str, driven: _Driven) -> None:
        """Hold the lease; where another has it, stop."""
        while True:
            await asyncio.sleep(self._settings.lease / 3)
            try:
                revision = await self._index.renew(name, self.name, driven.revision)
            except Unavailable as error:
                log.warning("The lease on %s cannot be renewed now: %s", name, error)  # nobody else can take it either
                continue
            if revision is None:
                log.warning("Another replica drives the run %s.", name)
                driven.execution.stop()
                return
            driven.revision = revision

    async def _tell(self, name: str, driven: _Driven) -> None:
        """Publish what happens, not more often than anybody can read."""
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
                await self._index.tell(name, section, events)
            except Unavailable as error:
                log.debug("nothing can be told now: %s", error)
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
            log.debug("the lease on %s ends by itself: %s", name, error)
        self._news.set()


def _measure(name: str, event: Event) -> None:
    """Set the metrics of a finished stage."""
    for metric, value in event.metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            metric_of.labels(name, event.stage, metric).set(value)
