"""Writes the files for ``bentoml build``: a plain service around the fused model, which runs without sfumato."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import yaml

from sfumato.diffusion.limits import ModelLimits

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow")
"""The packages that the service needs; pinned to the versions of the export."""

SERVICE = '''"""The exported model behind HTTP: POST /generate with a prompt gives a PNG. Made by `sfumato export`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import bentoml
from PIL.Image import Image
from pydantic import Field

MODEL = Path(__file__).parent / "model"


@bentoml.service(name="{name}", workers=1, traffic={{"timeout": 600}})
class Model:
    """One pipeline; pictures are painted one after the other."""

    def __init__(self) -> None:
        import torch
        from diffusers import DiffusionPipeline

        self._turn = threading.Lock()
        self._generator = torch.Generator
        self._pipeline = DiffusionPipeline.from_pretrained(MODEL, local_files_only=True, use_safetensors=True)
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    @bentoml.api
    def generate(
        self,
        prompt: Annotated[str, Field(min_length=1, max_length=2000)],
        seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
        steps: Annotated[int, Field(ge=1, le={max_steps})] = {steps},
        guidance: Annotated[float, Field(ge={low}, le={high})] = {guidance},
    ) -> Image:
        """A picture of the prompt; the same seed gives the same picture."""
        with self._turn:
            made = self._pipeline(
                prompt,
                height={side},
                width={side},
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=self._generator("cpu").manual_seed(seed),{more}
            )
        return made.images[0]
'''


def write_bento(folder: Path, name: str, limits: ModelLimits, labels: dict[str, str], *, tokens: int | None) -> None:
    """Write ``service.py`` and ``bentofile.yaml`` beside ``model/``.

    Args:
        folder: the export's folder.
        name: the service's name, of letters, digits and -.
        limits: the model's limits and defaults, which the service uses.
        labels: the Bento's labels.
        tokens: ``max_sequence_length`` of the pipeline's call (FLUX's T5); None when the pipeline has no such argument.
    """
    more = "" if tokens is None else f"\n                max_sequence_length={tokens},"
    service = SERVICE.format(
        name=name,
        max_steps=limits.max_steps,
        steps=limits.default_steps,
        low=limits.guidance[0],
        high=limits.guidance[1],
        guidance=limits.default_guidance,
        side=limits.default_size,
        more=more,
    )
    (folder / "service.py").write_text(service, encoding="utf-8")
    file = {
        "service": "service:Model",
        "name": name,
        "labels": labels,
        "include": ["service.py", "README.md", "model/**"],
        "python": {"packages": [f"{package}=={_public(package)}" for package in PACKAGES], "lock_packages": False},
    }
    (folder / "bentofile.yaml").write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")


def _public(package: str) -> str:
    """A package's version without its local part, such as +cpu."""
    return metadata.version(package).partition("+")[0]
