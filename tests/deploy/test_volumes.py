"""Volumes and other fields that Kubernetes does not change: an upgrade enlarges what can grow, and refuses the rest in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deploy.manifests import CHART
from tests.deploy.charts import Object, component, named, of, rendered, selected, templates
from tests.deploy.releases import FIRST, RESET, REUSE, Upgrade, bus_of, claim

SCRIPT = CHART / "files" / "resize.py"
GROWN = ("--set", "nats.volume.size=40Gi")


@pytest.fixture
def installed(upgrade: Upgrade) -> Upgrade:
    """The release with its StatefulSet, three claims, and one of a server that was scaled away."""
    upgrade.api.add(bus_of(FIRST))
    for index in (0, 1, 2, 4):
        upgrade.api.add(claim(f"data-sfumato-nats-{index}", "20Gi"))
    return upgrade


def _hooks(objects: tuple[Object, ...]) -> list[Object]:
    resize = [found for found in objects if found["metadata"]["name"] == "sfumato-resize"]
    return sorted(resize, key=lambda found: int(found["metadata"]["annotations"].get("helm.sh/hook-weight", "0")))


@pytest.mark.parametrize("flag", [REUSE, RESET])
def test_a_larger_volume_of_the_bus_is_a_hook_before_the_upgrade(flag: str, installed: Upgrade) -> None:
    objects = installed.objects(flag, *GROWN)
    hooks = _hooks(objects)
    assert [found["kind"] for found in hooks][0] == "NetworkPolicy" and hooks[-1]["kind"] == "Job"  # what it needs is there before it
    assert {found["kind"] for found in hooks} == {"NetworkPolicy", "ServiceAccount", "ConfigMap", "Role", "RoleBinding", "Job"}
    for found in hooks:
        annotations = found["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-upgrade"
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"  # its rights end with it
    assert int(hooks[-1]["metadata"]["annotations"]["helm.sh/hook-weight"]) > 0  # after the migration, which may fail
    template = hooks[-1]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told == {"NAMESPACE": "art", "STATEFULSET": "sfumato-nats", "SIZE": "40Gi", "HOME": "/tmp"}
    assert template["spec"]["automountServiceAccountToken"] is True
    (policy,) = [found for found in hooks if found["kind"] == "NetworkPolicy"]
    assert selected(policy["spec"]["podSelector"]["matchLabels"], template)
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {443, 6443}
    (claims,) = named(objects, "StatefulSet", "sfumato-nats")["spec"]["volumeClaimTemplates"]
    assert claims["spec"]["resources"]["requests"]["storage"] == "40Gi"


@pytest.mark.parametrize("size", ["20Gi", "20480Mi", "21474836480"])
def test_the_same_size_in_other_words_is_no_change(size: str, installed: Upgrade) -> None:
    assert _hooks(installed.objects(REUSE, "--set-string", f"nats.volume.size={size}")) == []


def test_the_first_installation_has_nothing_to_enlarge() -> None:
    assert _hooks(rendered("", *GROWN)) == []


REFUSED = {
    ("nats.volume.size=10Gi",): "nats.volume.size: the claims of the StatefulSet sfumato-nats have 20Gi",
    ("nats.volume.storageClass=fast",): 'nats.volume.storageClass: the claims of the StatefulSet sfumato-nats have the class ""',
    ("global.defaultStorageClass=fast",): "cannot change it",
    ("artifacts.volume.storageClass=fast",): 'artifacts.volume.storageClass: the claim sfumato-artifacts has the class "standard"',
    ("artifacts.volume.accessModes={ReadWriteOnce}", "nats.replicas=1"): "artifacts.volume.accessModes: the claim sfumato-artifacts has",
    ("registry.database.volume.size=1Gi",): "registry.database.volume.size: the claim sfumato-registry has 2Gi",
    ("fullnameOverride=studio",): "fullnameOverride, nameOverride: this release has the names sfumato-...",
    ("nameOverride=sfumat",): "fullnameOverride, nameOverride: this release has the names sfumato-...",
}


@pytest.mark.parametrize("settings", REFUSED, ids=" ".join)
def test_what_cannot_change_is_refused_before_anything_is_changed(settings: tuple[str, ...], installed: Upgrade) -> None:
    installed.api.add(claim("sfumato-artifacts", "50Gi", ("ReadWriteMany",)))
    installed.api.add(claim("sfumato-registry", "2Gi"))
    assert REFUSED[settings] in installed.refused(REUSE, *[word for setting in settings for word in ("--set", setting)])


def test_other_claims_grow_in_place_and_keep_the_class_that_the_cluster_gave_them(installed: Upgrade) -> None:
    installed.api.add(claim("sfumato-artifacts", "50Gi", ("ReadWriteMany",)))
    objects = installed.objects(REUSE, "--set", "artifacts.volume.size=200Gi")
    spec = named(objects, "PersistentVolumeClaim", "sfumato-artifacts")["spec"]
    assert spec["resources"]["requests"]["storage"] == "200Gi" and spec["storageClassName"] == "standard"
    assert _hooks(objects) == []


def test_another_chart_s_nats_of_the_same_release_is_not_taken_for_this_one_s(upgrade: Upgrade) -> None:
    other = bus_of(FIRST)
    other["metadata"]["name"], other["spec"]["serviceName"] = "sfumato-queue", "sfumato-queue-headless"
    upgrade.api.add(other)
    assert named(upgrade.objects(REUSE), "StatefulSet", "sfumato-nats")


def _resized(upgrade: Upgrade) -> subprocess.CompletedProcess[str]:
    """The Job's program, on this cluster."""
    given = {"NAMESPACE": "art", "STATEFULSET": "sfumato-nats", "SIZE": "40Gi", "KUBECONFIG": str(upgrade.kubeconfig)}
    return subprocess.run([sys.executable, str(SCRIPT)], env=os.environ | given, capture_output=True, text=True)


