"""The orchestrator's operations: submit, get, watch, pause, resume, cancel, review. Independent of gRPC; any replica can execute them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from orchestrator.recipes.recipe import Recipe
from orchestrator.recipes.spec import RunSpec
from orchestrator.recipes.tasks import QUESTION
from orchestrator.replica import jobs, queues
from orchestrator.replica.driver import Driver, DriverSettings
from orchestrator.replica.index import EVENTS, DesiredState, Index, read_events
from orchestrator.runs.outlook import remaining
from orchestrator.runs.records import Record, Records
from orchestrator.runs.reviewing import store_answer, waiting_questions
from orchestrator.runs.submission import submission
from sfumato.errors import InvalidInput, NotFound, Unavailable, WrongState
from sfumato.runs.records import Answer, Event, Outcome, Question, RunState, RunStatus
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import Bus
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.settings import BusSettings, ServingSettings, Settings
from sfumato.runtime.tasks import Manifest, Task, manifest_key
from sfumato.runtime.telemetry import bound, outgoing

log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds between two reads of a watched run's status if no change is received."""
NOTES = {
    RunState.QUEUED: "It waits for a replica with a free slot.",
    RunState.WAITING: "It waits for a person: sfumato review {name}",
    RunState.PAUSED: "Continue: sfumato runs resume {name}",
    RunState.INTERRUPTED: "Its desired state was lost; its finished work was not. Continue: sfumato runs resume {name}",
    RunState.FAILED: "Retry from its finished work: sfumato runs resume {name}",
    RunState.CANCELLED: "Continue it: sfumato runs resume {name}",
}
AWAY = "The bus does not answer, so the state of the run is unknown."


@dataclass(frozen=True, slots=True)
class _CachedRecord:
    """The fields of a record that are read often; they never change. Without ``method``, this installation does not have the run's."""

    models: Mapping[str, str]
    submitted: datetime
    method: tuple[Recipe[Any, Any, Any], RunSpec] | None


