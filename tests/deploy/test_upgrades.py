"""Upgrades from every earlier version of the chart: by `helm upgrade` itself, with the values that a release of that version has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from deploy import versions
from deploy.manifests import CHART, PRESETS
from tests.deploy.api import Api
from tests.deploy.charts import BUILT_IN, JOINT, Object, jobs, templates
from tests.deploy.releases import EARLIER, FIRST, RESET, REUSE, Upgrade, bus_of, fields_of, values_of

OPTIONS = {
    "joint trainings": JOINT,
    "ingress": ("--set", "inference.ingress.enabled=true", "--set", "orchestrator.ingress.enabled=true"),
    "routes": ("--set", "inference.httpRoute.enabled=true", "--set", "inference.httpRoute.parentRefs[0].name=gateway"),
    "cors": ("--set", "inference.cors={https://studio.example.org}"),
    "labels": ("--set", "commonLabels.team=art", "--set", "podLabels.team=art"),
    "registry": ("--set", "global.imageRegistry=registry.example.org"),
    "OpenShift": ("--set", "global.compatibility.openshift.adaptSecurityContext=force"),
    "service": ("--set", "inference.service.type=LoadBalancer"),
    "jobs": ("--set", "jobs.fetch.nodeSelector.disk=large", "--set", "serviceAccounts.create=false"),
}
"""Values that came after 0.1.0, each set without the others."""


def _distinct() -> Iterator[Any]:
    """Each set of values that a release may have: the defaults of a version under one of its presets."""
    seen = set()
    for entry in EARLIER.values():
        for preset in ("", *PRESETS):
            values = json.dumps([values_of(entry), values_of(entry, preset) if preset else {}])
            if values not in seen:
                seen.add(values)
                yield pytest.param(entry, preset, id=f"{entry.folder} {preset or 'defaults'}")


def _names(objects: tuple[Object, ...]) -> set[tuple[str, str]]:
    return {(found["kind"], found["metadata"]["name"].partition("-fetch-")[0]) for found in objects}


def _validate(objects: tuple[Object, ...]) -> None:
    kinds: dict[tuple[str, str], list[Object]] = {}
    for found in (*objects, *jobs(objects)):
        if found["apiVersion"].partition("/")[0] in BUILT_IN:
            kinds.setdefault((found["apiVersion"], found["kind"]), []).append(found)
    for (version, kind), items in kinds.items():
        kubernetes_validate.validate({"apiVersion": version, "kind": f"{kind}List", "items": items}, "1.34", strict=True)


@pytest.mark.parametrize(("entry", "preset"), list(_distinct()))
def test_the_values_of_every_earlier_version_are_enough(
    entry: versions.Version, preset: str, tmp_path: Path, api: tuple[Api, Path]
) -> None:
    api[0].add(bus_of(entry, preset))
    upgrade = Upgrade(tmp_path, api[1], api[0], entry, preset)
    reused, reset = upgrade.objects(REUSE), upgrade.objects(RESET)
    assert _names(reused) == _names(reset)
    assert ("Job", "sfumato-resize") not in _names(reused)
    if entry is FIRST:
        _validate(reused)
    for objects in (reused, reset):
        now = versions.immutable(objects)
        for name, fields in fields_of(entry, preset).items():
            if name in now and not name.startswith("Job/"):
                assert now[name] == fields, name


@pytest.mark.parametrize("option", OPTIONS)
def test_a_new_option_can_be_set_over_the_values_of_the_first_version(option: str, upgrade: Upgrade) -> None:
    objects = upgrade.objects(REUSE, *OPTIONS[option])
    _validate(objects)
    assert len(list(templates(objects))) >= 10


def _resolved(at: Object, root: Object) -> Object:
    if "$ref" not in at:
        return at
    return root["definitions"][at["$ref"].rpartition("/")[2]] | {key: value for key, value in at.items() if key != "$ref"}


def _narrowed(old: Any, new: Any, roots: tuple[Any, Any], path: str = "") -> Iterator[str]:
    """The places at which a schema refuses what an earlier one takes."""
    old, new = _resolved(old, roots[0]), _resolved(new, roots[1])
    listed = [({kind} if isinstance(kind, str) else set(kind or ())) for kind in (old.get("type"), new.get("type"))]
    if listed[1] and not listed[0] <= listed[1]:
        yield f"{path} type"
    if "enum" in new and not set(old.get("enum", ["anything"])) <= set(new["enum"]):
        yield f"{path} enum"
    for least in ("minimum", "minItems", "minLength", "minProperties"):
        if new.get(least, float("-inf")) > old.get(least, float("-inf")):
            yield f"{path} {least}"
    for most in ("maximum", "maxItems", "maxLength", "maxProperties"):
        if new.get(most, float("inf")) < old.get(most, float("inf")):
            yield f"{path} {most}"
    if new.get("pattern") not in (None, old.get("pattern")):
        yield f"{path} pattern"
    if not set(new.get("required", ())) <= set(old.get("required", ())):
        yield f"{path} required"
    for name, under in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            yield f"{path}/{name} is gone"
        else:
            yield from _narrowed(under, new["properties"][name], roots, f"{path}/{name}")
    for under in ("items", "additionalProperties", "propertyNames"):
        if isinstance(old.get(under), dict) and isinstance(new.get(under), dict):
            yield from _narrowed(old[under], new[under], roots, f"{path}/{under}")
        elif new.get(under) is False and old.get(under) is not False:
            yield f"{path} {under}"


@pytest.mark.parametrize("folder", EARLIER)
def test_every_value_that_an_earlier_schema_takes_is_taken(folder: str) -> None:
    old = json.loads((EARLIER[folder].values / "values.schema.json").read_text())
    new = json.loads((CHART / "values.schema.json").read_text())
    assert list(_narrowed(old, new, (old, new))) == []


def test_a_narrower_schema_is_seen() -> None:
    old = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"enum": ["x", "y"]}, "c": {"type": "string"}}}
    new = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": ["x"]}}, "additionalProperties": False}
    assert list(_narrowed(old, new, (old, new))) == ["/a minimum", "/b enum", "/c is gone", " additionalProperties"]


def test_no_time_to_leave_the_endpoints_is_no_sleep_as_the_first_versions_took_it(upgrade: Upgrade) -> None:
    for _, template in templates(upgrade.objects(REUSE, "--set", "drain.endpoints=0")):
        (container,) = template["spec"]["containers"]
        assert "sleep" not in container.get("lifecycle", {}).get("preStop", {})


@pytest.mark.parametrize("flag", [REUSE, RESET])
def test_a_field_removed_from_the_contexts_leaves_the_others(flag: str, upgrade: Upgrade) -> None:
    for _, template in templates(upgrade.objects(flag, "--set", "podSecurityContext.runAsUser=null")):
        context = template["spec"]["securityContext"]
        assert "runAsUser" not in context and context["runAsNonRoot"] is True and context["seccompProfile"]
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_global_value_that_the_chart_does_not_read_is_refused_by_name(upgrade: Upgrade) -> None:
    assert "global.nodeSelector: this chart does not read it" in upgrade.refused(REUSE, "--set", "global.nodeSelector.a=b")


def test_a_changed_chart_has_a_version_of_its_own() -> None:
    last = versions.recorded()[-1]
    told = f"helm/sfumato changed since its version {last.version} was recorded: run `make chart`, which raises and records it."
    assert (last.version, last.digest) == (versions.current(), versions.digest()), told
    numbers = [tuple(int(number) for number in entry.version.partition("-")[0].split(".")) for entry in versions.recorded()]
    assert numbers == sorted(numbers) and len({entry.version for entry in versions.recorded()}) == len(numbers)


def test_recording_raises_the_version_of_a_changed_chart_and_of_no_other(tmp_path: Path) -> None:
    chart, record = tmp_path / "chart", tmp_path / "record"
    shutil.copytree(CHART, chart)
    shutil.copytree(versions.RECORD, record)
    last = versions.recorded(record)[-1]
    (chart / "files" / "__pycache__").mkdir(exist_ok=True)
    (chart / "files" / "__pycache__" / "resize.pyc").touch()
    assert versions.record(chart, record) is None
    template = chart / "templates" / "NOTES.txt"
    template.write_text(template.read_text() + "\nMore.\n")
    new = versions.record(chart, record)
    assert new is not None and new.version == versions.current(chart) != last.version
    assert (new.folder, new.digest) == (last.folder, versions.digest(chart))  # its values are as they were
    (chart / "values.yaml").write_text((chart / "values.yaml").read_text().replace("cooldown: 300", "cooldown: 301"))
    (chart / "Chart.yaml").write_text((chart / "Chart.yaml").read_text().replace(f"version: {new.version}", "version: 9.0.0", 1))
    raised = versions.record(chart, record)
    assert raised is not None and raised.version == raised.folder == "9.0.0"
    assert "cooldown: 301" in (record / "9.0.0" / "values.yaml").read_text()
    assert versions.recorded(record)[-1] == raised and versions.record(chart, record) is None
