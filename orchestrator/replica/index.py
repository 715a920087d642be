"""What the bus knows of runs, in three buckets of NATS KV: what is wanted of each, who drives it, and how far it is.

    sfumato-wishes    <id>               run or pause, and how many pairs wait for a person; there until the run has ended
    sfumato-leases    <id>               who drives it; vanishes when it is not renewed
    sfumato-events    <id>.<section>     the latest event of every stage; sections are numbered from 1 as they begin

All of it may be lost at any moment, and buckets are made anew when they are needed: `orchestrator.runs.records` has what counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import api
from nats.js.errors import (
    BadRequestError,
    BucketNotFoundError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NoStreamResponseError,
    NotFoundError,
    ServiceUnavailableError,
)
from nats.js.kv import KeyValue
from pydantic import BaseModel, ConfigDict, TypeAdapter

from sfumato.errors import Conflict, Unavailable
from sfumato.runs.records import Event
from sfumato.runtime.bus import Bus

log = logging.getLogger(__name__)

WISHES, LEASES, EVENTS = "sfumato-wishes", "sfumato-leases", "sfumato-events"
ROUNDS = 20
"""Times that a change is tried when others change the same."""
DAY = 86_400.0
ANSWERS = 3.0
"""Seconds in which the bus must answer."""

_EVENTS = TypeAdapter(list[Event])
_GONE = (BucketNotFoundError, NoRespondersError, NoStreamResponseError, ServiceUnavailableError)
Result = TypeVar("Result")


class DesiredState(BaseModel):
    """What is wanted of a run. ``attempt`` counts how often it was told to go on; ``waiting`` pairs wait for a person."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wish: Literal["run", "pause"]
    attempt: int = 1
    waiting: int = 0


