from sfumato.v1 import validate_pb2 as _validate_pb2
from sfumato.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Painting(_message.Message):
    __slots__ = ("prompt", "seeds", "width", "height", "steps", "guidance_scale", "regions", "regional_steps", "soft_edges", "condition_noise", "start")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REGIONAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    SOFT_EDGES_FIELD_NUMBER: _ClassVar[int]
    CONDITION_NOISE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    seeds: _containers.RepeatedScalarFieldContainer[int]
    width: int
    height: int
    steps: int
    guidance_scale: float
    regions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Region]
    regional_steps: float
    soft_edges: float
    condition_noise: float
    start: Start
    def __init__(self, prompt: _Optional[str] = ..., seeds: _Optional[_Iterable[int]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., regions: _Optional[_Iterable[_Union[_common_pb2.Region, _Mapping]]] = ..., regional_steps: _Optional[float] = ..., soft_edges: _Optional[float] = ..., condition_noise: _Optional[float] = ..., start: _Optional[_Union[Start, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("image", "strength")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    image: _common_pb2.Image
    strength: float
    def __init__(self, image: _Optional[_Union[_common_pb2.Image, _Mapping]] = ..., strength: _Optional[float] = ...) -> None: ...

class GetLimitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLimitsResponse(_message.Message):
    __slots__ = ("base", "grid", "min_size", "max_size", "prompt_tokens", "max_steps", "min_guidance", "max_guidance", "max_regions", "default_size", "default_steps", "default_guidance", "sampler")
    BASE_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    MIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_REGIONS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STEPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    base: str
    grid: int
    min_size: int
    max_size: int
    prompt_tokens: int
    max_steps: int
    min_guidance: float
    max_guidance: float
    max_regions: int
    default_size: int
    default_steps: int
    default_guidance: float
    sampler: str
    def __init__(self, base: _Optional[str] = ..., grid: _Optional[int] = ..., min_size: _Optional[int] = ..., max_size: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., max_steps: _Optional[int] = ..., min_guidance: _Optional[float] = ..., max_guidance: _Optional[float] = ..., max_regions: _Optional[int] = ..., default_size: _Optional[int] = ..., default_steps: _Optional[int] = ..., default_guidance: _Optional[float] = ..., sampler: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("painting", "model", "delivery")
    PAINTING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    painting: Painting
    model: _common_pb2.ModelRef
    delivery: _common_pb2.Delivery
    def __init__(self, painting: _Optional[_Union[Painting, _Mapping]] = ..., model: _Optional[_Union[_common_pb2.ModelRef, _Mapping]] = ..., delivery: _Optional[_Union[_common_pb2.Delivery, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("pictures",)
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    pictures: _containers.RepeatedCompositeFieldContainer[Picture]
    def __init__(self, pictures: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("painting", "model", "delivery", "preview_every")
    PAINTING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    painting: Painting
    model: _common_pb2.ModelRef
    delivery: _common_pb2.Delivery
    preview_every: int
    def __init__(self, painting: _Optional[_Union[Painting, _Mapping]] = ..., model: _Optional[_Union[_common_pb2.ModelRef, _Mapping]] = ..., delivery: _Optional[_Union[_common_pb2.Delivery, str]] = ..., preview_every: _Optional[int] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("progress", "pictures", "preview")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    progress: StepProgress
    pictures: Pictures
    preview: Preview
    def __init__(self, progress: _Optional[_Union[StepProgress, _Mapping]] = ..., pictures: _Optional[_Union[Pictures, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("index", "done", "total", "image")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    done: int
    total: int
    image: _common_pb2.Image
    def __init__(self, index: _Optional[int] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., image: _Optional[_Union[_common_pb2.Image, _Mapping]] = ...) -> None: ...

class StepProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Pictures(_message.Message):
    __slots__ = ("pictures",)
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    pictures: _containers.RepeatedCompositeFieldContainer[Picture]
    def __init__(self, pictures: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("seed", "image", "latents")
    SEED_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    seed: int
    image: _common_pb2.Image
    latents: str
    def __init__(self, seed: _Optional[int] = ..., image: _Optional[_Union[_common_pb2.Image, _Mapping]] = ..., latents: _Optional[str] = ...) -> None: ...
