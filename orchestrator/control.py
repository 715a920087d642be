"""What the orchestrator does for a caller: submit, look, watch, pause, resume, cancel, review. It knows no gRPC; any replica does it."""

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
"""Seconds after which a watched run is looked at again where nothing was heard of it."""
NOTES = {
    RunState.QUEUED: "It waits for a replica that has room for it.",
    RunState.WAITING: "It waits for a person: sfumato review {name}",
    RunState.PAUSED: "Go on: sfumato runs resume {name}",
    RunState.INTERRUPTED: "What was wanted of it was lost; what it had finished was not. Go on: sfumato runs resume {name}",
    RunState.FAILED: "Try again from what it had finished: sfumato runs resume {name}",
    RunState.CANCELLED: "Take it up again: sfumato runs resume {name}",
}
AWAY = "The bus does not answer, so nobody knows how it goes on."


@dataclass(frozen=True, slots=True)
class _Known:
    """What of a record is asked for again and again, and never changes."""

    models: Mapping[str, str]
    submitted: datetime
    recipe: Recipe[Any, Any, Any]
    spec: RunSpec


class RunService:
    """Use it in an ``async with`` block: inside, this process is a replica that answers for runs and drives them."""

    def __init__(self, settings: Settings, bus: BusSettings, driving: DriverSettings, serving: ServingSettings) -> None:
        self._settings, self._bus_settings, self._driving, self._grace = settings, bus, driving, serving.grace
        self._artifacts = ArtifactStore(settings.artifacts_url)
        self._records = Records(self._artifacts, settings.runs)
        self._known: dict[str, _Known] = {}
        self._closing = asyncio.Event()
        self._live: Index | None = None

    async def __aenter__(self) -> RunService:
        """Connect, and begin to drive.

        Raises:
            Unavailable: there is no bus.
            InvalidInput: the template of Jobs cannot be used.
        """
        starting = jobs.Jobs(self._driving.joint_job) if self._driving.joint_job else None
        self._bus = await Bus(self._bus_settings, f"sfumato orchestrator {os.getpid()}").__aenter__()
        self._live = Index(self._bus, lease=self._driving.lease)
        name = f"{socket.gethostname()}-{os.getpid()}"
        self._driver = Driver(name, self._live, self._records, self._artifacts, self._bus_settings, self._driving)
        self._job = asyncio.create_task(self._driver.run())
        self._job.add_done_callback(_ended)
        looks = [queues.watch(self._bus), *([jobs.watch(self._bus, starting)] if starting else [])]
        self._looking = [asyncio.create_task(look) for look in looks]
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Let others go on at once, and end what is under way."""
        self._closing.set()
        if not await self._driver.stop(self._grace):
            log.warning("A run does not end; whoever takes it next comes to the same.")
        await cancel_all([self._job, *self._looking])
        await self._bus.__aexit__(*exception)

    # --- looking ---

    async def get(self, name: str) -> RunStatus:
        """How a run stands. Where the bus is away, what the store knows.

        Raises:
            NotFound: there is no such run.
        """
        try:
            return await self._status_of(name)
        except Unavailable:
            known = await self._record(name)
            return RunStatus(name, RunState.INTERRUPTED, known.submitted, known.models, note=AWAY)

    async def spec(self, name: str) -> Record:
        """What a run was asked for. Raises `NotFound`."""
        return (await asyncio.to_thread(self._records.record, name))[0]

    async def page(self, size: int, token: str) -> tuple[list[RunStatus], str]:
        """Up to so many runs, the newest first, and where the next page begins."""
        names, more = await asyncio.to_thread(self._records.page, size, token)
        return list(await asyncio.gather(*(self.get(name) for name in names))), more

    async def watch(self, name: str) -> AsyncIterator[RunStatus | Event]:
        """How a run stands and what happened so far, then everything as it happens, until it has ended; last how it ended.

        Raises:
            NotFound: there is no such run.
            Unavailable: this replica is being ended.
        """
        live = self._index()
        heard: asyncio.Queue[list[Event] | None] = asyncio.Queue()

        def hear(bucket: str, data: bytes) -> None:
            heard.put_nowait(read_events(data) if bucket == EVENTS else None)

        status = await self._settled(name)
        shown: dict[tuple[str, int, str], tuple[int, float]] = {}
        yield status
        async with live.listening(name, hear):
            told = await self._told(name)
            while True:
                for event in told:
                    stage, mark = (*event.section, event.stage), (event.number, event.time)
                    if shown.get(stage) != mark:
                        shown[stage] = mark
                        yield event
                if status.state.ended:
                    yield status
                    return
                told = await self._next(heard)
                if told is not None:
                    continue
                told = await self._told(name)
                try:
                    now = await self._status_of(name)
                except Unavailable:
                    continue
                if now.state is RunState.INTERRUPTED and status.state is not now.state:
                    now = await self._settled(name)
                if (now.state, now.waiting, now.driver) != (status.state, status.waiting, status.driver) and not now.state.ended:
                    yield now
                status = now

    # --- telling ---

    async def submit(self, text: str, inputs: Mapping[str, Sequence[str]]) -> tuple[RunStatus, bool]:
        """Begin a run or go on with it, unless it is finished; whether it is new.

        Raises:
            Faults: the spec or its prompts cannot work.
            Unavailable: the bus does not answer; the same call again goes on.
        """
        self._index()
        wanted = await asyncio.to_thread(submission, text, inputs, self._settings)
        with bound(run=wanted.id):
            record = wanted.record.model_copy(update={"trace": outgoing()})
            created = await asyncio.to_thread(self._records.begin, wanted.id, record)
            ended = await asyncio.to_thread(self._records.outcome, wanted.id)
            if ended is None or ended.outcome.state != "finished":
                await self._go(wanted.id)
            log.info("The run %s is submitted%s.", wanted.id, "" if created else " again")
        return await self.get(wanted.id), created

    async def pause(self, name: str) -> RunStatus:
        """Stop a run for now.

        Raises:
            NotFound: there is no such run.
            WrongState: it has ended.
        """
        await self._unended(name)
        await self._index().change(name, lambda old: (old or DesiredState(wish="pause")).model_copy(update={"wish": "pause"}))
        return await self.get(name)

    async def resume(self, name: str) -> RunStatus:
        """Go on with a run from what it had finished.

        Raises:
            NotFound: there is no such run.
            WrongState: it is finished.
        """
        await self._record(name)
        await self._go(name)
        return await self.get(name)

    async def cancel(self, name: str) -> RunStatus:
        """Give a run up.

        Raises:
            NotFound: there is no such run.
            WrongState: it is finished, or failed.
        """
        await self._record(name)
        stands = await asyncio.to_thread(self._records.end, name, Outcome(state="cancelled"))
        if stands.state != "cancelled":
            raise WrongState(f"The run {name} is {stands.state}.", hint="There is nothing to give up.")
        await self._index().change(name, lambda _: None)
        return await self.get(name)

    async def review(self, name: str, answers: Sequence[Answer]) -> tuple[list[Answer], list[Question]]:
        """Store answers; the answers that stand, and the questions that still wait. After the last one the run continues.

        Raises:
            NotFound: there is no such run, or no such question of it waits.
            WrongState: the run asks no person, or has not come to its review yet.
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
            hint = "The questions that wait: sfumato review ID --json"
            raise NotFound(f"No question {question[:12]} of the run {name} waits for a person.", hint=hint)
        return Answer(question, **manifest.values[0])

    # --- how it stands ---

    def _index(self) -> Index:
        if self._live is None or self._closing.is_set():
            raise Unavailable("This replica is not on the bus.", hint="Ask another, or try again in a moment.")
        return self._live

    async def _record(self, name: str) -> _Known:
        """What is on record of a run. Raises `NotFound`."""
        if name not in self._known:
            record, submitted = await asyncio.to_thread(self._records.record, name)
            models = {part: weights.version for part, weights in record.models.items()}
            self._known[name] = _Known(models, submitted, record.recipe, record.recipe.spec.model_validate(record.spec))
        return self._known[name]

    async def _unended(self, name: str) -> None:
        await self._record(name)
        ended = await asyncio.to_thread(self._records.outcome, name)
        if ended is not None:
            hint = "" if ended.outcome.state == "finished" else NOTES[RunState(ended.outcome.state)].format(name=name)
            raise WrongState(f"The run {name} is {ended.outcome.state}.", hint=hint)

    async def _go(self, name: str) -> None:
        """Want a run to go on."""
        await asyncio.to_thread(self._records.reopen, name)

        def go(old: DesiredState | None) -> DesiredState:
            if old is None or old.wish == "run":
                return DesiredState(wish="run", attempt=old.attempt if old else 1)
            return DesiredState(wish="run", attempt=old.attempt + 1)

        await self._index().change(name, go)

    async def _status_of(self, name: str) -> RunStatus:
        known = await self._record(name)
        ended, told = await asyncio.gather(asyncio.to_thread(self._records.outcome, name), self._told(name))
        latest = max(told or (), key=lambda event: event.time, default=None)
        status = RunStatus(name, RunState.QUEUED, known.submitted, known.models, latest=latest)
        if ended is not None:
            state = RunState(ended.outcome.state)
            return replace(status, state=state, ended=ended, note=NOTES.get(state, "").format(name=name))
        live = self._index()
        wish, driver = await asyncio.gather(live.wish(name), live.driver(name))
        if wish is None:
            state = RunState.INTERRUPTED
        elif wish.wish == "pause":
            state = RunState.PAUSING if driver else RunState.PAUSED
        elif wish.waiting:
            state = RunState.WAITING
        else:
            state = RunState.RUNNING if driver else RunState.QUEUED
        note, waiting = NOTES.get(state, "").format(name=name), wish.waiting if wish else 0
        left = remaining(told, known.recipe, known.spec) if state is RunState.RUNNING else None
        return replace(status, state=state, driver=driver, waiting=waiting, note=note, remaining=left)

    async def _settled(self, name: str) -> RunStatus:
        """How a run stands. A bus that has just lost everything has a lease's time to be told by whoever drives the run."""
        clock = asyncio.get_running_loop().time
        patience = clock() + self._driving.lease
        while True:
            status = await self.get(name)
            if status.state is not RunState.INTERRUPTED or clock() > patience or self._closing.is_set():
                return status
            await asyncio.sleep(LOOK / 4)

    async def _told(self, name: str) -> list[Event]:
        """What is known of what happened; nothing where the bus is away."""
        try:
            return await self._index().events(name)
        except Unavailable:
            return []

    async def _next(self, heard: asyncio.Queue[list[Event] | None]) -> list[Event] | None:
        """Events that were heard, or None where it is time to look.

        Raises:
            Unavailable: this replica is being ended.
        """
        closing, news = asyncio.ensure_future(self._closing.wait()), asyncio.ensure_future(heard.get())
        try:
            done, _ = await asyncio.wait([closing, news], timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
            if closing in done:
                raise Unavailable("This replica is being ended.", hint="Ask again: another one answers.")
            return news.result() if news in done else None
        finally:
            closing.cancel()
            news.cancel()


def _ended(job: asyncio.Task[None]) -> None:
    """A driver that ends by itself is a defect, and is not to go unseen."""
    if not job.cancelled() and job.exception() is not None:
        log.critical("This replica drives no more runs.", exc_info=job.exception())
