"""The state of runs on the bus, in three NATS KV buckets: the desired state of each run, the replica that drives it, and its events.

    sfumato-wishes    <id>               the desired state: run or pause, and the number of pairs that wait for a person; deleted at the end
    sfumato-leases    <id>               the replica that drives the run; expires when it is not renewed
    sfumato-events    <id>.<section>     the latest event of every stage; sections are numbered from 1 in the order in which they begin

All three may be lost at any time and are created again when they are needed: the records (`orchestrator.runs.records`) are authoritative.
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
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sfumato.errors import Conflict, Unavailable
from sfumato.runs.records import Event
from sfumato.runtime.bus import Bus

log = logging.getLogger(__name__)

DESIRED, LEASES, EVENTS = "sfumato-wishes", "sfumato-leases", "sfumato-events"
ROUNDS = 20
"""Attempts at a compare-and-set when other replicas change the same key."""
DAY = 86_400.0
WRONG_LAST_SEQUENCE = 10071
"""JetStream's error code where another wrote first."""
ANSWERS = 3.0
"""Timeout of a request to the bus, in seconds."""

_EVENTS = TypeAdapter(list[Event])
_GONE = (BucketNotFoundError, NoRespondersError, NoStreamResponseError, ServiceUnavailableError)
Result = TypeVar("Result")


class DesiredState(BaseModel):
    """The desired state of a run. ``attempt`` is 1 plus the number of resumes; ``waiting`` pairs wait for a person.

    The stored JSON key of ``wanted`` is ``wish``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    wanted: Literal["run", "pause"] = Field(validation_alias="wish", serialization_alias="wish")
    attempt: int = 1
    waiting: int = 0


class Lease(BaseModel):
    """The replica that drives a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    driver: str


def read_events(data: bytes) -> list[Event]:
    """The events of a section; an empty list if they cannot be parsed."""
    try:
        return _EVENTS.validate_json(data or b"[]")
    except ValueError as error:
        log.warning("events cannot be read: %s", error)
        return []


