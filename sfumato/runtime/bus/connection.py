"""The connection to NATS JetStream: reconnects, sets up streams and consumers, publishes messages."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionReconnectingError
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from sfumato.errors import Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.bus.messages import (
    ADVISORIES,
    COLLECTOR,
    CONSUMER,
    DEAD,
    EVENTS,
    Attempt,
    DeadLetter,
    Result,
    dead_subject,
    failure_subject,
    result_subject,
    stream_of,
    task_subject,
)
from sfumato.runtime.failures import Failure
from sfumato.runtime.settings import BusSettings

log = logging.getLogger(__name__)

_EXCEEDED = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*." + CONSUMER
# nats-server's numbers of errors (`errors.json` in its sources).
_OTHER_CONFIG, _STORE_REFUSED = 10058, 10077
_FULL = "maximum messages per subject exceeded"

DAY = 86_400.0
ACKNOWLEDGED = 5.0
"""Seconds that a stream has for its acknowledgement."""
PROBE = 2.0
"""Seconds between questions whether JetStream is there, and for an answer."""
SILENCES = 2
"""Questions without an answer after which another server of a cluster is tried."""
# Message ids are not used: what is in a queue is refused by its subject. nats-server wants some window all the same.
DUPLICATES = 1.0


class Bus:
    """A connection that comes back by itself, and what is set up on it. Use it in an ``async with`` block."""

    def __init__(self, settings: BusSettings, name: str) -> None:
        self.settings = settings
        # Since when there is no connection, or JetStream is silent, on the monotonic clock; None while it is as it should be.
        self._disconnected_since: float | None = None
        self._silent_since: float | None = None
        # Called whenever the connection is there again: what the server held for the old one, such as pull requests, is lost.
        self.on_return: list[Callable[[], None]] = []
        self._name = name
        self.client: Client
        self.js: JetStreamContext
        # What was sent and when, on the monotonic clock, the oldest first.
        self._acknowledgements: dict[str, tuple[asyncio.Future[dict[str, Any]], float]] = {}
        self._tokens = itertools.count()
        # When the first attempts to connect end, on the monotonic clock.
        self._give_up = math.inf

    @property
    def away_since(self) -> float | None:
        """Since when there is no bus to be had, on the monotonic clock; None while there is one."""
        return min((since for since in (self._disconnected_since, self._silent_since) if since is not None), default=None)

    async def __aenter__(self) -> Bus:
        """Connect, waiting for a server that is still coming up.

        Raises:
            Unavailable: none answers within the patience that the settings give it, or it does not let us in.
        """
        settings = self.settings
        self.client = Client()
        self._give_up = time.monotonic() + settings.patience
        try:
            await self.client.connect(
                [url.strip() for url in settings.url.split(",")],
                name=self._name,
                token=settings.token.get_secret_value() or None,
                user=settings.user or None,
                password=settings.password.get_secret_value() or None,
                inbox_prefix=f"_INBOX.{settings.user}" if settings.user else "_INBOX",
                tls=ssl.create_default_context(cafile=settings.ca) if settings.ca is not None else None,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.1,  # pyright: ignore[reportArgumentType] (it is handed to asyncio.sleep)
                connect_timeout=2,
                ping_interval=2,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
                error_cb=self._complained,
            )
        except Unavailable:
            await self.client.close()
            raise
        self._give_up = math.inf
        self.js = self.client.jetstream()
        self._inbox = self.client.new_inbox()
        await self.client.subscribe(f"{self._inbox}.*", cb=self._acknowledged)
        self._probing = asyncio.create_task(self._probe())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._probing.cancel()
        if self.client.is_connected:
            try:
                await self.client.flush(2)
            except NatsError as error:
                log.warning("the last messages may be lost: %s", error)
        await self.client.close()
        self._forget()

    async def _disconnected(self) -> None:
        if self._disconnected_since is None:
            self._disconnected_since = time.monotonic()

    async def _reconnected(self) -> None:
        self._disconnected_since = None
        self._forget()
        for listener in self.on_return:
            listener()

    async def _probe(self) -> None:
        """Ask now and then whether JetStream is there. A server that is cut off from its cluster takes messages all the same, and
        nothing comes of them: leave it for another. (It may lead the cluster for a while yet, and answer questions.)
        """
        silences, js = 0, self.client.jetstream(timeout=PROBE)
        while not self.client.is_closed:
            await asyncio.sleep(PROBE)
            if not self.client.is_connected:
                continue
            since = time.monotonic()
            try:
                await js.account_info()
                silences = 0
            except NatsError:
                silences += 1
            _, oldest = next(iter(self._acknowledgements.values()), (None, math.inf))
            if oldest < since - SILENCES * PROBE:
                silences, since = SILENCES, oldest
            self._silent_since = min(since, self._silent_since or since) if silences else None
            if silences >= SILENCES and len(self.client.servers) > 1:
                log.warning("this server of the bus seems cut off from its cluster; trying another")
                silences = 0
                await self.client.force_reconnect()

    def _forget(self) -> None:
        """Acknowledgements that were on their way when the connection broke never come."""
        for future, _ in list(self._acknowledgements.values()):
            if not future.done():
                future.set_exception(ConnectionReconnectingError())

    async def _complained(self, error: Exception) -> None:
        """What nats-py tells of its troubles. While it connects for the first time, raising here is what ends its attempts."""
        if self._give_up < math.inf:
            if "authorization" in str(error).lower():
                hint = "Is SFUMATO_BUS_TOKEN its token, or SFUMATO_BUS_USER known to it, with this password?"
                raise Unavailable(f"nats-server at {self.settings.url} does not let us in.", hint=hint)
            if time.monotonic() > self._give_up:
                hint = "Is it running, and is SFUMATO_BUS_URL its address?"
                raise Unavailable(f"nats-server at {self.settings.url} does not answer: {error}.", hint=hint) from error
        # Every tenth of a second while there is no server: nothing anybody wants to read.
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        log.log(level, "bus: %s: %s", type(error).__name__, error)

    async def send(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> asyncio.Future[dict[str, Any]]:
        """Publish into a stream; the future of the stream's acknowledgement, with ``seq``.

        (As nats-py's `publish_async`, but what was under way when a connection broke fails at once, and keeps nothing.)

        Raises:
            NatsError: there is no connection just now.
        """
        if not self.client.is_connected:
            raise ConnectionReconnectingError
        token = str(next(self._tokens))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._acknowledgements[token] = future, time.monotonic()
        future.add_done_callback(lambda _: self._acknowledgements.pop(token, None))
        await self.client.publish(subject, data, reply=f"{self._inbox}.{token}", headers=dict(headers) if headers else None)
        return future

    async def _acknowledged(self, message: Msg) -> None:
        future, _ = self._acknowledgements.get(message.subject.rpartition(".")[2], (None, 0.0))
        if future is None or future.done():
            return
        if message.headers and message.headers.get("Status") == "503":
            future.set_exception(NoStreamResponseError())
            return
        answer = json.loads(message.data)
        if "error" in answer:
            try:
                APIError.from_error(answer["error"])
            except APIError as error:
                future.set_exception(error)
        else:
            future.set_result(answer)

    async def ensure(self, service: str) -> None:
        """Set up a service's work queue, and what all services share; changes nothing that is as it should be.

        Raises:
            NatsError: JetStream does not answer now, or refuses.
        """
        limits = {"num_replicas": self.settings.replicas, "storage": api.StorageType.FILE}
        one_each = {"discard": api.DiscardPolicy.NEW, "discard_new_per_subject": True, "max_msgs_per_subject": 1}
        queue = api.RetentionPolicy.WORK_QUEUE
        await self._stream(
            api.StreamConfig(
                name=stream_of(service),
                subjects=[task_subject(service, "*")],
                retention=queue,
                duplicate_window=DUPLICATES,
                **limits,
                **one_each,
            )
        )
        await self.js.add_consumer(
            stream_of(service),
            api.ConsumerConfig(
                name=CONSUMER,
                durable_name=CONSUMER,
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=self.settings.ack_wait,
                max_deliver=self.settings.deliveries,
                max_ack_pending=self.settings.in_work,
            ),
        )
        events = [result_subject("*"), failure_subject("*", "*")]
        await self._stream(
            api.StreamConfig(name=EVENTS, subjects=events, max_age=DAY, max_bytes=1 << 30, duplicate_window=DUPLICATES, **limits)
        )
        await self._stream(api.StreamConfig(name=DEAD, subjects=[dead_subject("*", "*")], max_msgs_per_subject=1, **limits))
        await self._stream(api.StreamConfig(name=ADVISORIES, subjects=[_EXCEEDED], retention=queue, max_age=30 * DAY, **limits))
        await self.js.add_consumer(
            ADVISORIES, api.ConsumerConfig(name=COLLECTOR, durable_name=COLLECTOR, ack_policy=api.AckPolicy.EXPLICIT, ack_wait=10.0)
        )

    async def _stream(self, config: api.StreamConfig) -> None:
        try:
            await self.js.add_stream(config)
        except APIError as error:
            if error.err_code != _OTHER_CONFIG:
                raise
            await self.js.update_stream(config)

    async def announce(self, results: Sequence[Result], headers: Sequence[Mapping[str, str]] = ()) -> None:
        """Publish results, with headers for each or none at all, and wait until the stream has them.

        Raises:
            NatsError: it may not have all of them.
        """
        headers = headers or [{}] * len(results)
        await _kept(
            *[
                await self.send(result_subject(result.service), result.model_dump_json().encode(), carried)
                for result, carried in zip(results, headers, strict=True)
            ]
        )

    async def failed(self, service: str, task_id: str, sequence: int, failure: Failure, counted: bool = True) -> Attempt:
        """Keep the reason why a task failed, for as long as it may be tried again; with how often it did, this time ``counted``.

        Raises:
            NatsError: the bus is not as it should be; nothing may be kept.
        """
        before = await self.last_attempt(service, task_id)
        failures = before.failures if before is not None and before.sequence == sequence else 0
        attempt = Attempt(failure=failure, failures=failures + counted, sequence=sequence)
        await _kept(await self.send(failure_subject(service, task_id), attempt.model_dump_json().encode()))
        return attempt

    async def last_attempt(self, service: str, task_id: str) -> Attempt | None:
        """The last failure of a task that was kept, if any.

        Raises:
            NatsError: the bus does not answer now.
        """
        try:
            said = await self.js.get_last_msg(EVENTS, failure_subject(service, task_id))
        except NotFoundError:
            return None
        return Attempt.model_validate_json(said.data or b"")

    async def set_aside(self, letter: DeadLetter) -> None:
        """Keep a dead letter and tell whoever waits for the task. (To take it out of its queue comes after that.)

        Raises:
            NatsError: it may not be kept.
        """
        telemetry.parked.labels(letter.service).inc()
        log.warning("task %s of %s is set aside: %s", letter.task_id, letter.service, letter.failure.message)
        await _kept(await self.send(dead_subject(letter.service, letter.task_id), letter.model_dump_json().encode()))
        tries = letter.failures or letter.deliveries
        await self.announce([Result(task_id=letter.task_id, service=letter.service, failure=letter.failure, tries=tries)])


async def _kept(*acknowledgements: asyncio.Future[dict[str, Any]]) -> None:
    """Wait until streams have what was sent to them."""
    try:
        async with asyncio.timeout(ACKNOWLEDGED):  # not wait_for, which may lose a cancellation before Python 3.12
            await asyncio.gather(*acknowledgements)
    except TimeoutError as error:
        raise NatsError("messages were not acknowledged") from error


def present(error: BaseException) -> bool:
    """Whether a task was not published because it is in the queue already."""
    return isinstance(error, APIError) and error.err_code == _STORE_REFUSED and error.description == _FULL


def gone(error: BaseException) -> bool:
    """Whether a stream is not there, or JetStream not yet."""
    return isinstance(error, NoStreamResponseError) or (isinstance(error, ServiceUnavailableError) and not present(error))
