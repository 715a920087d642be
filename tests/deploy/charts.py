"""The chart as it is rendered, for tests: once for each preset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from deploy import manifests

Object = dict[str, Any]
ALL = ("", *manifests.PRESETS)
"""The chart's own values, and every preset."""
JOINT = ("--set", "trainer.joint.pods=2")
"""Joint trainings by two pods: with them the chart has a Job more, which the orchestrator makes."""
SETTINGS = (
    *("tls.enabled=true", "tls.certManager.enabled=true", "inference.keysSecret=keys", "autoscaling.kind=hpa"),
    *(f"observability.{part}.enabled=true" for part in ("serviceMonitor", "rules", "dashboard")),
)
EVERYTHING = tuple(word for setting in SETTINGS for word in ("--set", setting))
"""All that can be switched on beside a preset's own."""
BUILT_IN = {"v1", "apps", "batch", "autoscaling", "policy", "networking.k8s.io", "rbac.authorization.k8s.io"}
"""The groups that Kubernetes has itself and publishes the schemas of; all others are custom resources."""


@cache
def rendered(preset: str = "", *words: str) -> tuple[Object, ...]:
    return tuple(manifests.rendered(preset, *words))


def of(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def named(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    (found,) = [found for found in of(objects, kind) if found["metadata"]["name"] == name]
    return found


def jobs(objects: tuple[Object, ...]) -> list[Object]:
    """The Jobs that the orchestrator is to make, as their template stands in a ConfigMap."""
    found = [each["data"]["joint-job.yaml"] for each in of(objects, "ConfigMap") if "joint-job.yaml" in each["data"]]
    return [yaml.safe_load(text) for text in found]


def templates(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object]]:
    """Every pod's template, and what it is of."""
    for found in (*of(objects, "Deployment", "StatefulSet", "Job"), *jobs(objects)):
        yield f"{found['kind']} {found['metadata']['name']}", found["spec"]["template"]


def component(template: Object) -> str:
    return template["metadata"]["labels"]["app.kubernetes.io/component"]


def selected(selector: Object, template: Object) -> bool:
    return selector.items() <= template["metadata"]["labels"].items()
