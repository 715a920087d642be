"""One training by several processes: ``torchrun ... -m services.trainer.distributed``; settings as the trainer's.

The processes are one worker of the bus's queue ``joint``. The first of them takes a task, tells the others, and they do it together;
then all of them end. Where there is nothing to do, they end as well. Status 1, when one of them is lost: started again, they
go on from the checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from nats.errors import Error as NatsError
from torch import Tensor

from services.trainer.group import Group
from services.trainer.objectives.joint import JOINT
from services.trainer.tasks import train
from sfumato.errors import SfumatoError, Unavailable
from sfumato.runtime import logs
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import CONSUMER, Bus, stream_of
from sfumato.runtime.bus.worker import Worker
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.device import pick_device
from sfumato.runtime.settings import BusSettings, Settings, TelemetrySettings
from sfumato.runtime.tasks import Output, Task
from sfumato.runtime.telemetry import observing

log = logging.getLogger(__name__)

QUEUE = JOINT.task.partition(".")[0]
LOOK = 2.0
"""Seconds between looks at the queue, until a task has come."""
PATIENCE = timedelta(hours=1)
"""For which the processes wait for one another: to come up, to load, to end a step."""


class Processes:
    """The `services.trainer.group.Group` of the processes that torchrun started: gloo between CPUs, NCCL between GPUs."""

    def __init__(self) -> None:
        """Meet the others.

        Raises:
            Unavailable: they do not come.
        """
        device = pick_device()
        self._device = torch.device(device)
        with _others():
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Group`."""
        everybody = [torch.empty_like(tensor) for _ in range(self.size)]
        with _others():
            dist.all_gather(everybody, tensor)
        return everybody

    def tell(self, data: bytes) -> bytes:
        """See `Group`."""
        length = torch.tensor([len(data)], device=self._device)
        with _others():
            dist.broadcast(length, 0)
        word = _numbers(data if self.rank == 0 else b"", int(length)).to(self._device)
        with _others():
            dist.broadcast(word, 0)
        return _bytes(word)

    def hear(self, word: str) -> list[str]:
        """See `Group`."""
        data = word.encode()
        lengths = [int(length) for length in self.gather(torch.tensor([len(data)], device=self._device))]
        words = self.gather(_numbers(data, max(lengths)).to(self._device))
        return [_bytes(word[:length]).decode() for word, length in zip(words, lengths, strict=True)]


def _numbers(data: bytes, length: int) -> Tensor:
    """Bytes as so many numbers, zeros after them."""
    return torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8) if length else torch.empty(0, dtype=torch.uint8)


def _bytes(numbers: Tensor) -> bytes:
    return numbers.cpu().numpy().tobytes()


@contextmanager
def _others() -> Iterator[None]:
    """What PyTorch raises while processes talk to one another is that one of them does not."""
    try:
        yield
    except RuntimeError as error:
        raise Unavailable(f"A process of the training is gone: {error}", hint="Start all of them again.") from error


class _Leader:
    """Takes one task of the bus, and has everybody do it."""

    def __init__(self, group: Group) -> None:
        self.stop, self.begun, self.lost = asyncio.Event(), False, False
        self._group, self._loop = group, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop.set)

    def do(self, task: Task, artifacts: ArtifactStore) -> Output:
        """The queue's handler, in the worker's thread. ``lost``: the others may be waiting for this process, somewhere in the middle."""
        self.begun = self.lost = True
        try:
            self._group.tell(task.model_dump_json().encode())
            output = train(task, artifacts, self._group)
            self.lost = False
            return output
        except SfumatoError as error:
            self.lost = isinstance(error, Unavailable)  # else all of them have come to the same end
            raise
        finally:
            self._loop.call_soon_threadsafe(self.stop.set)  # this one, and no more


async def _lead(group: Group, artifacts: ArtifactStore, settings: BusSettings) -> bool:
    """Whether the others are still there in the end."""
    async with Bus(settings, f"sfumato {QUEUE} of {group.size}") as bus:
        leader = _Leader(group)
        looking = asyncio.create_task(_look(bus, leader))
        drained = await Worker(bus, QUEUE, {JOINT.task: leader.do}, artifacts).run(leader.stop)
        await cancel_all([looking])
    return drained and not leader.lost


async def _look(bus: Bus, leader: _Leader) -> None:
    """Stop where nothing is to be had: what waits in the queue is given to this worker, what another has in hand only if that is killed."""
    patience = time.monotonic() + 2 * bus.settings.ack_wait
    while not leader.begun:
        await asyncio.sleep(LOOK)
        try:
            queue = await bus.js.consumer_info(stream_of(QUEUE), CONSUMER)
        except (NatsError, TimeoutError) as error:
            log.debug("the queue cannot be looked at now: %s", error)
            continue
        if not queue.num_pending and (not queue.num_ack_pending or time.monotonic() > patience) and not leader.begun:
            log.info("There is nothing to train.")
            return leader.stop.set()


def _follow(group: Group, artifacts: ArtifactStore) -> None:
    """Do what the leader says, until it says nothing more."""
    while data := group.tell(b""):
        task = Task.model_validate_json(data)
        try:
            train(task, artifacts, group)
        except Unavailable:
            raise
        except SfumatoError as error:
            log.warning("%s", error)  # the leader has the same to say, and says it


def _one_gpu() -> None:
    """Of the GPUs of this machine, each process sees its own."""
    number, visible = os.environ.get("LOCAL_RANK", "0"), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(number)] if visible else number


def main() -> int:
    """The program; its exit status."""
    _one_gpu()
    try:
        telemetry = TelemetrySettings()
        logs.configure(telemetry)
        artifacts, settings = ArtifactStore(Settings().artifacts_url), BusSettings()
        group = Processes()
        log.info("Process %d of %d, pid %d.", group.rank, group.size, os.getpid())
        if group.rank:
            _follow(group, artifacts)
        else:
            with observing(QUEUE, telemetry):
                if not asyncio.run(_lead(group, artifacts, settings)):
                    log.warning("A process of the training is gone, or the training was told to end: it goes on when started again.")
                    logging.shutdown()
                    os._exit(1)  # others may wait for this one, and its thread for them
            group.tell(b"")
    except Unavailable as error:
        log.error("%s", error)
        logging.shutdown()
        os._exit(1)
    except SfumatoError as error:
        log.error("%s", error)
        return 2
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
