"""How a picture was made, in the text format of Stable Diffusion web UI (AUTOMATIC1111), which Civitai and other readers take.

The prompt; a line ``Negative prompt: ...`` where there is one; a last line of ``Name: value`` pairs in the web UI's order. What would
be taken for a part of the format inside a prompt is written with a space before its colon. Values with commas, colons or line ends are
JSON strings whose colons are escaped, so that readers that split at commas and colons find no other pairs in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sfumato
from sfumato.types import Region

CUT = " [...]"
"""Ends a text that was shortened."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PART_OF_THE_FORMAT = re.compile(r"(Negative prompt|(?<=\n)Steps):")


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """How a picture was made.

    ``sampler`` is the web UI's name of it; ``version`` the model version's full id, empty if it is not known; ``settings`` are further
    values by name; ``adapter_scale`` is None where no adapter was fused.
    """

    prompt: str
    seed: int
    steps: int
    sampler: str
    guidance_scale: float
    width: int
    height: int
    model: str
    version: str = ""
    negative_prompt: str = ""
    adapter_scale: float | None = None
    regions: tuple[Region, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        """The length of all texts together."""
        return sum(map(len, self._texts))

    @property
    def _texts(self) -> tuple[str, ...]:
        regions = (region.prompt for region in self.regions)
        return (self.prompt, self.negative_prompt, self.model, *map(str, self.settings.values()), *regions)

    def infotext(self, longest: int | None = None) -> str:
        """The text; with ``longest``, every value of more characters ends there with `CUT`, and the field Shortened says where."""

        def plain(text: str) -> str:
            return _plain(text) if longest is None or len(text) <= longest else _plain(text[:longest]) + CUT

        lines = [_unlike_the_format(plain(self.prompt))]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {_unlike_the_format(plain(self.negative_prompt))}")
        told = {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.version[:10],
            "Model": plain(self.model),
            "Adapter scale": "" if self.adapter_scale is None else f"{self.adapter_scale:g}",
            **{name: plain(str(value)) for name, value in self.settings.items()},
        }
        for index, region in enumerate(self.regions):
            told[f"Region {index}"] = f"{','.join(map(str, region.box))} x {region.strength:g}: {plain(region.prompt)}"
        if longest is not None:
            told["Shortened"] = f"values to {longest} characters"
        told["Version"] = f"sfumato {sfumato.__version__}"
        return "\n".join([*lines, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in told.items() if value != "")])

    def fitted(self, fits: Callable[[str], bool]) -> str:
        """The whole text if it ``fits``, else the one with its values shortened the least."""
        if fits(whole := self.infotext()):
            return whole
        fitting, too_long = 0, max(map(len, self._texts))
        while too_long - fitting > 1:
            middle = (fitting + too_long) // 2
            fitting, too_long = (middle, too_long) if fits(self.infotext(middle)) else (fitting, middle)
        return self.infotext(fitting)


def _plain(text: str) -> str:
    """The text without characters that a file's text field must not contain."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _CONTROL.sub(" ", text.replace("\r\n", "\n"))).strip()


def _unlike_the_format(text: str) -> str:
    return _PART_OF_THE_FORMAT.sub(r"\1 :", text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace(":", r"\u003a") if set(text) & set(',:"\n') else text
