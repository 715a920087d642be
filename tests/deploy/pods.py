"""Rendered pods as processes of this machine: their command, exactly their environment, and their files mounted.

Only what a machine cannot have is put in place of what is rendered: a mounted folder is a folder of the test's, a name of the cluster
is localhost, a port a free one.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.runtime.bus import nats_server
from sfumato.runtime.processes import free_ports
from tests.deploy.charts import Object, component, named, of, templates
from tests.unit.runtime.certificates import Certificates

ROOT = Path(__file__).parents[2]
PORTS = {name: number for number, name in enumerate(("generator", "grounding", "scoring", "trainer", "registry", "orchestrator"), 7101)}


class Pods:
    """A rendered release, below one folder. ``secrets`` are those that the chart does not make: their files by key."""

    def __init__(self, objects: tuple[Object, ...], folder: Path, secrets: Mapping[str, Mapping[str, bytes]]) -> None:
        self._objects, self._folder = objects, folder
        self._secrets = {found["metadata"]["name"]: _decoded(found["data"]) for found in of(objects, "Secret")} | dict(secrets)
        wanted = [4222, 6222, 8222, 3000, 8000, 29500, *PORTS.values(), *(port + 100 for port in PORTS.values())]
        self.ports = dict(zip(wanted, free_ports([0] * len(wanted)), strict=True))

    def mounted(self, name: str) -> Path:
        """The root of a pod's file system, made with what is mounted there."""
        template, container = self._pod(name)
        root = self._folder / name
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for claim in [claim["metadata"]["name"] for claim in self._claims(name)]:
            volumes[claim] = {"persistentVolumeClaim": {"claimName": f"{claim}-{name}"}}
        for mount in sorted(container["volumeMounts"], key=lambda mount: mount["mountPath"]):
            place, volume = root / mount["mountPath"].lstrip("/"), volumes[mount["name"]]
            place.parent.mkdir(parents=True, exist_ok=True)
            if "persistentVolumeClaim" in volume:
                shared = self._folder / "volumes" / volume["persistentVolumeClaim"]["claimName"]
                shared.mkdir(parents=True, exist_ok=True)
                if not place.is_symlink():
                    place.symlink_to(shared)
                continue
            place.mkdir(exist_ok=True)
            for file, data in self._files(volume).items():
                # As the kubelet does: links into a folder that is replaced as a whole.
                (place / "..data").mkdir(exist_ok=True)
                (place / "..data" / file).write_bytes(data)
                if not (place / file).is_symlink():
                    (place / file).symlink_to(Path("..data") / file)
        return root

    def environment(self, name: str) -> dict[str, str]:
        """A pod's environment and no more, but for what finds this checkout's code."""
        _, container = self._pod(name)
        given = {each["name"]: self.here(name, each["value"]) for each in container["env"] if "value" in each}
        return given | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def start(self, name: str, **downward: str) -> subprocess.Popen[str]:
        """Start a pod's command; its log comes over its error stream. ``downward`` is what Kubernetes says to a pod of itself."""
        _, container = self._pod(name)
        root = self.mounted(name)
        assert {each["name"] for each in container["env"] if "valueFrom" in each} == downward.keys()
        words = [*container["command"], *container.get("args", [])]
        line = [self.here(name, re.sub(r"\$\((\w+)\)", lambda found: downward[found[1]], word)) for word in words]
        program = sys.executable if line[0] == "python" else str(Path(sys.executable).with_name(line[0]))
        with (self._folder / f"{name}.log").open("a") as log:
            environment = self.environment(name) | downward
            return subprocess.Popen([program, *line[1:]], env=environment, cwd=root, stdout=log, stderr=log, text=True)

    def bus_config(self, peers: Sequence[Pods] = ()) -> Path:
        """The bus's configuration with its folders and ports as they are here, and those of the servers that it calls."""
        root = self.mounted("nats")
        config = root / "etc" / "nats" / "..data" / "nats.conf"
        text = config.read_text()
        for path in ("/data", "/run/tls/", "/run/nats/"):
            text = text.replace(f'"{path}', f'"{root}{path}')
        for port in (4222, 6222, 8222):
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{self.ports[port]}")
        for number, peer in enumerate(peers):
            text = re.sub(rf"sfumato-nats-{number}\.[\w.-]+\.svc:6222", f"localhost:{peer.ports[6222]}", text)
        config.write_text(text)
        return config.parents[1] / "nats.conf"

    def start_bus(self, number: int = 0, peers: Sequence[Pods] = ()) -> subprocess.Popen[str]:
        """Start the real nats-server on it, as one of its set."""
        line = [nats_server.binary(), "--config", str(self.bus_config(peers))]
        with (self._folder / "nats.log").open("a") as log:
            return subprocess.Popen(line, env={"POD_NAME": f"sfumato-nats-{number}"}, stdout=log, stderr=log, text=True)

    def here(self, name: str, words: str) -> str:
        """What is rendered, as it is called on this machine."""
        _, container = self._pod(name)
        words = re.sub(r"[a-z0-9.-]+\.svc:(\d+)", lambda found: f"localhost:{self.ports[int(found[1])]}", words)
        words = re.sub(r"=[a-z0-9.-]+\.svc$", "=127.0.0.1", words)
        words = re.sub(r"=(\d+)$", lambda found: f"={self.ports.get(int(found[1]), found[1])}", words)
        if words == "0.0.0.0":
            return "127.0.0.1"
        if words.isdecimal() and int(words) in self.ports:
            return str(self.ports[int(words)])
        words = re.sub(r"^0\.0\.0\.0:(\d+)$", lambda found: f"127.0.0.1:{self.ports[int(found[1])]}", words)
        for mount in sorted(container["volumeMounts"], key=lambda mount: -len(mount["mountPath"])):
            path = mount["mountPath"]
            if re.match(rf"^(sqlite:///)?{re.escape(path)}(/|$)", words):
                return words.replace(path, str(self._folder / name / path.lstrip("/")), 1)
        return words

    def log(self, name: str) -> str:
        """What a pod has said so far."""
        return (self._folder / f"{name}.log").read_text()

    def text(self, kind: str, name: str, key: str) -> str:
        """A file of a rendered object."""
        return named(self._objects, kind, name)["data"][key]

    def _pod(self, name: str) -> tuple[Any, Any]:
        (template,) = [template for _, template in templates(self._objects) if component(template) == name]
        (container,) = template["spec"]["containers"]
        return template, container

    def _claims(self, name: str) -> list[Object]:
        sets = [found for found in of(self._objects, "StatefulSet") if component(found["spec"]["template"]) == name]
        return [claim for found in sets for claim in found["spec"]["volumeClaimTemplates"]]

    def _files(self, volume: Object) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            if "configMap" in source:
                held = named(self._objects, "ConfigMap", source["configMap"]["name"])["data"]
                files |= {key: text.encode() for key, text in held.items()}
            if "secret" in source:
                held = self._secrets[source["secret"].get("name") or source["secret"]["secretName"]]
                items = source["secret"].get("items") or [{"key": key, "path": key} for key in held]
                files |= {item["path"]: held[item["key"]] for item in items}
        return files


def certified(objects: tuple[Object, ...], folder: Path) -> dict[str, dict[str, bytes]]:
    """The secrets that cert-manager would make: for every certificate that is asked for, one of the same authority."""
    certificates = Certificates(folder)
    pair = {"tls.crt": certificates.certificate("server"), "tls.key": certificates.key("server"), "ca.crt": certificates.authority}
    files = {name: path.read_bytes() for name, path in pair.items()}
    return {found["spec"]["secretName"]: files for found in of(objects, "Certificate")}


def _decoded(data: Mapping[str, str]) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in data.items()}
