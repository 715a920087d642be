"""The fields of requests and answers: OpenAI's image fields, and further fields of diffusion models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sfumato.runtime.picture_files import Format
from sfumato.texts import normalised

LONGEST_PROMPT = 32_000
"""Characters, as in OpenAI's API; the limit in tokens is the model's."""
MAX_SEED = 2**63 - 1
MOST_REGIONS = 64
SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_STEPS = {"low": 0.5, "medium": 1.0, "standard": 1.0, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 2.0}


def _size(text: str) -> str:
    if text != "auto" and not SIZE.fullmatch(text):
        raise ValueError("must be auto or WIDTHxHEIGHT in pixels, such as 1024x1024")
    return text


Size = Annotated[
    str,
    AfterValidator(_size),
    Field(json_schema_extra={"pattern": r"^(auto|[0-9]{1,5}x[0-9]{1,5})$"}, description="WIDTHxHEIGHT in pixels, or auto."),
]


def _visible(text: str) -> str:
    """The normalised text. Raises ValueError: nothing of it can be seen."""
    found = normalised(text)
    if not found:
        raise ValueError("must have a letter that can be seen")
    return found


Prompt = Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT), AfterValidator(_visible)]
UnwantedPrompt = Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(normalised)]


class RegionField(BaseModel):
    """What the picture should show inside a box of it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Prompt
    bbox: Annotated[list[int], Field(min_length=4, max_length=4, description="x1, y1, x2, y2 in pixels; the last two exclusive.")]
    strength: Annotated[float, Field(ge=0, le=10, description="The weight of its words there; 1: those of the prompt have as much.")] = 1.0


class ImageFields(BaseModel):
    """The fields that generations and edits share. Null means absent, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[Prompt, Field(description="What the picture should show.")]
    model: Annotated[str | None, Field(min_length=1, max_length=1000, description="vista, vista@ALIAS, a version, vista+LORA:0.6.")] = None
    n: Annotated[int | None, Field(ge=1, le=10, description="Pictures, of seeds that follow each other.")] = None
    size: Size | None = None
    quality: Annotated[
        Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None,
        Field(description="A share of the model's own steps, where num_inference_steps is absent."),
    ] = None
    output_format: Format | None = None
    output_compression: Annotated[int | None, Field(ge=0, le=100, description="Quality of jpeg and webp.")] = None
    response_format: Annotated[Literal["b64_json"] | None, Field(description="Pictures come in the answer; no file is kept.")] = None
    background: Literal["opaque", "auto"] | None = None
    stream: Annotated[bool | None, Field(description="Answer with server-sent events.")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=3, description="Pictures in work to be shown in a stream.")] = None
    user: Annotated[str | None, Field(max_length=1000, description="Goes into the audit log, as its SHA-256.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=1000, description="As user, and before it.")] = None
    moderation: Annotated[Literal["low", "auto"] | None, Field(description="Changes nothing here.")] = None
    complexity: Annotated[Literal["low", "medium", "high"] | None, Field(description="Changes nothing here.")] = None

    negative_prompt: Annotated[UnwantedPrompt | None, Field(description="What it should not show; needs guidance.")] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="The same seed and words give the same picture; absent: any.")] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    regions: Annotated[list[RegionField] | None, Field(max_length=MOST_REGIONS)] = None
    adapter_scale: Annotated[float | None, Field(ge=0, le=100, description="0: the base model; 1: the fused one; or any other.")] = None

    @property
    def pictures(self) -> int:
        """Number of requested pictures."""
        return self.n or 1

    @property
    def kind(self) -> Format:
        """The files' format."""
        return self.output_format or "png"

    def steps(self, default: int, most: int) -> int:
        """The number of steps: as requested, else the model's default scaled by the quality."""
        if self.num_inference_steps is not None:
            return self.num_inference_steps
        return min(most, max(1, round(default * _STEPS.get(self.quality or "auto", 1.0))))

    def pixels(self, width: int, height: int) -> tuple[int, int]:
        """The requested width and height, else the given ones."""
        found = SIZE.fullmatch(self.size or "")
        return (int(found[1]), int(found[2])) if found else (width, height)


class GenerationRequest(ImageFields):
    """``POST /v1/images/generations``."""

    style: Annotated[Literal["vivid", "natural"] | None, Field(description="Changes nothing here: say it in the prompt.")] = None


class EditRequest(ImageFields):
    """``POST /v1/images/edits`` but for its files: ``image``, and ``mask`` when only a part is painted again."""

    strength: Annotated[float | None, Field(ge=0, le=1, description="How far from the image: 0 gives it back, 1 forgets it.")] = None
    input_fidelity: Annotated[Literal["high", "low"] | None, Field(description="high: strength 0.4, where that is absent.")] = None

    def distance(self, hole: bool = False) -> float:
        """The share of the steps that is run on the picture; all of them where it has a ``hole``, in which there is nothing to keep."""
        if self.strength is not None:
            return self.strength
        if hole:
            return 1.0
        return 0.4 if self.input_fidelity == "high" else 0.8


class PictureField(BaseModel):
    """A picture of an answer."""

    b64_json: str
    seed: int


class ImagesAnswer(BaseModel):
    """The answer to both kinds of requests."""

    created: int
    data: list[PictureField]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    size: str
    quality: str | None = None
    model: str
    version: str


class ModelField(BaseModel):
    """A model in ``GET /v1/models``: OpenAI's fields, the base model it stands on (``root``) and the version it came of (``parent``).

    ``version`` is what answers; ``refused`` says why that is not what the alias points at.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sfumato"
    root: str | None = None
    parent: str | None = None
    version: str | None = None
    refused: str | None = None


class ModelsAnswer(BaseModel):
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelField]


def schemas_of(*models: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of models and their references, by name, as OpenAPI's components."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found
