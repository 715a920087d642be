"""The generator's tasks: payload to engine and back."""

from __future__ import annotations

from safetensors.torch import save

from services.generator.engine import GeneratorSettings
from services.generator.served import engine_of
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image, encode_png
from sfumato.runtime.models.adapters import decode_adapter
from sfumato.runtime.models.references import checked_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Json, Output, Task
from sfumato.types import GenerateRequest, Region, Start


def paint(task: Task, artifacts: ArtifactStore) -> Output:
    """Paint every item; files ``<i>.png`` and ``<i>.safetensors`` (``latents``), no values.

    ``params.adapter`` is the SHA-256 of a LoRA that is fused first, or empty for the base model. ``params.regional_steps``,
    ``params.soft_edges`` and ``params.condition_noise`` may be left out (see `GenerateRequest`), and so may ``params.precision``,
    ``float32`` then, ``params.memory``, the bytes a forward may take, and an item's ``start``: the SHA-256 of a ``picture``, and a
    ``strength``.
    """
    params = task.params
    folder = checked_folder(task.model_reference, "generator", task.model, Settings())
    engine, digest = engine_of(folder, params.get("precision", "float32")), params["adapter"]
    engine.use(((digest, 1.0),) if digest else (), lambda: decode_adapter(artifacts.get(digest)) if digest else None)
    requests = [
        GenerateRequest(
            prompt=item["prompt"],
            seed=item["seed"],
            width=params["width"],
            height=params["height"],
            steps=params["steps"],
            guidance_scale=params["guidance"],
            regions=tuple(Region(region["prompt"], tuple(region["box"])) for region in item["regions"]),
            regional_steps=params.get("regional_steps", 1.0),
            soft_edges=params.get("soft_edges", 0.0),
            condition_noise=params.get("condition_noise", 0.0),
            start=_start(item.get("start"), artifacts),
        )
        for item in task.items
    ]
    files: dict[str, bytes] = {}
    for index, picture in enumerate(engine.generate(requests, settings=GeneratorSettings(memory=params.get("memory")))):
        files[f"{index}.png"] = encode_png(picture.image)
        files[f"{index}.safetensors"] = save({"latents": picture.latents.detach().float().cpu().contiguous()})
    return Output(values=[None] * len(task.items), files=files)


def _start(start: Json, artifacts: ArtifactStore) -> Start | None:
    return None if start is None else Start(decode_image(artifacts.get(start["picture"])), start["strength"])


HANDLERS = {"generator.paint": paint}
