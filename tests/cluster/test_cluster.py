"""The chart on a real cluster: `pytest -m cluster tests/cluster`, with kind and `make images`, or --kube-context."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from importlib.metadata import version

import pytest

from sfumato.registry.client import RegistryClient
from sfumato.runtime.settings import ClientSettings
from tests.cluster.clusters import LABEL, Release, ended, run_of, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(7200)]
IMAGE = f"sfumato/orchestrator:{version('sfumato')}"


def test_an_iteration_runs_from_inside(release: Release) -> None:
    release.helm("test", "sfumato", "--timeout", "30m")


def test_a_run_from_outside_is_promoted_and_served(release: Release) -> None:
    with release.trial("outside") as trial:
        run_of(trial)
        ended(trial)
    token = release.secret("sfumato-auth", "grpc-token")
    settings = ClientSettings.model_validate({"token": token})
    with release.forwarded("registry", 7105) as address, RegistryClient(address, settings) as registry:
        registry.set_alias("production", registry.list(limit=1).versions[0].id, expected=registry.aliases().get("production", ""))
    release.kubectl("rollout", "status", "deployment/sfumato-inference", "--timeout=15m")
    with release.forwarded("inference", 3000) as address:
        wish = json.dumps({"prompt": "a lake by night", "size": "64x64"}).encode()
        asking = urllib.request.Request(f"http://{address}/v1/images/generations", wish, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asking) as answer:
            assert base64.b64decode(json.load(answer)["data"][0]["b64_json"]).startswith(b"\x89PNG")


def _killing(release: Release, stop: threading.Event) -> None:
    """Kill a pod of one component after the other, without any grace."""
    while True:
        for component in ("generator", "orchestrator", "nats", "trainer"):
            release.kubectl("delete", "pod", "--selector", f"{LABEL}={component}", "--grace-period=0", "--force", "--wait=false")
            if stop.wait(20.0):
                return


def test_pods_that_are_killed_change_nothing_of_what_comes_out(release: Release, another: Release) -> None:
    with release.trial("undisturbed") as trial:
        undisturbed = run_of(trial)
        ended(trial)
    stop = threading.Event()
    killer = threading.Thread(target=_killing, args=(another, stop))
    # The trial's own connection goes through a pod that is killed, too: the run is asked for again, and is the same run.
    with another.trial("undisturbed") as trial:
        disturbed = run_of(trial)
        killer.start()
        time.sleep(90.0)
        stop.set()
        killer.join()
    with another.trial("undisturbed") as trial:
        assert run_of(trial) == disturbed == undisturbed
        ended(trial)
    assert another.made(disturbed) == release.made(undisturbed)


def test_an_upgrade_in_the_middle_of_a_run_loses_nothing(release: Release, another: Release) -> None:
    with release.trial("upgraded") as trial:
        undisturbed = run_of(trial)
        ended(trial)
    with another.trial("upgraded") as trial:
        upgraded = run_of(trial)
        another.install("upgrade", "--set", "observability.logLevel=DEBUG")
    with another.trial("upgraded") as trial:
        assert run_of(trial) == upgraded
        ended(trial)
    assert another.made(upgraded) == release.made(undisturbed)


def test_a_joint_training_is_done_by_the_pods_of_a_job_that_the_orchestrator_starts(release: Release, another: Release) -> None:
    with release.trial("joint", COMPARE="joint") as trial:  # by a trainer
        alone = run_of(trial)
        ended(trial)
    another.install("upgrade", "--set", "trainer.joint.pods=2")
    with another.trial("joint", COMPARE="joint") as trial:
        assert run_of(trial) == alone
        wait_until(lambda: another.names("job", f"{LABEL}=joint"), "the orchestrator starts no Job")
        (job,) = another.names("job", f"{LABEL}=joint")
        ended(trial)
    another.kubectl("wait", job, "--for=condition=complete", "--timeout=5m")
    found = json.loads(another.kubectl("get", job, "--output", "json"))
    assert found["spec"]["completionMode"] == "Indexed" and found["status"]["succeeded"] == 2
    assert another.made(alone, "report.json") == release.made(alone, "report.json")
    asked = ("create jobs", "create pods", "get secrets", "list jobs", "patch jobs")
    assert [words for words in asked if another.may("sfumato-orchestrator", *words.split())] == ["create jobs"]


def test_policies_let_through_what_they_should_and_nothing_else(release: Release) -> None:
    assert release.reaches("generator", "nats", 4222) and release.reaches("orchestrator", "registry", 7105)
    for source, target, port in (("generator", "registry", 7105), ("scoring", "orchestrator", 7106), ("registry", "nats", 4222)):
        assert not release.reaches(source, target, port), f"{source} reaches {target}"
    for target, port in (("nats", 4222), ("registry", 7105), ("inference", 3000)):
        assert not release.stranger_reaches(target, port, IMAGE), f"a stranger reaches {target}"


def test_uninstalling_leaves_the_volumes_and_a_new_installation_finds_them(another: Release) -> None:
    with another.trial("kept") as trial:
        kept = run_of(trial)
        ended(trial)
    another.helm("uninstall", "sfumato", "--wait")
    claims = {claim.partition("/")[2] for claim in another.names("persistentvolumeclaim")}
    assert {"sfumato-artifacts", "sfumato-registry", "data-sfumato-nats-0"} <= claims
    wait_until(lambda: not another.names("pod"), "pods stay")
    another.install("install", "--take-ownership")
    with another.trial("kept") as trial:  # all of it is there already
        assert run_of(trial) == kept
        ended(trial)