class RunService:
    """An async context manager: inside of it, this process is a replica that serves calls and drives runs."""

    def __init__(self, settings: Settings, bus: BusSettings, driving: DriverSettings, serving: ServingSettings) -> None:
        self._settings, self._bus_settings, self._driving, self._grace = settings, bus, driving, serving.grace
        self._artifacts = ArtifactStore(settings.artifacts_url)
        self._records = Records(self._artifacts, settings.runs)
        self._cache: dict[str, _CachedRecord] = {}
        self._closing = asyncio.Event()
        self._live: Index | None = None

    async def __aenter__(self) -> RunService:
        """Connect, and start the driver.

        Raises:
            Unavailable: the bus cannot be reached.
            InvalidInput: the template of Jobs is invalid.
        """
        starting = jobs.Jobs(self._driving.joint_job) if self._driving.joint_job else None
        self._bus = await Bus(self._bus_settings, f"sfumato orchestrator {os.getpid()}").__aenter__()
        self._live = Index(self._bus, lease=self._driving.lease)
        name = f"{socket.gethostname()}-{os.getpid()}"
        self._driver = Driver(name, self._live, self._records, self._artifacts, self._bus_settings, self._driving)
        self._job = asyncio.create_task(self._driver.run())
        self._job.add_done_callback(_log_failure)
        looks = [queues.watch(self._bus), *([jobs.watch(self._bus, starting)] if starting else [])]
        self._looking = [asyncio.create_task(look) for look in looks]
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Release the leases, stop the runs, and disconnect."""
        self._closing.set()
        if not await self._driver.stop(self._grace):
            log.warning("A run did not stop within the grace period; another replica continues it with the same result.")
        await cancel_all([self._job, *self._looking])
        await self._bus.__aexit__(*exception)

    # --- queries ---

    async def get(self, name: str) -> RunStatus:
        """The status of a run; if the bus is unavailable, as far as the artifact store knows it.

        Raises:
            NotFound: there is no such run.
        """
        try:
            return await self._status_of(name)
        except Unavailable:
            record = await self._record(name)
            return RunStatus(name, RunState.INTERRUPTED, record.submitted, record.models, note=AWAY)

    async def spec(self, name: str) -> Record:
        """The record of a run. Raises `NotFound`."""
        return (await asyncio.to_thread(self._records.record, name))[0]

    async def page(self, size: int, token: str) -> tuple[list[RunStatus], str]:
        """Up to ``size`` runs, the newest first, and the token of the next page."""
        names, more = await asyncio.to_thread(self._records.page, size, token)
        return list(await asyncio.gather(*(self.get(name) for name in names))), more

    async def watch(self, name: str) -> AsyncIterator[RunStatus | Event]:
        """The status of a run and its events so far, then every change until it has ended; the final status comes last.

        Raises:
            NotFound: there is no such run.
            Unavailable: this replica shuts down.
        """
        live = self._index()
        changes: asyncio.Queue[list[Event] | None] = asyncio.Queue()

        def on_change(bucket: str, data: bytes) -> None:
            changes.put_nowait(read_events(data) if bucket == EVENTS else None)

        status = await self._settled(name)
        shown: dict[tuple[str, int, str], tuple[int, float]] = {}
        yield status
        async with live.listening(name, on_change):
            events = await self._events(name)
            while True:
                for event in events:
                    stage, mark = (*event.section, event.stage), (event.number, event.time)
                    if shown.get(stage) != mark:
                        shown[stage] = mark
                        yield event
                if status.state.ended:
                    yield status
                    return
                events = await self._next(changes)
                if events is not None:
                    continue
                events = await self._events(name)
                try:
                    now = await self._status_of(name)
                except Unavailable:
                    continue
                if now.state is RunState.INTERRUPTED and status.state is not now.state:
                    now = await self._settled(name)
                if (now.state, now.waiting, now.driver) != (status.state, status.waiting, status.driver) and not now.state.ended:
                    yield now
                status = now

    # --- commands ---

    async def submit(self, text: str, inputs: Mapping[str, Sequence[str]]) -> tuple[RunStatus, bool]:
        """Start a run, or continue it unless it is finished; its status, and whether it is new.

        Raises:
            Faults: the spec or its prompts are invalid.
            Unavailable: the bus does not answer; the call can be repeated.
        """
        self._index()
        wanted = await asyncio.to_thread(submission, text, inputs, self._settings)
        with bound(run=wanted.id):
            record = wanted.record.model_copy(update={"trace": outgoing()})
            created = await asyncio.to_thread(self._records.begin, wanted.id, record)
            ended = await asyncio.to_thread(self._records.outcome, wanted.id)
            if ended is None or ended.outcome.state != "finished":
                await self._want_running(wanted.id)
            log.info("The run %s is submitted%s.", wanted.id, "" if created else " again")
        return await self.get(wanted.id), created

    async def pause(self, name: str) -> RunStatus:
        """Pause a run.

        Raises:
            NotFound: there is no such run.
            WrongState: it has ended.
        """
        await self._check_not_ended(name)
        await self._index().change(name, lambda old: (old or DesiredState(wanted="pause")).model_copy(update={"wanted": "pause"}))
        return await self.get(name)

    async def resume(self, name: str) -> RunStatus:
        """Continue a run from its finished work.

        Raises:
            NotFound: there is no such run.
            WrongState: it is finished.
        """
        await self._record(name)
        await self._want_running(name)
        return await self.get(name)

    async def cancel(self, name: str) -> RunStatus:
        """Cancel a run.

        Raises:
            NotFound: there is no such run.
            WrongState: it is finished, or failed.
        """
        await self._record(name)
        stands = await asyncio.to_thread(self._records.end, name, Outcome(state="cancelled"))
        if stands.state != "cancelled":
            raise WrongState(f"The run {name} is {stands.state}.", hint="There is nothing to cancel.")
        await self._index().change(name, lambda _: None)
        return await self.get(name)

    async def review(self, name: str, answers: Sequence[Answer]) -> tuple[list[Answer], list[Question]]:
        """Store answers; the answers that stand, and the questions that are still open. After the last one the run continues.

        Raises:
            NotFound: there is no such run, or it has no such open question.
            WrongState: the run has no human review, or has not reached it yet.
        """
        stand, left = await asyncio.to_thread(self._answer, name, answers)
        if answers or not left:

            def fewer(old: DesiredState | None) -> DesiredState | None:
                return old and old.model_copy(update={"waiting": min(old.waiting, len(left))})

            await self._index().change(name, fewer)
        return stand, left

    def _answer(self, name: str, answers: Sequence[Answer]) -> tuple[list[Answer], list[Question]]:
        record = self._records.record(name)[0]
        try:
            waiting = {task.id: (task, question) for task, question in self._waiting(name, record)}
        except InvalidInput as error:
            raise WrongState(str(error).removeprefix(f"{error.field}: ")) from error
        stand = []
        for answer in answers:
            if answer.question_id in waiting:
                task, _ = waiting[answer.question_id]
                stand.append(store_answer(task, self._artifacts, answer.accepted, answer.reason))
            else:
                stand.append(self._answered(answer.question_id, name))
        done = {answer.question_id for answer in stand}
        return stand, [question for task, (_, question) in waiting.items() if task not in done]

    def _waiting(self, name: str, record: Record) -> list[tuple[Task, Question]]:
        return waiting_questions(record.recipe, record.plan(), name, self._artifacts)

    def _answered(self, question: str, name: str) -> Answer:
        """An answer that was stored before."""
        data = self._artifacts.read_key(manifest_key(question))
        manifest = None if data is None else Manifest.model_validate_json(data)
        if manifest is None or manifest.kind != QUESTION:
            hint = "The open questions: sfumato review ID --json"
            raise NotFound(f"The run {name} has no open question {question[:12]}.", hint=hint)
        return Answer(question, **manifest.values[0])

    # --- status ---

    def _index(self) -> Index:
        if self._live is None or self._closing.is_set():
            raise Unavailable("This replica is not connected to the bus.", hint="Try another replica, or try again in a moment.")
        return self._live

    async def _record(self, name: str) -> _CachedRecord:
        """The cached fields of a run's record. Raises `NotFound`."""
        if name not in self._cache:
            record, submitted = await asyncio.to_thread(self._records.record, name)
            models = {part: weights.version for part, weights in record.models.items()}
            try:
                method = record.recipe, record.checked_spec()
            except InvalidInput:
                return _CachedRecord(models, submitted, None)  # not cached: it may be installed later
            self._cache[name] = _CachedRecord(models, submitted, method)
        return self._cache[name]

    async def _check_not_ended(self, name: str) -> None:
        """Raises `NotFound` and `WrongState`."""
        await self._record(name)
        ended = await asyncio.to_thread(self._records.outcome, name)
        if ended is not None:
            hint = "" if ended.outcome.state == "finished" else NOTES[RunState(ended.outcome.state)].format(name=name)
            raise WrongState(f"The run {name} is {ended.outcome.state}.", hint=hint)

    async def _want_running(self, name: str) -> None:
        """Set the desired state of a run to running; a paused one begins a new attempt."""
        await asyncio.to_thread(self._records.reopen, name)

        def running(old: DesiredState | None) -> DesiredState:
            if old is None or old.wanted == "run":
                return DesiredState(wanted="run", attempt=old.attempt if old else 1)
            return DesiredState(wanted="run", attempt=old.attempt + 1)

        await self._index().change(name, running)

    async def _status_of(self, name: str) -> RunStatus:
        record = await self._record(name)
        ended, events = await asyncio.gather(asyncio.to_thread(self._records.outcome, name), self._events(name))
        latest = max(events or (), key=lambda event: event.time, default=None)
        status = RunStatus(name, RunState.QUEUED, record.submitted, record.models, latest=latest)
        if ended is not None:
            state = RunState(ended.outcome.state)
            return replace(status, state=state, ended=ended, note=NOTES.get(state, "").format(name=name))
        live = self._index()
        desired, driver = await asyncio.gather(live.desired(name), live.driver(name))
        if desired is None:
            state = RunState.INTERRUPTED
        elif desired.wanted == "pause":
            state = RunState.PAUSING if driver else RunState.PAUSED
        elif desired.waiting:
            state = RunState.WAITING
        else:
            state = RunState.RUNNING if driver else RunState.QUEUED
        note, waiting = NOTES.get(state, "").format(name=name), desired.waiting if desired else 0
        left = remaining(events, *record.method) if state is RunState.RUNNING and record.method is not None else None
        return replace(status, state=state, driver=driver, waiting=waiting, note=note, remaining=left)

    async def _settled(self, name: str) -> RunStatus:
        """The status of a run. If the desired state was lost, waits up to a lease's lifetime for the driver to restore it."""
        clock = asyncio.get_running_loop().time
        patience = clock() + self._driving.lease
        while True:
            status = await self.get(name)
            if status.state is not RunState.INTERRUPTED or clock() > patience or self._closing.is_set():
                return status
            await asyncio.sleep(LOOK / 4)

    async def _events(self, name: str) -> list[Event]:
        """The events of a run; an empty list if the bus is unavailable."""
        try:
            return await self._index().events(name)
        except Unavailable:
            return []

    async def _next(self, changes: asyncio.Queue[list[Event] | None]) -> list[Event] | None:
        """The next published events, or None if the status must be read again.

        Raises:
            Unavailable: this replica shuts down.
        """
        closing, change = asyncio.ensure_future(self._closing.wait()), asyncio.ensure_future(changes.get())
        try:
            done, _ = await asyncio.wait([closing, change], timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
            if closing in done:
                raise Unavailable("This replica shuts down.", hint="Try again: another replica answers.")
            return change.result() if change in done else None
        finally:
            closing.cancel()
            change.cancel()


def _log_failure(job: asyncio.Task[None]) -> None:
    """Log the exception of a driver that ended without being cancelled: a defect."""
    if not job.cancelled() and job.exception() is not None:
        log.critical("The driver of this replica failed; it drives no more runs.", exc_info=job.exception())
