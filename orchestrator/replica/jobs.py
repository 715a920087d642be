"""Starts what a joint training needs several processes for: on a cluster, an Indexed Job for each such task, made from a template.

The queue on the bus is the truth here as well: while its oldest task has no Job that is at it, one is made, by a name that follows
from the task. So any number of replicas may look, and a Job that failed is made anew. What a Job's pods do is an ordinary worker's work
(`services.trainer.distributed`): they take the task from the queue, and are as free to be killed as any.
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
"""The annotation of a Job that says for which task it was made."""
AGAIN = timedelta(seconds=60)
"""After which a Job that has ended is made anew, where its task is in the queue still."""
SECONDS = 10.0
"""That Kubernetes has to answer."""


class Jobs:
    """Jobs of one namespace, by the account that this process runs under (or the kubeconfig of who runs it)."""

    def __init__(self, template: Path) -> None:
        """Read the template: a Job as YAML, whose name the tasks' ids are added to.

        Raises:
            InvalidInput: it is no Job, or there is no way to Kubernetes.
        """
        try:
            content = yaml.safe_load(template.read_text(encoding="utf-8"))
            if content["kind"] != "Job":
                raise TypeError("it is no Job")
            self._template = cast(Job, Job.from_dict(content))
            self._name, namespace = content["metadata"]["name"], content["metadata"]["namespace"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise InvalidInput("joint_job", f"{template} is no template of a Job: {error!r}.", hint="The chart renders one.") from error
        try:
            self._client = AsyncClient(namespace=namespace, timeout=Timeout(SECONDS))
        except ConfigError as error:
            hint = "Give the pod's account its token, or name a file with KUBECONFIG."
            raise InvalidInput("joint_job", f"there is no way to Kubernetes: {error}.", hint=hint) from error

    async def ensure(self, task_id: str) -> None:
        """Have a Job at a task, or one that has just ended.

        Raises:
            Unavailable: Kubernetes does not answer, or refuses; its own words.
        """
        name = f"{self._name}-{task_id[:16]}"
        try:
            job = await self._read(name)
            if job is None:
                await self._create(name, task_id)
            elif _ended_before(job, datetime.now(UTC) - AGAIN):
                log.warning("The Job %s has ended, and its task is not done: it is made anew.", name)
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
            log.info("A Job for a joint training: %s.", name, extra={"task": task_id})
        except ApiError as error:
            if error.status.code != 409:  # another replica was faster
                raise


async def watch(bus: Bus, jobs: Jobs) -> None:
    """Look at the queue now and then, until cancelled."""
    while True:
        try:
            task_id = await oldest(bus)
            if task_id:
                await jobs.ensure(task_id)
        except (NatsError, TimeoutError) as error:
            log.debug("the queue cannot be looked at now: %s", error)
        except Unavailable as error:
            log.warning("No Job can be made for a joint training: %s", error)
        await asyncio.sleep(LOOK)


async def oldest(bus: Bus) -> str:
    """The task that is in the queue for the longest time, in somebody's hands or not; empty where there is none.

    Raises:
        NatsError: the bus does not answer.
    """
    try:
        message = await bus.js.get_msg(stream_of(QUEUE), seq=1, subject=task_subject(QUEUE, "*"), next=True)
    except NotFoundError:
        return ""  # nobody has needed it yet, or all is done
    return (message.subject or "").rpartition(".")[2]


def _ended_before(job: Job, moment: datetime) -> bool:
    """Whether it is complete, or failed, and was so at a moment already."""
    conditions = job.status.conditions if job.status else None
    ends = [found for found in conditions or () if found.type in ("Complete", "Failed") and found.status == "True"]
    return bool(ends) and all(found.lastTransitionTime is not None and found.lastTransitionTime < moment for found in ends)
