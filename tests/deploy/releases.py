"""A release of the chart as Helm keeps it, and `helm upgrade` of it: Helm keeps the release in memory, and asks a cluster of the test's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from deploy import versions
from deploy.binaries import HELM, binary
from deploy.manifests import CHART
from tests.deploy.api import Api
from tests.deploy.charts import Object

NAMESPACE = "art"
REUSE, RESET = "--reuse-values", "--reset-then-reuse-values"
EARLIER = {entry.folder: entry for entry in versions.recorded()}
"""The versions whose values differ from those of the version before, the oldest first; the last is the chart as it is."""
FIRST = next(iter(EARLIER.values()))


def values_of(entry: versions.Version, preset: str = "") -> Any:
    """The default values of a version, or those of one of its presets."""
    path = entry.values / (f"values-{preset}.yaml" if preset else "values.yaml")
    return yaml.safe_load(path.read_text())


def fields_of(entry: versions.Version, preset: str = "") -> dict[str, Any]:
    """What an upgrade cannot change of the objects of a version, by ``Kind/name``."""
    return yaml.safe_load((entry.values / "immutable.yaml").read_text())[preset or "default"]


def bus_of(entry: versions.Version, preset: str = "") -> Object:
    """The StatefulSet of NATS that a release of a version has."""
    labels = {"app.kubernetes.io/instance": "sfumato", "app.kubernetes.io/component": "nats"}
    metadata = {"name": "sfumato-nats", "namespace": NAMESPACE, "labels": labels}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "nats", "image": "nats:2.11.4-alpine"}]}}
    spec = fields_of(entry, preset)["StatefulSet/sfumato-nats"] | {"template": template}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}


def claim(name: str, size: str, modes: tuple[str, ...] = ("ReadWriteOnce",), storage_class: str = "standard") -> Object:
    """A claim in the cluster, to which Kubernetes gave its default class."""
    spec = {"accessModes": list(modes), "storageClassName": storage_class, "resources": {"requests": {"storage": size}}}
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


class Upgrade:
    """`helm upgrade` of a release that has the defaults of a version and the values of its user.

    With ``api`` it is the cluster that the chart looks at.
    """

    def __init__(self, folder: Path, kubeconfig: Path, api: Api, entry: versions.Version = FIRST, preset: str = "") -> None:
        self.api, self.kubeconfig = api, kubeconfig
        chart = {"metadata": {"apiVersion": "v2", "name": "sfumato", "version": "0.1.0"}, "values": values_of(entry)}
        times = {"first_deployed": "2026-11-21T00:00:00Z", "last_deployed": "2026-11-21T00:00:00Z"}
        release = {"name": "sfumato", "namespace": NAMESPACE, "version": 1, "info": {"status": "deployed", **times}, "chart": chart}
        path = folder / "releases.json"
        path.write_text(json.dumps([release | {"config": values_of(entry, preset) if preset else {}, "manifest": ""}]))
        self._environment = os.environ | {"HELM_DRIVER": "memory", "HELM_MEMORY_DRIVER_DATA": str(path), "KUBECONFIG": str(kubeconfig)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [binary(HELM), "upgrade", "sfumato", str(CHART), "--namespace", NAMESPACE, "--dry-run=server", "--output", "json", *words]
        return subprocess.run(line, env=self._environment, capture_output=True, text=True)

    def objects(self, *words: str) -> tuple[Object, ...]:
        """All that the upgrade would apply, hooks too."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        assert "<no value>" not in done.stdout and "<nil>" not in done.stdout
        release = json.loads(done.stdout)
        parts = [release["manifest"], *(hook["manifest"] for hook in release["hooks"])]
        return tuple(found for part in parts for found in yaml.load_all(part, Loader=yaml.CSafeLoader) if found)

    def refused(self, *words: str) -> str:
        """The reason for which the upgrade ends before it changes anything."""
        done = self.run(*words)
        assert done.returncode != 0 and "nil pointer" not in done.stderr
        return done.stderr