def test_the_hook_enlarges_all_claims_and_deletes_the_set_without_its_pods(installed: Upgrade) -> None:
    installed.api.add(claim("data-sfumato-nats-1", "64Gi"))  # a larger one stays
    installed.api.add(claim("data-other-nats-0", "1Gi"))
    done = _resized(installed)
    assert done.returncode == 0, done.stderr
    sizes = {name: found["spec"]["resources"]["requests"]["storage"] for (kind, name), found in installed.api.objects.items()}
    assert sizes == {f"data-sfumato-nats-{index}": size for index, size in ((0, "40Gi"), (1, "64Gi"), (2, "40Gi"), (4, "40Gi"))} | {
        "data-other-nats-0": "1Gi"
    }
    last = installed.api.asked.pop()
    assert last.startswith("DELETE sfumato-nats") and "Orphan" in last
    assert installed.api.asked == [f"PATCH data-sfumato-nats-{index}" for index in (0, 2, 4)]
    assert _resized(installed).returncode == 0  # again: the second half of an upgrade that was cut off


def test_a_class_that_cannot_grow_ends_the_hook_before_the_set_is_deleted(installed: Upgrade) -> None:
    installed.api.refusal = "only dynamically provisioned pvc can be resized and the storageclass must support resize"
    done = _resized(installed)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "must support resize" in done.stderr and "allowVolumeExpansion" in done.stderr
    assert not [asked for asked in installed.api.asked if asked.startswith("DELETE")]


def test_the_hook_may_do_what_it_does_and_no_more(installed: Upgrade) -> None:
    objects = installed.objects(REUSE, *GROWN)
    (role,) = [found for found in of(objects, "Role") if found["metadata"]["name"] == "sfumato-resize"]
    claims = [f"data-sfumato-nats-{index}" for index in range(5)]
    assert role["rules"] == [
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": ["sfumato-nats"], "verbs": ["get", "delete"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "resourceNames": claims, "verbs": ["get", "patch"]},
    ]
    (binding,) = [found for found in of(objects, "RoleBinding") if found["metadata"]["name"] == "sfumato-resize"]
    (template,) = [template for _, template in templates(objects) if component(template) == "resize"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": template["spec"]["serviceAccountName"], "namespace": "art"}]


def test_jobs_that_are_no_hooks_are_named_by_all_that_is_in_them() -> None:
    names = set()
    for word in ("image.tag=v2", "jobs.fetch.nodeSelector.disk=large", "podLabels.team=art", "models.fetch={a/b}"):
        (job,) = [found for found in of(rendered("flux1-dev", "--set", word), "Job") if component(found["spec"]["template"]) == "fetch"]
        names.add(job["metadata"]["name"])
    assert len(names) == 4
    for job in of(rendered("flux1-dev"), "Job"):
        hook = job["metadata"].get("annotations", {})
        assert component(job["spec"]["template"]) == "fetch" or "before-hook-creation" in hook["helm.sh/hook-delete-policy"]
