"""Starts the processes of joint trainings on a cluster: an Indexed Job for each such task, created from a template.

The queue on the bus is authoritative: if its oldest task has no running Job, one is created under a name that is derived from the task.
So any number of replicas may watch the queue, and a failed Job is replaced. A Job's pods are ordinary workers
(`services.trainer.distributed`): they take the task from the queue and may be killed at any time.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import yaml
from httpx2 import Timeout, TransportError
from lightkube import ApiError, AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.resources.batch_v1 import Job
from lightkube.types import CascadeType
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from orchestrator.replica.queues import LOOK
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.bus import Bus, stream_of, task_subject

log = logging.getLogger(__name__)

QUEUE = "joint"
TASK = "sfumato.io/task"
"""The annotation of a Job with the id of its task."""
AGAIN = timedelta(seconds=60)
"""Time after which an ended Job is replaced if its task is still in the queue."""
SECONDS = 10.0
"""Timeout of a request to Kubernetes, in seconds."""


class Jobs:
    """Jobs of one namespace, under the service account of this process (or its user's kubeconfig)."""

    def __init__(self, template: Path) -> None:
        """Read the template: a Job as YAML; the id of a task is appended to its name.

        Raises:
            InvalidInput: the template is not a Job, or Kubernetes is not configured.
        """
        try:
            content = yaml.safe_load(template.read_text(encoding="utf-8-sig"))
            if content["kind"] != "Job":
                raise TypeError("it is not a Job")
            self._template = cast(Job, Job.from_dict(content))
            self._name, namespace = content["metadata"]["name"], content["metadata"]["namespace"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise InvalidInput("joint_job", f"{template} is not a template of a Job: {error!r}.", hint="The chart renders one.") from error
        try:
            self._client = AsyncClient(namespace=namespace, timeout=Timeout(SECONDS))
        except ConfigError as error:
            hint = "Mount the token of the pod's service account, or set KUBECONFIG."
            raise InvalidInput("joint_job", f"Kubernetes is not configured: {error}.", hint=hint) from error

    async def ensure(self, task_id: str) -> None:
        """Create the Job of a task, unless there is one that runs or has just ended.

        Raises:
            Unavailable: Kubernetes does not answer, or refuses (with its message).
        """
        name = f"{self._name}-{task_id[:16]}"
        try:
            job = await self._read(name)
            if job is None:
                await self._create(name, task_id)
            elif _ended_before(job, datetime.now(UTC) - AGAIN):
                log.warning("The Job %s has ended, but its task is not done: the Job is created again.", name)
                await self._client.delete(Job, name, cascade=CascadeType.BACKGROUND)
        except ApiError as error:
            raise Unavailable(f"Kubernetes refuses ({error.status.code} {error.status.reason}): {error.status.message}") from error
        except TransportError as error:
            raise Unavailable(f"Kubernetes does not answer: {error!r}") from error

    async def _read(self, name: str) -> Job | None:
        try:
            return await self._client.get(Job, name)
        except ApiError as error:
            if error.status.code == 404:
                return None
            raise

    async def _create(self, name: str, task_id: str) -> None:
        job = copy.deepcopy(self._template)
        assert job.metadata is not None
        job.metadata.name = name
        job.metadata.annotations = {**(job.metadata.annotations or {}), TASK: task_id}
        try:
            await self._client.create(job)
            log.info("Created the Job %s for a joint training.", name, extra={"task": task_id})
        except ApiError as error:
            if error.status.code != 409:  # 409: another replica created it first
                raise


async def watch(bus: Bus, jobs: Jobs) -> None:
    """Check the queue periodically, until cancelled."""
    while True:
        try:
            task_id = await oldest(bus)
            if task_id:
                await jobs.ensure(task_id)
        except (NatsError, TimeoutError) as error:
            log.debug("the queue cannot be read: %s", error)
        except Unavailable as error:
            log.warning("No Job can be created for a joint training: %s", error)
        await asyncio.sleep(LOOK)


async def oldest(bus: Bus) -> str:
    """The id of the oldest task in the queue, whether a worker processes it or not; empty if there is none.

    Raises:
        NatsError: the bus does not answer.
    """
    try:
        message = await bus.js.get_msg(stream_of(QUEUE), seq=1, subject=task_subject(QUEUE, "*"), next=True)
    except NotFoundError:
        return ""  # the queue does not exist yet, or is empty
    return (message.subject or "").rpartition(".")[2]


def _ended_before(job: Job, moment: datetime) -> bool:
    """Whether the Job completed or failed before a moment."""
    conditions = job.status.conditions if job.status else None
    ends = [found for found in conditions or () if found.type in ("Complete", "Failed") and found.status == "True"]
    return bool(ends) and all(found.lastTransitionTime is not None and found.lastTransitionTime < moment for found in ends)
