"""Jobs for joint trainings: a real queue on a real bus; Kubernetes' side of the wire is its API as far as Jobs go, with its own schema."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from orchestrator.replica.jobs import AGAIN, QUEUE, TASK, Jobs, oldest, watch
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.bus import CONSUMER, Bus, stream_of, task_subject
from tests.kubernetes_api import ApiServer, served
from tests.unit.bus_system import System, running

TEMPLATE = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "art-joint", "namespace": "art", "labels": {"a": "b"}},
    "spec": {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "joint", "image": "sfumato/trainer:1"}]}},
    },
}
IDS = ("1" * 64, "2" * 64)


class Api(ApiServer):
    """The few paths of the API server that are asked for; it takes what Kubernetes' schema takes, and each name once."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.forbidden = False

    def answer(self, method: str, address: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            path, _, query = address.partition("?")
            name = path.removeprefix("/apis/batch/v1/namespaces/art/jobs").strip("/")
            self.asked.append(f"{method} {name}")
            if self.forbidden:
                return 403, {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "jobs.batch is forbidden"}
            if method == "POST":
                kubernetes_validate.validate(body, "1.34", strict=True)
                name = body["metadata"]["name"]
                if name in self.jobs:
                    return 409, {"kind": "Status", "code": 409, "reason": "AlreadyExists"}
                self.jobs[name] = body | {"metadata": body["metadata"] | {"uid": f"uid-{len(self.asked)}"}, "status": {}}
                return 201, self.jobs[name]
            if name not in self.jobs:
                return 404, {"kind": "Status", "code": 404, "reason": "NotFound"}
            if method == "DELETE":
                assert "propagationPolicy=Background" in query  # else its pods would stay
                return 200, self.jobs.pop(name)
            return 200, self.jobs[name]

    def end(self, name: str, kind: str, ago: timedelta) -> None:
        """A Job of it has come to an end."""
        moment = (datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.jobs[name]["status"] = {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": moment}]}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    server = Api("art")
    with served(server, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield server


@pytest.fixture
def jobs(api: Api, tmp_path: Path) -> Jobs:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(TEMPLATE))
    return Jobs(tmp_path / "job.yaml")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("system")) as up:
        yield up


def test_every_joint_training_in_the_queue_has_one_job_in_turn_however_many_look(api: Api, jobs: Jobs, system: System) -> None:
    names = [f"art-joint-{task_id[:16]}" for task_id in IDS]

    async def until(met: Any) -> None:
        async with asyncio.timeout(60):
            while not met():
                await asyncio.sleep(0.05)

    async def work() -> None:
        async with Bus(system.settings, "one") as one, Bus(system.settings, "two") as two:
            assert await oldest(one) == ""  # the queue does not exist yet
            await one.ensure(QUEUE)
            assert await oldest(one) == ""
            for task_id in IDS:
                await (await one.send(task_subject(QUEUE, task_id), b"a task"))
            assert await oldest(two) == IDS[0]
            watching = [asyncio.create_task(watch(bus, jobs)) for bus in (one, two)]
            await until(lambda: names[0] in api.jobs)
            puller = await one.js.pull_subscribe_bind(CONSUMER, stream_of(QUEUE))
            (message,) = await puller.fetch(1)
            assert await oldest(two) == IDS[0]  # taken by a worker, and not done
            await message.ack_sync()
            await until(lambda: names[1] in api.jobs)
            for task in watching:
                task.cancel()

    asyncio.run(work())
    assert list(api.jobs) == names
    made = api.jobs[names[0]]
    assert made["metadata"]["annotations"] == {TASK: IDS[0]} and made["metadata"]["labels"] == {"a": "b"}
    assert made["spec"] == TEMPLATE["spec"]


def test_a_job_that_ended_before_its_task_is_replaced_after_a_delay_and_a_running_one_is_kept(api: Api, jobs: Jobs) -> None:
    name = f"art-joint-{IDS[0][:16]}"

    async def work() -> None:
        await jobs.ensure(IDS[0])
        first = api.jobs[name]["metadata"]["uid"]
        await jobs.ensure(IDS[0])
        api.end(name, "Failed", AGAIN / 2)
        await jobs.ensure(IDS[0])
        assert api.jobs[name]["metadata"]["uid"] == first
        api.end(name, "Failed", 2 * AGAIN)
        await jobs.ensure(IDS[0])  # takes it away
        assert not api.jobs
        await jobs.ensure(IDS[0])
        assert api.jobs[name]["metadata"]["uid"] != first
        api.end(name, "Complete", 2 * AGAIN)
        await jobs.ensure(IDS[0])
        assert not api.jobs

    asyncio.run(work())
    assert {word.partition(" ")[0] for word in api.asked} == {"GET", "POST", "DELETE"}  # what the account may do


def test_a_refusal_of_kubernetes_is_reported(api: Api, jobs: Jobs) -> None:
    api.forbidden = True
    with pytest.raises(Unavailable, match="403 .*jobs.batch is forbidden"):
        asyncio.run(jobs.ensure(IDS[0]))


def test_kubernetes_that_does_not_answer_is_reported(api: Api, jobs: Jobs) -> None:
    api.shutdown()
    api.server_close()
    with pytest.raises(Unavailable, match="does not answer"):
        asyncio.run(jobs.ensure(IDS[0]))


@pytest.mark.parametrize("text", ["", "kind: Job", "kind: Pod\nmetadata: {name: a, namespace: b}", "{", "- 1"])
def test_a_template_that_is_no_job_is_refused(api: Api, tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        Jobs(tmp_path / "job.yaml")
    assert refused.value.field == "joint_job"


def test_without_a_configuration_of_kubernetes_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(TEMPLATE))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for variable in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InvalidInput, match="Kubernetes is not configured"):
        Jobs(tmp_path / "job.yaml")