class Lease(BaseModel):
    """Who drives a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    driver: str


def read_events(data: bytes) -> list[Event]:
    """What was published of an iteration; nothing where it cannot be read."""
    try:
        return _EVENTS.validate_json(data or b"[]")
    except ValueError as error:
        log.warning("events cannot be read: %s", error)
        return []


class Index:
    """The three buckets on one connection.

    Every call raises `Unavailable` where the bus does not answer.
    """

    def __init__(self, bus: Bus, *, lease: float) -> None:
        """``lease`` is how many seconds a lease lives without being renewed."""
        self._bus, self._lease = bus, lease
        self._buckets: dict[str, KeyValue] = {}
        # A server that comes back may have lost them, and a write to none is not refused where somebody listens to its subject.
        bus.on_return.append(self._buckets.clear)

    # --- what is wanted ---

    async def wish(self, name: str) -> DesiredState | None:
        """What is wanted of a run; None where nobody knows, or it has ended."""
        found = await self._get(WISHES, name)
        return None if found is None else DesiredState.model_validate_json(found.value or b"")

    async def wishes(self) -> dict[str, DesiredState]:
        """What is wanted of every run that has not ended."""

        async def subjects() -> list[str]:
            info = await self._bus.js.stream_info(f"KV_{WISHES}", subjects_filter=">")
            return [subject.removeprefix(f"$KV.{WISHES}.") for subject in info.state.subjects or {}]

        try:
            names = await self._answered(subjects())
        except _Missing:
            return {}
        found = await asyncio.gather(*(self._wish_or_sweep(name) for name in names))
        return {name: wish for name, wish in zip(names, found, strict=True) if wish is not None}

    async def _wish_or_sweep(self, name: str) -> DesiredState | None:
        """What is wanted of a run; the mark that a wish leaves where it was taken away is swept up."""
        try:
            found = await self._on(WISHES, lambda bucket: bucket.get(name))
        except KeyNotFoundError as error:
            if error.entry is not None and error.entry.revision is not None:
                until = error.entry.revision + 1
                await self._answered(self._bus.js.purge_stream(f"KV_{WISHES}", subject=f"$KV.{WISHES}.{name}", seq=until))
            return None
        return DesiredState.model_validate_json(found.value or b"")

    async def change(self, name: str, new: Callable[[DesiredState | None], DesiredState | None]) -> DesiredState | None:
        """Replace what is wanted of a run by what ``new`` makes of it, by compare-and-set; None takes it away.

        Raises:
            Conflict: others changed it again and again.
        """
        for _ in range(ROUNDS):
            found = await self._get(WISHES, name)
            old = None if found is None else DesiredState.model_validate_json(found.value or b"")
            wish = new(old)
            if wish == old:
                return old
            try:
                if wish is not None:
                    await self._set(WISHES, name, wish, found)
                elif found is not None:
                    last = found.revision
                    await self._on(WISHES, lambda bucket, last=last: bucket.delete(name, last=last))
            except _Lost:
                continue
            return wish
        raise Conflict(f"Others change the run {name} at the same time.", hint="Look how it stands and try again.")

    # --- who drives ---

    async def driver(self, name: str) -> str:
        """Who drives a run; empty where nobody does."""
        found = await self._get(LEASES, name)
        return "" if found is None else Lease.model_validate_json(found.value or b"").driver

    async def take(self, name: str, driver: str) -> int | None:
        """Take a run's lease; its revision, None where another has it."""
        if await self._get(LEASES, name) is not None:
            return None  # no write: who listens hears those that are refused as well
        try:
            return await self._on(LEASES, lambda bucket: bucket.create(name, Lease(driver=driver).model_dump_json().encode()))
        except _Lost:
            return None

    async def renew(self, name: str, driver: str, revision: int) -> int | None:
        """Renew a lease; its new revision. One that vanished is taken anew; None where another has it now."""
        data = Lease(driver=driver).model_dump_json().encode()
        try:
            return await self._on(LEASES, lambda bucket: bucket.update(name, data, last=revision))
        except _Lost:
            return await self.take(name, driver)

    async def release(self, name: str, revision: int) -> None:
        """Give a lease back, if it is still ours."""
        try:
            await self._on(LEASES, lambda bucket: bucket.delete(name, last=revision))
        except _Lost:
            return

    # --- how far it is ---

    async def tell(self, name: str, section: int, events: list[Event]) -> None:
        """Publish the latest event of every stage of a section (see `orchestrator.replica.board`), in their order."""
        data = _EVENTS.dump_json(events, exclude_defaults=True)
        await self._on(EVENTS, lambda bucket: bucket.put(f"{name}.{section}", data))

    async def events(self, name: str) -> list[Event]:
        """The latest event of every stage of every section, in their order; what was lost is missing."""
        told: list[Event] = []
        section = 1
        while (found := await self._get(EVENTS, f"{name}.{section}")) is not None:
            told += read_events(found.value or b"")
            section += 1
        return told

    # --- hearing of changes ---

    @asynccontextmanager
    async def listening(self, name: str, heard: Callable[[str, bytes], None]) -> AsyncIterator[None]:
        """Hear of changes to a run (``*``: to any, but not of events) as they happen: the bucket's name, and what was written.

        Wishes and leases are heard even where they were refused because another was first: they only say that it is time to look.
        A value in a bucket is a message on its subject, which is heard like any other: there is no consumer that could be lost.
        What happens while the connection is away is not heard; whoever listens looks from time to time.
        """

        async def received(message: Msg) -> None:
            bucket = message.subject.split(".")[1]
            heard(bucket, message.data)

        subjects = [f"$KV.{WISHES}.{name}", f"$KV.{LEASES}.{name}", f"$KV.{EVENTS}.{name}.>"]
        subscriptions = [await self._bus.client.subscribe(subject, cb=received) for subject in subjects[: 2 if name == "*" else 3]]
        try:
            yield
        finally:
            if not self._bus.client.is_closed:
                for subscription in subscriptions:
                    await subscription.unsubscribe()

    # --- buckets ---

    async def _get(self, bucket: str, key: str) -> KeyValue.Entry | None:
        try:
            return await self._on(bucket, lambda found: found.get(key))
        except KeyNotFoundError:
            return None

    async def _set(self, bucket: str, key: str, value: BaseModel, former: KeyValue.Entry | None) -> int:
        data = value.model_dump_json().encode()
        if former is None:
            return await self._on(bucket, lambda found: found.create(key, data))
        return await self._on(bucket, lambda found: found.update(key, data, last=former.revision))

    async def _on(self, name: str, act: Callable[[KeyValue], Awaitable[Result]]) -> Result:
        """Do something to a bucket, which is made first where it is not known to be there."""
        try:
            if name not in self._buckets:
                self._buckets[name] = await self._answered(self._bucket(name))
            return await self._answered(act(self._buckets[name]))
        except (_Missing, Unavailable) as error:
            self._buckets.pop(name, None)
            if isinstance(error, Unavailable):
                raise
        self._buckets[name] = await self._answered(self._bucket(name))
        return await self._answered(act(self._buckets[name]))

    async def _bucket(self, name: str) -> KeyValue:
        age = {WISHES: None, LEASES: self._lease, EVENTS: 30 * DAY}[name]
        config = api.KeyValueConfig(bucket=name, history=1, ttl=age, replicas=self._bus.settings.replicas, storage=api.StorageType.FILE)
        try:
            return await self._bus.js.create_key_value(config)
        except BadRequestError:
            return await self._bus.js.key_value(name)  # it is there, set up by another version of this

    async def _answered(self, call: Awaitable[Result]) -> Result:
        """Wait for the bus's answer.

        Raises:
            _Missing: the bucket is gone.
            _Lost: another was first.
            KeyNotFoundError: there is no such key.
            Unavailable: it does not answer.
        """
        try:
            return await asyncio.wait_for(call, ANSWERS)
        except KeyNotFoundError:
            raise
        except KeyWrongLastSequenceError as error:
            raise _Lost from error
        except _GONE as error:
            raise _Missing from error
        except NotFoundError as error:
            raise _Missing from error
        except (NatsError, TimeoutError) as error:
            raise Unavailable(f"The bus does not answer ({type(error).__name__}).", hint="Is nats-server running?") from error


class _Missing(Exception):
    """A bucket that is not there."""


class _Lost(Exception):
    """Another changed the same first."""
