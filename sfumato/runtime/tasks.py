"""The task envelope: a fixed micro-batch of work whose id is the hash of everything its result depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore

log = logging.getLogger(__name__)

Json: TypeAlias = Any

# Increased when the meaning of tasks changes, so that results of older code are not reused.
REVISION = 1


class Task(BaseModel):
    """One micro-batch for one service. ``kind`` is ``service.verb``; artifacts are named by their SHA-256.

    ``items`` has one entry per sample, ``params`` what they share, ``model`` the version of the weights that are used.
    The reference by which these weights are found (``model_reference``, see `sfumato.runtime.models.references`) and the stage's name
    change neither the result nor the id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    kind: str
    items: tuple[Json, ...]
    params: dict[str, Json]
    model: str
    model_reference: str

    @property
    def service(self) -> str:
        """The service that does it."""
        return self.kind.split(".", 1)[0]

    @cached_property
    def id(self) -> str:
        """Content address: SHA-256 over kind, items (seeds are in them), parameters and model version."""
        content = {"revision": REVISION, "kind": self.kind, "items": self.items, "params": self.params, "model": self.model}
        return hashlib.sha256(canonical(content)).hexdigest()


class Manifest(BaseModel):
    """The record of a finished task: a task is done if its manifest is in the store. It holds all that is needed to do the task again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    kind: str
    items: tuple[Json, ...]
    params: dict[str, Json]
    model: str
    # One JSON value per item, or whatever the kind of task returns.
    values: Json
    # Name of an output file -> SHA-256 of its bytes in the store.
    files: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Output:
    """What a handler returns: JSON values, and files by name (``.safetensors``, ``.png``)."""

    values: Json
    files: Mapping[str, bytes] = field(default_factory=dict)


Handler: TypeAlias = Callable[[Task, ArtifactStore], Output]


def canonical(value: Json) -> bytes:
    """Canonical JSON: sorted keys, no spaces. Raises ValueError on numbers that are not finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def find(task: Task, artifacts: ArtifactStore) -> Manifest | None:
    """The manifest of ``task`` if it is done, by this or any other process; else None."""
    data = artifacts.read_key(manifest_key(task.id))
    return None if data is None else Manifest.model_validate_json(data)


def perform(task: Task, handler: Handler, artifacts: ArtifactStore, versions: Mapping[str, str]) -> Manifest:
    """Do ``task`` unless it is done. Outputs are stored before the manifest, so a killed worker leaves no partial result."""
    done = find(task, artifacts)
    if done is not None:
        return done
    log.debug("begun", extra={"kind": task.kind, "samples": len(task.items)})
    output = handler(task, artifacts)
    with telemetry.tracer.start_as_current_span("artifacts") as span:
        files = {name: artifacts.put(data) for name, data in output.files.items()}
        for name, digest in files.items():
            span.add_event(name, {"sha256": digest, "bytes": len(output.files[name])})
    manifest = Manifest(
        task_id=task.id,
        kind=task.kind,
        items=task.items,
        params=task.params,
        model=task.model,
        values=output.values,
        files=files,
        versions=dict(versions),
    )
    artifacts.write_key(manifest_key(task.id), manifest.model_dump_json(indent=1).encode() + b"\n")
    log.info("done", extra={"kind": task.kind, "samples": len(task.items)})
    return manifest


def manifest_key(task_id: str) -> str:
    """The name of a task's manifest in the store."""
    return f"manifests/{task_id[:2]}/{task_id}.json"
