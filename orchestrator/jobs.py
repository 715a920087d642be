"""Starts what a joint training needs several processes for: on a cluster, an Indexed Job for each such task, made from a template.

The queue on the bus is the truth here as well: while its oldest task has no Job that is at it, one is made, by a name that follows
from the task. So any number of replicas may look, and a Job that failed is made anew. What a Job's pods do is an ordinary worker's work
(`services.trainer.distributed`): they take the task from the queue, and are as free to be killed as any.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError
from urllib3.exceptions import HTTPError

from orchestrator.queues import LOOK
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
            self._template: dict[str, Any] = yaml.safe_load(template.read_text(encoding="utf-8"))
            self._name, self._namespace = self._template["metadata"]["name"], self._template["metadata"]["namespace"]
            if self._template["kind"] != "Job":
                raise TypeError("it is no Job")
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise InvalidInput("joint_job", f"{template} is no template of a Job: {error!r}.", hint="The chart renders one.") from error
        self._api = client.BatchV1Api(client.ApiClient(_way()))

    def ensure(self, task_id: str) -> None:
        """Have a Job at a task, or one that has just ended.

        Raises:
            Unavailable: Kubernetes does not answer, or refuses; its own words.
        """
        name = f"{self._name}-{task_id[:16]}"
        try:
            job = self._read(name)
            if job is None:
                self._create(name, task_id)
            elif _ended_before(job, datetime.now(UTC) - AGAIN):
                log.warning("The Job %s has ended, and its task is not done: it is made anew.", name)
                same = client.V1DeleteOptions(propagation_policy="Background", preconditions=client.V1Preconditions(uid=job.metadata.uid))
                self._api.delete_namespaced_job(name, self._namespace, body=same, _request_timeout=SECONDS)
        except ApiException as error:
            raise Unavailable(f"Kubernetes refuses ({error.status} {error.reason}): {error.body}") from error
        except HTTPError as error:
            raise Unavailable(f"Kubernetes does not answer: {error}") from error

    def _read(self, name: str) -> Any:
        try:
            return self._api.read_namespaced_job(name, self._namespace, _request_timeout=SECONDS)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _create(self, name: str, task_id: str) -> None:
        job: Any = copy.deepcopy(self._template)  # the API takes what its own classes become
        job["metadata"]["name"] = name
        job["metadata"].setdefault("annotations", {})[TASK] = task_id
        try:
            self._api.create_namespaced_job(self._namespace, job, _request_timeout=SECONDS)
            log.info("A Job for a joint training: %s.", name, extra={"task": task_id})
        except ApiException as error:
            if error.status != 409:  # another replica was faster
                raise


async def watch(bus: Bus, jobs: Jobs) -> None:
    """Look at the queue now and then, until cancelled."""
    while True:
        try:
            task_id = await oldest(bus)
            if task_id:
                await asyncio.to_thread(jobs.ensure, task_id)
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


def _way() -> client.Configuration:
    """To Kubernetes: inside it by this pod's account, whose token is read anew as it is renewed, outside as `kubectl` goes."""
    found = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=found)
        else:
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=found)
    except config.ConfigException as error:
        hint = "Give the pod's account its token, or name a file with KUBECONFIG."
        raise InvalidInput("joint_job", f"there is no way to Kubernetes: {error}.", hint=hint) from error
    return found


def _ended_before(job: Any, moment: datetime) -> bool:
    """Whether it is complete, or failed, and was so at a moment already."""
    ends = [found for found in job.status.conditions or () if found.type in ("Complete", "Failed") and found.status == "True"]
    return bool(ends) and all(found.last_transition_time < moment for found in ends)
