"""Encodes pictures into files that contain how they were made, in the formats that common tools read."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

import sfumato
from sfumato.types import Image

Format = Literal["png", "jpeg", "webp"]
MIME: Mapping[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_USER_COMMENT, _EXIF = 0x9286, 0x8769
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """How a picture was made. ``version`` is the model version's full id; ``settings`` are further values by name."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    model: str
    version: str
    adapter_scale: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def infotext(self) -> str:
        """The text format of Stable Diffusion web UI (AUTOMATIC1111), which Civitai and others read too.

        The prompt, a line ``Negative prompt:`` where there is one, and a last line of ``Name: value`` pairs; values that hold
        commas, colons or line ends are JSON strings.
        """
        lines = [_plain(self.prompt)]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {_plain(self.negative_prompt)}")
        told = {
            "Steps": self.steps,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.version[:10],
            "Model": self.model,
            "Adapter scale": f"{self.adapter_scale:g}",
            **self.settings,
            "Version": f"sfumato {sfumato.__version__}",
        }
        return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in told.items())])


def encode(image: Image, parameters: GenerationParameters, kind: Format = "png", quality: int = 95) -> bytes:
    """The bytes of the picture's file; equal pictures with equal parameters give equal bytes.

    PNG has the parameters in its text chunk ``parameters`` and the model's version in ``model_version``; JPEG and WebP have the
    parameters in the EXIF field UserComment, where the same tools read them. ``quality`` is 0 to 100, for JPEG and WebP.
    """
    buffer, picture = io.BytesIO(), Pillow.fromarray(image)
    if kind == "png":
        info = PngInfo()
        info.add_text("parameters", parameters.infotext())
        info.add_text("model_version", parameters.version)
        picture.save(buffer, format="PNG", pnginfo=info)
    else:
        exif = Pillow.Exif()
        exif.get_ifd(_EXIF)[_USER_COMMENT] = b"UNICODE\x00" + parameters.infotext().encode("utf-16-be")
        picture.save(buffer, format=kind.upper(), quality=quality, exif=exif)
    return buffer.getvalue()


def _plain(text: str) -> str:
    """The text without the control characters that a text chunk must not contain."""
    return _CONTROL.sub(" ", text).strip()


def _quoted(value: object) -> str:
    text = _plain(str(value))
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:"\n') else text
