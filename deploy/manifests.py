"""Plain manifests rendered from the chart, for use without Helm: ``python -m deploy.manifests`` rewrites `deploy/k8s/`.

`base` is the chart with its default values, one file per component; an overlay is a preset: additional objects, and JSON patches where
it differs. Helm hooks are omitted (the registry migrates its database when it starts); `deploy/k8s/secrets.sh` creates the secrets. A
test compares the result with the chart.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.binaries import HELM, run

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "sfumato"
TARGET = ROOT / "deploy" / "k8s"
PRESETS = ("vista-cpu", "single-gpu", "flux1-dev")
NAMESPACE = "sfumato"
GIVEN = ("--set", "secrets.auth=sfumato-auth", "--set", "secrets.bus=sfumato-bus")

Object = dict[str, Any]
Key = tuple[str, str]


def rendered(preset: str = "", *words: str, chart: Path = CHART) -> list[Object]:
    """All objects that the chart renders for a preset, including hooks."""
    values = ("--values", str(chart / f"values-{preset}.yaml")) if preset else ()
    text = run(HELM, "template", "sfumato", str(chart), "--namespace", NAMESPACE, *values, *words)
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]


def plain(objects: list[Object]) -> dict[Key, Object]:
    """The objects without Helm's parts: hooks, annotations and label."""
    kept = {}
    for found in objects:
        metadata = found["metadata"]
        annotations = metadata.get("annotations", {})
        if "helm.sh/hook" in annotations:
            continue
        annotations = {name: value for name, value in annotations.items() if not name.startswith("helm.sh/")}
        metadata.pop("annotations", None)
        if annotations:
            metadata["annotations"] = annotations
        for labels in (metadata["labels"], found.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})):
            labels.pop("app.kubernetes.io/managed-by", None)
        metadata["namespace"] = NAMESPACE
        kept[found["kind"], metadata["name"]] = found
    return kept


def difference(old: Any, new: Any, path: str = "") -> Iterator[Object]:
    """The JSON patch (RFC 6902) from ``old`` to ``new``; lists of different length are replaced as a whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            where = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            if name not in new:
                yield {"op": "remove", "path": where}
            elif name not in old:
                yield {"op": "add", "path": where, "value": new[name]}
            else:
                yield from difference(old[name], new[name], where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from difference(*pair, f"{path}/{index}")
    elif old != new:
        yield {"op": "replace", "path": path, "value": new}


def write(target: Path = TARGET) -> None:
    """Write the base and every overlay into a folder; other files stay."""
    base = plain(rendered("", *GIVEN))
    _write_base(target / "base", base)
    for preset in PRESETS:
        _write_overlay(target / "overlays" / preset, base, plain(rendered(preset, *GIVEN)))


def _write_base(folder: Path, objects: dict[Key, Object]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files: dict[str, list[Object]] = defaultdict(list)
    for found in objects.values():
        kind = found["kind"]
        component = "network" if kind == "NetworkPolicy" else found["metadata"]["labels"]["app.kubernetes.io/component"]
        files[f"{component}.yaml"].append(found)
    for name, found in files.items():
        _dump(folder / name, *found)
    _dump(folder / "kustomization.yaml", _kustomization(sorted(files)))


def _write_overlay(folder: Path, base: dict[Key, Object], wanted: dict[Key, Object]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    more = [found for key, found in wanted.items() if key not in base]
    kustomization = _kustomization(["../../base", *(["more.yaml"] if more else [])])
    if more:
        _dump(folder / "more.yaml", *more)
    patches: list[Object] = []
    for key, found in base.items():
        kind, name = key
        if key not in wanted:
            gone = {"apiVersion": found["apiVersion"], "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "$patch": "delete"}
            patches.append({"patch": _text(gone)})
        elif steps := sorted(difference(found, wanted[key]), key=lambda step: step["path"]):
            patches.append({"target": {"kind": kind, "name": f"^{name}$"}, "patch": _text(steps)})
    _dump(folder / "kustomization.yaml", kustomization | ({"patches": patches} if patches else {}))


def _kustomization(resources: list[str]) -> Object:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": NAMESPACE, "resources": resources}


class _Blocks(yaml.CSafeDumper):
    """Writes texts of several lines as blocks."""


def _block(dumper: _Blocks, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _block)
_Blocks.ignore_aliases = lambda self, data: True  # pyright: ignore[reportAttributeAccessIssue] (no anchors: kubectl's readers differ)


def _text(value: Any) -> str:
    return yaml.dump(value, Dumper=_Blocks, sort_keys=False, width=140)


def _dump(path: Path, *documents: Any) -> None:
    head = "# Written by `make manifests` out of helm/sfumato: change the chart.\n"
    path.write_text(head + "---\n".join(_text(document) for document in documents), encoding="utf-8")


if __name__ == "__main__":
    write()
