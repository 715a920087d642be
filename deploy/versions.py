"""The versions of the chart: ``python -m deploy.versions`` (`make chart`) gives a changed chart a new version and records it.

The record (`tests/deploy/versions/`) needs no history of git: for each version the digest of the chart, and, where these differ from the
version before, its values, presets, schema and the fields of its objects that Kubernetes does not let an upgrade change. A test compares
the chart with the last entry, and upgrades from every entry.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.manifests import CHART, PRESETS, ROOT, rendered

RECORD = ROOT / "tests" / "deploy" / "versions"
FIELDS_THAT_CHANGE = {
    *("replicas", "ordinals", "template", "updateStrategy", "minReadySeconds", "revisionHistoryLimit"),
    "persistentVolumeClaimRetentionPolicy",
}
"""The fields of a StatefulSet's spec that Kubernetes lets an update change."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """A version of the chart. ``folder`` is the folder of the record with its values."""

    version: str
    digest: str
    folder: str

    @property
    def values(self) -> Path:
        """The folder with its values."""
        return RECORD / self.folder


def recorded(folder: Path = RECORD) -> list[Version]:
    """Every version of the chart so far, the oldest first."""
    return [Version(**each) for each in yaml.safe_load((folder / "record.yaml").read_text())]


def current(chart: Path = CHART) -> str:
    """The version that the chart has."""
    return yaml.safe_load((chart / "Chart.yaml").read_text())["version"]


def digest(chart: Path = CHART) -> str:
    """SHA-256 over the names and the content of all files of the chart; what Python caches beside them is not of it."""
    total = hashlib.sha256()
    for path in sorted(path for path in chart.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(chart).as_posix()} {content}\n".encode())
    return total.hexdigest()


def immutable(objects: Iterable[Object]) -> dict[str, Any]:
    """What an upgrade cannot change of each object, by ``Kind/name``. Hooks are deleted before they are created, and may change."""
    fields: dict[str, Any] = {}
    for found in objects:
        metadata, spec = found["metadata"], found.get("spec", {})
        if "helm.sh/hook" in metadata.get("annotations", {}):
            continue
        kept = {
            "StatefulSet": lambda spec=spec: {name: value for name, value in spec.items() if name not in FIELDS_THAT_CHANGE},
            "Deployment": lambda spec=spec: spec["selector"],
            "PersistentVolumeClaim": lambda spec=spec: {name: value for name, value in spec.items() if name != "resources"},
            "Service": lambda spec=spec: {"headless": spec.get("clusterIP") == "None"},
            "Job": lambda spec=spec: spec["template"],
            "RoleBinding": lambda found=found: found["roleRef"],
            "Secret": lambda found=found: found["type"],
        }.get(found["kind"])
        if kept is not None:
            fields[f"{found['kind']}/{metadata['name']}"] = kept()
    return fields


def files(chart: Path = CHART) -> dict[str, str]:
    """What the record holds of a chart, by the file's name."""
    schema = json.loads((chart / "values.schema.json").read_text())
    held = {path.name: path.read_text() for path in sorted(chart.glob("values*.yaml"))}
    held["values.schema.json"] = json.dumps(schema, separators=(",", ":")) + "\n"
    # All of it without and with joint trainings, which are a Job and its objects more; Jobs by digest.
    fields = {preset or "default": immutable(rendered(preset, chart=chart)) for preset in ("", *PRESETS)}
    for objects in fields.values():
        for name, value in objects.items():
            if name.startswith("Job/"):
                objects[name] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    held["immutable.yaml"] = yaml.safe_dump(fields, sort_keys=True, width=140)
    return held


def record(chart: Path = CHART, folder: Path = RECORD, name: str = "") -> Version | None:
    """Record the chart if it changed since its last entry, under a new version if it still has an old one; None if it did not change."""
    entries = recorded(folder) if (folder / "record.yaml").is_file() else []
    if entries and entries[-1].digest == digest(chart):
        return None
    if current(chart) in {entry.version for entry in entries} and not name:
        _raise(chart)
    held = files(chart)
    version = name or current(chart)
    place = entries[-1].folder if entries else ""
    if not place or held != {path.name: path.read_text() for path in (folder / place).iterdir()}:
        place = version
        (folder / place).mkdir(parents=True)
        for file, text in held.items():
            (folder / place / file).write_text(text)
    entries.append(Version(version, digest(chart), place))
    (folder / "record.yaml").write_text(yaml.safe_dump([asdict(entry) for entry in entries], sort_keys=False, width=140))
    return entries[-1]


def _raise(chart: Path) -> None:
    """Raise the last number of the chart's version."""
    path = chart / "Chart.yaml"
    head, _, last = current(chart).rpartition(".")
    path.write_text(re.sub(r"(?m)^version: .*$", f"version: {head}.{int(last) + 1}", path.read_text()))


if __name__ == "__main__":
    new = record()
    print(f"The chart is {new.version} now." if new else "The chart has not changed since its last version.")
