"""The lengths of the work queues, as metrics. A cluster scales its workers by them if it has no autoscaler that reads JetStream."""

from __future__ import annotations

import asyncio
import logging

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError
from prometheus_client import Gauge

from orchestrator.recipes.catalog import services
from sfumato.runtime.bus import CONSUMER, Bus, stream_of

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two measurements."""

lag = Gauge("sfumato_queue_lag", "Tasks on the bus that are not done: those that wait and those that workers process.", ["service"])
stored = Gauge("sfumato_bus_stored_bytes", "Bytes that JetStream's streams occupy on disk, each counted once.")


async def watch(bus: Bus) -> None:
    """Measure the queues periodically, until cancelled. All replicas report the same values: use the maximum, not the sum."""
    known = services()
    while True:
        try:
            for service in known:
                lag.labels(service).set(await _lag(bus, service))
            stored.set((await bus.js.account_info()).storage)
        except (NatsError, TimeoutError) as error:
            log.debug("the queues cannot be measured: %s", error)
        await asyncio.sleep(LOOK)


async def _lag(bus: Bus, service: str) -> int:
    try:
        consumer = await bus.js.consumer_info(stream_of(service), CONSUMER)
    except NotFoundError:
        return 0  # the queue is created with its first task
    return (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
