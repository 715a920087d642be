"""Kubernetes' side of the wire, as far as helm, kubectl and the chart's own programs ask: discovery, and objects that are read, patched
and deleted. What it cannot know of (admission, controllers) is in `tests/cluster`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kubernetes_api import ApiServer, served

Object = dict[str, Any]
KINDS = {
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Secret": ("/api/v1", "secrets"),
}
RESOURCE = {"namespaced": True, "verbs": ["get", "list", "patch", "delete"]}


class Api(ApiServer):
    """An API server with the objects that a test gives it. ``asked`` are the changes, as METHOD name."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.objects: dict[tuple[str, str], Object] = {}
        self.asked: list[str] = []
        self.refusal = ""
        """A message with which patches are refused."""
        self.groups: tuple[str, ...] = ("apps/v1",)

    def add(self, found: Object) -> None:
        """An object of the cluster."""
        self.objects[found["kind"], found["metadata"]["name"]] = found

    def answer(self, method: str, address: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            path, _, query = address.partition("?")
            if path in (known := self._discovery()):
                return 200, known[path]
            for kind, (root, plural) in KINDS.items():
                base = f"{root}/namespaces/{self.namespace}/{plural}"
                if path == base:
                    items = [found for (each, _), found in self.objects.items() if each == kind]
                    return 200, {
                        "apiVersion": items[0]["apiVersion"] if items else "v1",
                        "kind": f"{kind}List",
                        "metadata": {},
                        "items": items,
                    }
                if path.startswith(f"{base}/"):
                    return self._object(method, (kind, path.removeprefix(f"{base}/")), query, body)
            return _status(404, "NotFound", f"{path} is not found")

    def _object(self, method: str, key: tuple[str, str], query: str, body: Any) -> tuple[int, Any]:
        if key not in self.objects:
            return _status(404, "NotFound", f"{key[1]} is not found")
        if method == "PATCH":
            self.asked.append(f"PATCH {key[1]}")
            if self.refusal:
                return _status(403, "Forbidden", self.refusal)
            self.objects[key] = _merged(self.objects[key], body)
        if method == "DELETE":
            policy = (body or {}).get("propagationPolicy") or query
            self.asked.append(f"DELETE {key[1]} {policy}")
            return 200, self.objects.pop(key)
        return 200, self.objects[key]

    def _discovery(self) -> dict[str, Object]:
        groups = []
        for version in self.groups:
            group = {"groupVersion": version, "version": version.rpartition("/")[2]}
            groups.append({"name": version.partition("/")[0], "versions": [group], "preferredVersion": group})
        roots = ("/api/v1", *(f"/apis/{version}" for version in self.groups))
        lists = {root: {"kind": "APIResourceList", "groupVersion": _version(root), "resources": []} for root in roots}
        for kind, (root, plural) in KINDS.items():
            lists[root]["resources"].append({"name": plural, "singularName": "", "kind": kind, **RESOURCE})
        return {
            "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "groups": groups},
            **lists,
        }


@contextmanager
def serving(namespace: str, folder: Path) -> Iterator[tuple[Api, Path]]:
    """An API server, and the kubeconfig that leads to it."""
    server = Api(namespace)
    with served(server, folder) as kubeconfig:
        yield server, kubeconfig


def _version(root: str) -> str:
    return root.removeprefix("/apis/").removeprefix("/api/")


def _status(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}


def _merged(old: Any, new: Any) -> Any:
    """A merge patch (RFC 7396) applied."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    merged = {key: _merged(old.get(key), value) if key in new else old[key] for key, value in {**old, **new}.items()}
    return {key: value for key, value in merged.items() if value is not None}
