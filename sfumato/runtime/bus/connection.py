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
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from sfumato.errors import Blocked, Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.bus.messages import (
    ADVISORIES,
    BESIDE_TASK,
    COLLECTOR,
    CONSUMER,
    DEAD,
    EVENTS,
    LARGEST_TASK,
    LEAST_PAYLOAD,
    Attempt,
    DeadLetter,
    Result,
    dead_subject,
    failure_subject,
    result_subject,
    stream_of,
    task_subject,
)
from sfumato.runtime.bus.refusals import HELD_ALREADY, STORE_REFUSED, refusal
from sfumato.runtime.failures import Failure
from sfumato.runtime.settings import BusSettings

log = logging.getLogger(__name__)

_EXCEEDED = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*." + CONSUMER
# Error number of nats-server (`errors.json` in its sources).
_OTHER_CONFIG = 10058

DAY = 86_400.0
ACKNOWLEDGED = 5.0
"""Seconds within which a stream must acknowledge a message."""
PROBE = 2.0
"""Seconds between checks that JetStream answers, and the timeout of a check."""
SILENCES = 2
"""Checks in a row without an answer after which another server of the cluster is tried."""
# Message ids are not used: a task that is in the queue already is refused by its subject. nats-server requires a window anyway.
DUPLICATES = 1.0


