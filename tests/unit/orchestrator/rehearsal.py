"""The recipe without its models: handlers whose answers are made up, small and quick, and a transport that runs them in place.

What passes through is real: the engine, the recipe, tasks, manifests, pictures as PNG files in a real store.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from orchestrator.engine.engine import Engine
from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.artaug.state import ArtAugPlan, State
from orchestrator.recipes.models import Model
from orchestrator.recipes.plan import Plan
from orchestrator.runs.specs import load_spec, with_prompts
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image, encode_png
from sfumato.runtime.tasks import Handler, Manifest, Output, Task, canonical, perform

SIDE = 16


def _digest(value: object) -> bytes:
    return hashlib.sha256(canonical(value)).digest()


def paint(task: Task, artifacts: ArtifactStore) -> Output:
    """A flat picture for every item. Red says how good it is: advice helps, and every iteration that is fused; the rest is chance."""
    adapter = task.params["adapter"]
    fused = json.loads(artifacts.get(adapter))["alphas"] if adapter else []
    red = sum(20 + round(2 * alpha) for alpha in fused)
    files = {}
    for index, item in enumerate(task.items):
        colour = [red + (8 if item["regions"] else 0), *_digest([item, task.params])[:2]]
        files[f"{index}.png"] = encode_png(np.full((SIDE, SIDE, 3), colour, dtype=np.uint8))
        files[f"{index}.safetensors"] = _digest([item, task.params, "latents"])
    return Output([None] * len(task.items), files)


def ground(task: Task, _: ArtifactStore) -> Output:
    """Two regions everywhere."""
    regions = [{"prompt": "a glowing sky", "box": [0, 0, 16, 8]}, {"prompt": "a mirror of a lake", "box": [2, 8, 14, 16]}]
    return Output([{"regions": regions, "raw": "", "rejected": ""} for _ in task.items])


def refine(task: Task, _: ArtifactStore) -> Output:
    """A wording for every prompt."""
    return Output([{"prompt": f"{item['prompt']}, exactly", "raw": "", "rejected": ""} for item in task.items])


def compare(task: Task, _: ArtifactStore) -> Output:
    """B is better, but the VLM cannot bear the word "ugly"."""
    values = [("tie", "both are ugly") if "ugly" in item["prompt"] else ("B", "more light") for item in task.items]
    return Output([{"choice": choice, "reason": reason, "raw": "", "rejected": ""} for choice, reason in values])


def score(task: Task, artifacts: ArtifactStore) -> Output:
    """Beauty is red; every picture shows what it should, and none is naked."""
    values = []
    for item in task.items:
        known = {"aesthetic": 4.0 + decode_image(artifacts.get(item["picture"]))[0, 0, 0] / 64, "nudenet": 0.0}
        values.append({name: known.get(name, 20.0) for name in task.params["metrics"]})
    return Output(values)


def similarity(task: Task, _: ArtifactStore) -> Output:
    """Alike."""
    return Output([0.9] * len(task.items))


def train(task: Task, _: ArtifactStore) -> Output:
    """An adapter for every pair."""
    values = [{"losses": [1.0, 0.5], "rank": 8, "diverged": ""} for _ in task.items]
    return Output(values, {f"{index}.safetensors": _digest([item, task.params]) for index, item in enumerate(task.items)})


def joint(task: Task, _: ArtifactStore) -> Output:
    """One adapter for all pairs."""
    return Output([{"losses": [1.0, 0.5], "rank": 8, "diverged": ""}], {"0.safetensors": _digest([task.items, task.params])})


def average(task: Task, _: ArtifactStore) -> Output:
    """A mean."""
    return Output({"rank": 8, "error": 0.0, "norm": 1.0}, {"adapter.safetensors": canonical(["mean", task.items])})


def fuse(task: Task, _: ArtifactStore) -> Output:
    """A stack."""
    stack = {"items": task.items, "alphas": task.params["alphas"]}
    return Output({"difference": 0.0}, {"adapter.safetensors": canonical(stack)})


def judge(task: Task, _: ArtifactStore) -> Output:
    """It likes everything."""
    return Output({item["set"]: {"finish": 1.0, "finish_objects": 1.0, "finish_sky": None, "object_presence": 1.0} for item in task.items})


HANDLERS: dict[str, Handler] = {
    "generator.paint": paint,
    "grounding.ground": ground,
    "grounding.refine": refine,
    "grounding.compare": compare,
    "scoring.score": score,
    "scoring.similarity": similarity,
    "scoring.judge": judge,
    "trainer.train": train,
    "joint.train": joint,
    "trainer.average": average,
    "trainer.fuse": fuse,
}


class InPlace:
    """A transport that does a task when it is asked for a manifest; ``done`` is every task that came."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self.artifacts = artifacts
        self.done: list[Task] = []
        self._waiting: list[Task] = []

    def prepare(self, services: Iterable[str]) -> None:
        """Nothing has to start."""

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Keep it."""
        self._waiting.append(task)

    def next(self) -> Manifest:
        """Do the first one."""
        task = self._waiting.pop(0)
        self.done.append(task)
        return perform(task, HANDLERS[task.kind], self.artifacts, {})

    def release(self, service: str) -> None:
        """Nothing has to end."""


def plan_of(folder: Path) -> ArtAugPlan:
    """The plan of the spec in a folder (see `write_spec`), with models that are never loaded."""
    path = folder / "spec.yaml"
    _, spec = load_spec(path)
    _, inputs = with_prompts(path, anchor=True)
    assert isinstance(spec, ArtAugSpec)
    sets = {wanted.name: inputs.get(wanted.name, ()) for wanted in RECIPE.inputs}
    return Plan(spec, sets, {part: Model(part, "") for part in ("generator", "understanding", "scorers", "judge")})


def write_spec(folder: Path, **sections: str) -> Path:
    """Write a small spec with its prompts; its folder. ``sections`` are YAML by name, over the defaults here."""
    for name, count in (("train", 10), ("tune", 4), ("heldout", 6), ("ceiling", 6)):
        (folder / f"{name}.txt").write_text("".join(f"{name} picture {index}\n" for index in range(count)))
    text = {
        "name": "rehearsal",
        "batch": "4",
        "prompts": "{file: train.txt, count: 10, seed: 0}",
        "evaluate": "{file: heldout.txt, count: 6, seed: 900}",
        "stop": "{max_iterations: 3, min_pairs: 1}",
        "score": "{metrics: [clip, aesthetic]}",
    }
    (folder / "spec.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (text | sections).items()))
    return folder


def rehearse(plan: ArtAugPlan, artifacts: ArtifactStore, notify: Callable[..., None] = lambda _: None) -> tuple[State, list[Task]]:
    """The whole run; its last state and the tasks that were done."""
    transport = InPlace(artifacts)
    state = Engine(plan, plan.spec.batch, transport, artifacts, notify).run(RECIPE.stages, RECIPE.start(plan))
    return state, transport.done
