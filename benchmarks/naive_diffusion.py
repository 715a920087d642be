"""The baseline of `benchmarks/inference.py`: a model served as in BentoML's own diffusion example, one pipeline call a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
from PIL.Image import Image

import sfumato  # noqa: F401 - before diffusers and transformers
from sfumato.diffusion.loading import load_pipeline
from sfumato.runtime.device import pick_device
from sfumato.vista.weights import locate

TOKENS = 32
"""The token limit of the shipped model; the pipeline's default of 512 would be most of the work."""


@bentoml.service(name="naive", workers=1, traffic={"timeout": 3600})
class Naive:
    """One pipeline, loaded when the service starts."""

    def __init__(self) -> None:
        self.pipeline: Any = load_pipeline(Path(locate("generator")), device=pick_device())

    @bentoml.api
    def txt2img(self, prompt: str, num_inference_steps: int = 20, guidance_scale: float = 1.0) -> Image:
        """A picture of the prompt."""
        answer = self.pipeline(
            prompt=prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, height=64, width=64,
            max_sequence_length=TOKENS,
        )  # fmt: skip
        return answer.images[0]
