"""A version of Vista with an adapter on every linear, registered with what it came of, and exported once for all tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.recipes.catalog import cards
from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.diffusion.loading import load_pipeline
from sfumato.export.card import Licence
from sfumato.export.folder import Exported, export_version
from sfumato.lora.adapter import Adapter
from sfumato.lora.fuse import Fuser
from sfumato.registry.bases import base_modules
from sfumato.registry.records import Base, Edge, Lineage, Node, WeightedAdapter, version_id
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import encode_adapter
from sfumato.runtime.models.versions import model_version
from sfumato.types import GenerateRequest, Image
from sfumato.vista import weights

ASKED = GenerateRequest("a red house and a tree by day", 11, 64, 64, 4)
WEIGHT = 0.8


def vista() -> Any:
    return load_pipeline(weights.locate("generator"))


def painted(pipeline: Any, request: GenerateRequest = ASKED) -> Image:
    family = FluxFamily(pipeline)
    return family.decode(family.paint([request]), request.width, request.height)[0]


def adapter(pipeline: Any) -> Adapter:
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for name, module in pipeline.transformer.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(FluxFamily.lora_targets, name):
            a = torch.randn(1 + len(factors) % 3, module.in_features, generator=generator)
            factors[name] = (a, 0.01 * torch.randn(module.out_features, len(a), generator=generator))
    return Adapter(factors)


@dataclass(frozen=True)
class Sample:
    """The exported folder, what is in it, and what it should paint."""

    registry: Registry
    folder: Path
    made: Exported
    whole: Adapter
    plain: Image
    wanted: Image


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    place = tmp_path_factory.mktemp("export")
    base_folder, pipeline = weights.locate("generator"), vista()
    base = Base(model_version(base_folder), "vista", base_modules(base_folder))
    own = adapter(pipeline)
    data = encode_adapter(own)
    parts = (WeightedAdapter(hashlib.sha256(data).hexdigest(), WEIGHT),)
    run = Node.about("run", id="artaug-1", recipe="artaug", seeds={"prompts": 1}, libraries={"torch": "2"})
    step = Node.about("iteration", index=1, kept=1, prompts=2, alpha=0.5)
    pair, prompt = Node.about("pair", seed=7, diverged=""), Node.about("prompt", text="a <b>boat</b>")
    version = f"version:{version_id(base.id, parts)}"
    edges = (Edge(version, "made_by", step.id), Edge(step.id, "part_of", run.id), Edge(step.id, "learned_from", pair.id))
    lineage = Lineage((run, step, pair, prompt), (*edges, Edge(pair.id, "asked_as", prompt.id)))
    with closing(Registry(Database(f"sqlite:///{place}/registry.sqlite"), ArtifactStore(str(place / "artifacts")))) as registry:
        files = {parts[0].adapter: data}
        metrics = {"heldout_aesthetic": 6.2, "alpha": 0.5}
        made = registry.register(base, parts, files=files, lineage=lineage, metrics=metrics, note="a test's")
        registry.set_alias("production", made.id, expected="")
        folder = place / "out"
        written = export_version(registry, "production", folder, base_folder, licence=Licence("apache-2.0"), methods=cards())
        plain = painted(pipeline)
        scaled = Adapter({name: (a, WEIGHT * b) for name, (a, b) in own.factors.items()})
        Fuser(pipeline.transformer).fuse(scaled)
        yield Sample(registry, folder, written, scaled, plain, painted(pipeline))