class Bus:
    """A connection that reconnects, and the streams and consumers on it. Use it in an ``async with`` block."""

    def __init__(self, settings: BusSettings, name: str) -> None:
        self.settings = settings
        # Monotonic time at which the connection broke, or JetStream stopped answering; None while it is connected, or answers.
        self._disconnected_since: float | None = None
        self._silent_since: float | None = None
        # Why the last check that JetStream answers failed, if that lasts; and nats-server's last words about a missing permission.
        self.trouble: Blocked | None = None
        self._denied = ""
        # Called after each reconnect: the server drops what it held for the old connection, such as pull requests.
        self.on_return: list[Callable[[], None]] = []
        self._name = name
        self.client: Client
        self.js: JetStreamContext
        # Messages that are not acknowledged yet and the monotonic time at which each was sent, oldest first.
        self._acknowledgements: dict[str, tuple[asyncio.Future[dict[str, Any]], float]] = {}
        self._tokens = itertools.count()
        # Monotonic time at which the first connection attempts give up.
        self._give_up = math.inf

    @property
    def away_since(self) -> float | None:
        """Monotonic time since which the bus is not usable; None while it is."""
        return min((since for since in (self._disconnected_since, self._silent_since) if since is not None), default=None)

    @property
    def largest_task(self) -> int:
        """The most bytes of a task's message, by the size of messages that the server announces."""
        return min(LARGEST_TASK, self.client.max_payload - BESIDE_TASK)

    def refusal(self, error: BaseException) -> Blocked | None:
        """The error with the words for a user, if it lasts until somebody changes something; None if it passes by itself."""
        return refusal(error, self.settings.url, self._denied)

    def explained(self, error: BaseException) -> BaseException:
        """The error with the words for a user if it lasts; otherwise itself. For logs."""
        return self.refusal(error) or error

    async def __aenter__(self) -> Bus:
        """Connect; wait for a server that is still starting.

        Raises:
            Unavailable: no server answers within ``settings.patience`` seconds, or the server refuses the credentials.
            Blocked: the server's messages are too small.
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
        if self.client.max_payload < LEAST_PAYLOAD:
            most = self.client.max_payload
            await self.client.close()
            words = f"The bus at {settings.url} accepts messages of {most} bytes, and {LEAST_PAYLOAD} are needed at least."
            raise Blocked(words, hint="Raise max_payload in nats-server's configuration to 1MB, its default.")
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
        self._disconnected_since, self._denied = None, ""
        self._forget()
        for listener in self.on_return:
            listener()

    async def _probe(self) -> None:
        """Check JetStream at a fixed interval. A server that is cut off from its cluster accepts messages and loses them: switch to
        another server. (The cut-off server may still be the cluster's leader for a while, and answer requests.)
        """
        silences, js = 0, self.client.jetstream(timeout=PROBE)
        while not self.client.is_closed:
            await asyncio.sleep(PROBE)
            if not self.client.is_connected:
                continue
            since = time.monotonic()
            try:
                await js.account_info()
                silences, self.trouble = 0, None
            except NatsError as error:
                silences += 1
                self.trouble = self.refusal(error)
            _, oldest = next(iter(self._acknowledgements.values()), (None, math.inf))
            if oldest < since - SILENCES * PROBE:
                if self._denied:  # such a message gets no answer, and its sender is told why
                    self._forget(NatsTimeout(), before=since - SILENCES * PROBE)
                else:
                    silences, since = SILENCES, oldest
            self._silent_since = min(since, self._silent_since or since) if silences else None
            if silences >= SILENCES and len(self.client.servers) > 1:
                log.warning("this server of the bus seems cut off from its cluster; trying another")
                silences = 0
                await self.client.force_reconnect()

    def _forget(self, error: NatsError | None = None, before: float = math.inf) -> None:
        """Fail the pending acknowledgements of messages that were sent ``before`` a time: they never arrive."""
        for future, sent in list(self._acknowledgements.values()):
            if not future.done() and sent < before:
                future.set_exception(error or ConnectionReconnectingError())

    async def _complained(self, error: Exception) -> None:
        """nats-py reports an error. During the first connection attempts, raising here ends them."""
        if self._give_up < math.inf:
            if "authorization" in str(error).lower() or "authentication" in str(error).lower():
                hint = "Is SFUMATO_BUS_TOKEN its token, or SFUMATO_BUS_USER known to it, with this password?"
                raise Unavailable(f"nats-server at {self.settings.url} refuses the credentials.", hint=hint)
            if time.monotonic() > self._give_up:
                hint = "Is it running, and is SFUMATO_BUS_URL its address?"
                raise Unavailable(f"nats-server at {self.settings.url} does not answer: {error}.", hint=hint) from error
        if "permissions violation" in str(error).lower():
            denied = str(error).removeprefix("nats: ")
            if denied == self._denied:
                return
            self._denied = denied
        # Without a server this comes every tenth of a second: too often for the log.
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        log.log(level, "bus: %s: %s", type(error).__name__, error)

    async def send(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> asyncio.Future[dict[str, Any]]:
        """Publish into a stream; returns the future of the stream's acknowledgement, with ``seq``.

        (Like nats-py's `publish_async`, but a message that is pending when the connection breaks fails at once, and nothing is kept.)

        Raises:
            NatsError: not connected.
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
        """Create or update a service's work queue and the streams that all services share.

        Raises:
            NatsError: JetStream does not answer, or refuses.
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
        """Publish results, each with its headers if given, and wait until the stream acknowledges them.

        Raises:
            NatsError: some may not be stored.
        """
        headers = headers or [{}] * len(results)
        await _kept(
            *[
                await self.send(result_subject(result.service), result.model_dump_json().encode(), carried)
                for result, carried in zip(results, headers, strict=True)
            ]
        )

    async def failed(self, service: str, task_id: str, sequence: int, failure: Failure, counted: bool = True) -> Attempt:
        """Store why a task failed, with the number of its failures; this failure adds one if ``counted``.

        Raises:
            NatsError: the bus does not answer; the reason may not be stored.
        """
        before = await self.last_attempt(service, task_id)
        failures = before.failures if before is not None and before.sequence == sequence else 0
        attempt = Attempt(failure=failure, failures=failures + counted, sequence=sequence)
        await _kept(await self.send(failure_subject(service, task_id), attempt.model_dump_json().encode()))
        return attempt

    async def last_attempt(self, service: str, task_id: str) -> Attempt | None:
        """The last stored failure of a task, if any.

        Raises:
            NatsError: the bus does not answer.
        """
        try:
            said = await self.js.get_last_msg(EVENTS, failure_subject(service, task_id))
        except NotFoundError:
            return None
        return Attempt.model_validate_json(said.data or b"")

    async def set_aside(self, letter: DeadLetter) -> None:
        """Store a dead letter and announce the task's failure. The caller removes the task from its queue afterwards.

        Raises:
            NatsError: it may not be stored.
        """
        telemetry.parked.labels(letter.service).inc()
        log.warning("task %s of %s becomes a dead letter: %s", letter.task_id, letter.service, letter.failure.message)
        await _kept(await self.send(dead_subject(letter.service, letter.task_id), letter.model_dump_json().encode()))
        tries = letter.failures or letter.deliveries
        await self.announce([Result(task_id=letter.task_id, service=letter.service, failure=letter.failure, tries=tries)])


async def _kept(*acknowledgements: asyncio.Future[dict[str, Any]]) -> None:
    """Wait until streams acknowledge what was sent to them."""
    try:
        async with asyncio.timeout(ACKNOWLEDGED):  # not wait_for, which may lose a cancellation before Python 3.12
            await asyncio.gather(*acknowledgements)
    except TimeoutError as error:
        raise NatsTimeout from error


def present(error: BaseException) -> bool:
    """Whether publishing a task failed because it is in the queue already."""
    return isinstance(error, APIError) and error.err_code == STORE_REFUSED and error.description == HELD_ALREADY


def gone(error: BaseException) -> bool:
    """Whether a stream does not exist, or JetStream is not ready yet."""
    if isinstance(error, NoStreamResponseError):
        return True
    return isinstance(error, ServiceUnavailableError) and not present(error) and refusal(error, "") is None
