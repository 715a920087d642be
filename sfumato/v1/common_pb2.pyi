from sfumato.v1 import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Delivery(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_UNSPECIFIED: _ClassVar[Delivery]
    DELIVERY_INLINE: _ClassVar[Delivery]
    DELIVERY_ARTIFACT: _ClassVar[Delivery]
DELIVERY_UNSPECIFIED: Delivery
DELIVERY_INLINE: Delivery
DELIVERY_ARTIFACT: Delivery

class Image(_message.Message):
    __slots__ = ("data", "artifact")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    artifact: str
    def __init__(self, data: _Optional[bytes] = ..., artifact: _Optional[str] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x1", "y1", "x2", "y2")
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    X2_FIELD_NUMBER: _ClassVar[int]
    Y2_FIELD_NUMBER: _ClassVar[int]
    x1: int
    y1: int
    x2: int
    y2: int
    def __init__(self, x1: _Optional[int] = ..., y1: _Optional[int] = ..., x2: _Optional[int] = ..., y2: _Optional[int] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("prompt", "box")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    box: Box
    def __init__(self, prompt: _Optional[str] = ..., box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...

class AdapterRef(_message.Message):
    __slots__ = ("artifact", "weight")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    weight: float
    def __init__(self, artifact: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("base", "adapters")
    BASE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    base: str
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterRef]
    def __init__(self, base: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[AdapterRef, _Mapping]]] = ...) -> None: ...