class Index:
    """The three buckets on one connection.

    Every call raises `Unavailable` if the bus does not answer.
    """

    def __init__(self, bus: Bus, *, lease: float) -> None:
        """``lease`` is the lifetime of a lease without renewal, in seconds."""
        self._bus, self._lease = bus, lease
        self._buckets: dict[str, KeyValue] = {}
        # A restarted server may have lost the buckets, and a write to a missing bucket succeeds if its subject has a subscriber.
        bus.on_return.append(self._buckets.clear)

    # --- desired state ---

    async def desired(self, name: str) -> DesiredState | None:
        """The desired state of a run; None if it is lost, or the run has ended."""
        found = await self._get(DESIRED, name)
        return None if found is None else DesiredState.model_validate_json(found.value or b"")

    async def all_desired(self) -> dict[str, DesiredState]:
        """The desired state of every run that has not ended."""

        async def subjects() -> list[str]:
            info = await self._bus.js.stream_info(f"KV_{DESIRED}", subjects_filter=">")
            return [subject.removeprefix(f"$KV.{DESIRED}.") for subject in info.state.subjects or {}]

        try:
            names = await self._answered(subjects())
        except _Missing:
            return {}
        found = await asyncio.gather(*(self._desired_or_purge(name) for name in names))
        return {name: desired for name, desired in zip(names, found, strict=True) if desired is not None}

    async def _desired_or_purge(self, name: str) -> DesiredState | None:
        """The desired state of a run; the delete marker of a removed one is purged."""
        try:
            found = await self._on(DESIRED, lambda bucket: bucket.get(name))
        except KeyNotFoundError as error:
            if error.entry is not None and error.entry.revision is not None:
                until = error.entry.revision + 1
                await self._answered(self._bus.js.purge_stream(f"KV_{DESIRED}", subject=f"$KV.{DESIRED}.{name}", seq=until))
            return None
        return DesiredState.model_validate_json(found.value or b"")

    async def change(self, name: str, new: Callable[[DesiredState | None], DesiredState | None]) -> DesiredState | None:
        """Replace the desired state of a run by ``new(old)``, by compare-and-set; None deletes it.

        Raises:
            Conflict: other replicas changed it during every attempt.
        """
        for _ in range(ROUNDS):
            found = await self._get(DESIRED, name)
            old = None if found is None else DesiredState.model_validate_json(found.value or b"")
            desired = new(old)
            if desired == old:
                return old
            try:
                if desired is not None:
                    await self._set(DESIRED, name, desired, found)
                elif found is not None:
                    last = found.revision
                    await self._on(DESIRED, lambda bucket, last=last: bucket.delete(name, last=last))
            except _Lost:
                continue
            return desired
        raise Conflict(f"Other replicas change the run {name} at the same time.", hint="Check its state and try again.")

    # --- leases ---

    async def driver(self, name: str) -> str:
        """The replica that drives a run; empty if there is none."""
        found = await self._get(LEASES, name)
        return "" if found is None else Lease.model_validate_json(found.value or b"").driver

    async def take(self, name: str, driver: str) -> int | None:
        """Acquire the lease on a run; its revision, None if another replica holds it."""
        if await self._get(LEASES, name) is not None:
            return None  # no write: subscribers receive refused writes too
        try:
            return await self._create(LEASES, name, Lease(driver=driver).model_dump_json().encode())
        except _Lost:
            return None

    async def renew(self, name: str, driver: str, revision: int) -> int | None:
        """Renew a lease; its new revision. An expired lease is acquired again; None if another replica holds it now."""
        data = Lease(driver=driver).model_dump_json().encode()
        try:
            return await self._on(LEASES, lambda bucket: bucket.update(name, data, last=revision))
        except _Lost:
            return await self.take(name, driver)

    async def release(self, name: str, revision: int) -> None:
        """Release a lease, if it is still at this revision."""
        try:
            await self._on(LEASES, lambda bucket: bucket.delete(name, last=revision))
        except _Lost:
            return

    # --- events ---

    async def publish(self, name: str, section: int, events: list[Event]) -> None:
        """Publish the latest event of every stage of a section (see `orchestrator.replica.board`), in order."""
        data = _EVENTS.dump_json(events, exclude_defaults=True)
        await self._on(EVENTS, lambda bucket: bucket.put(f"{name}.{section}", data))

    async def events(self, name: str) -> list[Event]:
        """The latest event of every stage of every section, in order; lost events are missing."""
        events: list[Event] = []
        section = 1
        while (found := await self._get(EVENTS, f"{name}.{section}")) is not None:
            events += read_events(found.value or b"")
            section += 1
        return events

    # --- subscriptions ---

    @asynccontextmanager
    async def listening(self, name: str, on_change: Callable[[str, bytes], None]) -> AsyncIterator[None]:
        """Call ``on_change`` with the bucket's name and the written value for every change to a run (``*``: to any run, without events).

        Writes of desired states and leases are received even if the compare-and-set refused them: they only indicate that the state must
        be read. A value in a bucket is a message on its subject, so a plain subscription suffices and there is no consumer to lose.
        Changes during a disconnection are missed, so callers must also poll.
        """

        async def received(message: Msg) -> None:
            bucket = message.subject.split(".")[1]
            on_change(bucket, message.data)

        subjects = [f"$KV.{DESIRED}.{name}", f"$KV.{LEASES}.{name}", f"$KV.{EVENTS}.{name}.>"]
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
            return await self._create(bucket, key, data)
        return await self._on(bucket, lambda found: found.update(key, data, last=former.revision))

    async def _create(self, bucket: str, key: str, data: bytes) -> int:
        """Write a key that does not exist. Raises `_Lost` if it does, or did until this moment: nats-py then finds no value to compare."""
        try:
            return await self._on(bucket, lambda found: found.create(key, data))
        except KeyNotFoundError as error:
            raise _Lost from error

    async def _on(self, name: str, act: Callable[[KeyValue], Awaitable[Result]]) -> Result:
        """Call ``act`` with a bucket, which is created first if it may be missing."""
        try:
            if name not in self._buckets:
                self._buckets[name] = await self._answered(self._bucket(name))
            return await self._answered(act(self._buckets[name]))
        except (_Missing, Unavailable) as error:
            self._buckets.pop(name, None)
            if isinstance(error, Unavailable):
                raise
        try:
            self._buckets[name] = await self._answered(self._bucket(name))
            return await self._answered(act(self._buckets[name]))
        except _Missing as error:
            hint = "Is JetStream enabled and ready there?"
            raise Unavailable(f"The bus at {self._bus.settings.url} does not keep the state of runs.", hint=hint) from error

    async def _bucket(self, name: str) -> KeyValue:
        age = {DESIRED: None, LEASES: self._lease, EVENTS: 30 * DAY}[name]
        config = api.KeyValueConfig(bucket=name, history=1, ttl=age, replicas=self._bus.settings.replicas, storage=api.StorageType.FILE)
        try:
            return await self._bus.js.create_key_value(config)
        except BadRequestError:
            return await self._bus.js.key_value(name)  # it exists with another version's configuration

    async def _answered(self, call: Awaitable[Result]) -> Result:
        """Wait for the answer of the bus.

        Raises:
            _Missing: the bucket does not exist.
            _Lost: another replica wrote first.
            KeyNotFoundError: the key does not exist.
            Unavailable: the bus does not answer.
            Blocked: the bus refuses for a reason that lasts.
        """
        try:
            return await asyncio.wait_for(self._unless_refused(call), ANSWERS)
        except KeyNotFoundError:
            raise
        except KeyWrongLastSequenceError as error:
            raise _Lost from error
        except BadRequestError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:  # nats-py turns it into the error above only where it writes a value
                raise _Lost from error
            raise Unavailable(f"The bus refuses a request ({error.description}).") from error
        except _GONE as error:
            raise _Missing from error
        except NotFoundError as error:
            raise _Missing from error
        except (NatsError, TimeoutError) as error:
            silent = Unavailable(f"The bus does not answer ({type(error).__name__}).", hint="Is nats-server running?")
            raise self._bus.refusal(error) or silent from error

    async def _unless_refused(self, call: Awaitable[Result]) -> Result:
        try:
            return await call
        except (NatsError, TimeoutError) as error:
            refused = self._bus.refusal(error)
            if refused is None:
                raise
            raise refused from error


class _Missing(Exception):
    """A bucket does not exist."""


class _Lost(Exception):
    """A compare-and-set failed: another replica wrote first."""
