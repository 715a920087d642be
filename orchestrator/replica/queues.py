"""How full the work queues are, as metrics: what a cluster scales workers by, where it has nothing that reads JetStream itself."""

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
"""Seconds between looks."""

lag = Gauge("sfumato_queue_lag", "Tasks on the bus that are not done: those that wait and those in workers' hands.", ["service"])
stored = Gauge("sfumato_bus_stored_bytes", "Bytes that JetStream's streams take up in files, each counted once.")


async def watch(bus: Bus) -> None:
    """Look at the queues now and then, until cancelled. Every replica tells the same: take the highest, not the sum."""
    known = services()
    while True:
        try:
            for service in known:
                lag.labels(service).set(await _lag(bus, service))
            stored.set((await bus.js.account_info()).storage)
        except (NatsError, TimeoutError) as error:
            log.debug("the queues cannot be looked at now: %s", error)
        await asyncio.sleep(LOOK)


async def _lag(bus: Bus, service: str) -> int:
    try:
        consumer = await bus.js.consumer_info(stream_of(service), CONSUMER)
    except NotFoundError:
        return 0  # nobody has needed it yet
    return (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
