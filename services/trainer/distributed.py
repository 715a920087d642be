"""One training by several processes: ``torchrun ... -m services.trainer.distributed``; settings as the trainer's.

The processes are one worker of the bus's queue ``joint``. The first one takes a task and sends it to the others; they do it together and
end. They also end if the queue is empty. The exit status is 1 if a process is lost: started again, they continue from the checkpoint.
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
"""Seconds between reads of the queue's state, until a task has arrived."""
PATIENCE = timedelta(hours=1)
"""How long the processes wait for one another: to start, to load, to finish a step."""


class Processes:
    """The `services.trainer.group.Group` of the processes that torchrun started: gloo between CPUs, NCCL between GPUs."""

    def __init__(self) -> None:
        """Join the other processes.

        Raises:
            Unavailable: they do not join in time.
        """
        device = pick_device()
        self._device = torch.device(device)
        with _others():
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Group`."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        with _others():
            dist.all_gather(gathered, tensor)
        return gathered

    def broadcast(self, data: bytes) -> bytes:
        """See `Group`."""
        length = torch.tensor([len(data)], device=self._device)
        with _others():
            dist.broadcast(length, 0)
        word = _numbers(data if self.rank == 0 else b"", int(length)).to(self._device)
        with _others():
            dist.broadcast(word, 0)
        return _bytes(word)

    def gather_text(self, text: str) -> list[str]:
        """See `Group`."""
        data = text.encode()
        lengths = [int(length) for length in self.gather(torch.tensor([len(data)], device=self._device))]
        gathered = self.gather(_numbers(data, max(lengths)).to(self._device))
        return [_bytes(each[:length]).decode() for each, length in zip(gathered, lengths, strict=True)]


def _numbers(data: bytes, length: int) -> Tensor:
    """Bytes as ``length`` numbers, padded with zeros."""
    return torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8) if length else torch.empty(0, dtype=torch.uint8)


def _bytes(numbers: Tensor) -> bytes:
    return numbers.cpu().numpy().tobytes()


@contextmanager
def _others() -> Iterator[None]:
    """Turn PyTorch's errors of communication into Unavailable."""
    try:
        yield
    except RuntimeError as error:
        raise Unavailable(f"A process of the training is gone: {error}", hint="Start all of them again.") from error


class _Leader:
    """Takes one task from the bus and sends it to the other processes."""

    def __init__(self, group: Group) -> None:
        self.stop, self.begun, self.lost = asyncio.Event(), False, False
        self._group, self._loop = group, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop.set)

    def do(self, task: Task, artifacts: ArtifactStore) -> Output:
        """The queue's handler, in the worker's thread. ``lost``: the other processes may still be waiting for this one."""
        self.begun = self.lost = True
        try:
            self._group.broadcast(task.model_dump_json().encode())
            output = train(task, artifacts, self._group)
            self.lost = False
            return output
        except SfumatoError as error:
            self.lost = isinstance(error, Unavailable)  # any other error ended all processes alike
            raise
        finally:
            self._loop.call_soon_threadsafe(self.stop.set)  # one task only


async def _lead(group: Group, artifacts: ArtifactStore, settings: BusSettings) -> bool:
    """Do one task as the leader; whether the other processes are still there at the end."""
    async with Bus(settings, f"sfumato {QUEUE} of {group.size}") as bus:
        leader = _Leader(group)
        looking = asyncio.create_task(_look(bus, leader))
        drained = await Worker(bus, QUEUE, {JOINT.task: leader.do}, artifacts).run(leader.stop)
        await cancel_all([looking])
    return drained and not leader.lost


async def _look(bus: Bus, leader: _Leader) -> None:
    """Stop the leader if the queue is empty; for a task that another worker holds, wait twice the time after which it is redelivered."""
    patience = time.monotonic() + 2 * bus.settings.ack_wait
    while not leader.begun:
        await asyncio.sleep(LOOK)
        try:
            queue = await bus.js.consumer_info(stream_of(QUEUE), CONSUMER)
        except (NatsError, TimeoutError) as error:
            log.debug("the queue cannot be read now: %s", error)
            continue
        if not queue.num_pending and (not queue.num_ack_pending or time.monotonic() > patience) and not leader.begun:
            log.info("There is nothing to train.")
            return leader.stop.set()


def _follow(group: Group, artifacts: ArtifactStore) -> None:
    """Do the tasks that the leader sends, until it sends an empty one."""
    while data := group.broadcast(b""):
        task = Task.model_validate_json(data)
        try:
            train(task, artifacts, group)
        except Unavailable:
            raise
        except SfumatoError as error:
            log.warning("%s", error)  # the leader reports the same error to the bus


def _one_gpu() -> None:
    """Restrict each process to one GPU of this machine."""
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
                    log.warning("A process is gone, or the training was stopped: started again, it continues from the checkpoint.")
                    logging.shutdown()
                    os._exit(1)  # other processes may wait for this one, and its thread for them
            group.broadcast(b"")
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
