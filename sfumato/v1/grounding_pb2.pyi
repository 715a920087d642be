from sfumato.v1 import validate_pb2 as _validate_pb2
from sfumato.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Strategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STRATEGY_UNSPECIFIED: _ClassVar[Strategy]
    STRATEGY_SINGLE_TURN: _ClassVar[Strategy]
    STRATEGY_THREE_TURN: _ClassVar[Strategy]

class Choice(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHOICE_UNSPECIFIED: _ClassVar[Choice]
    CHOICE_A: _ClassVar[Choice]
    CHOICE_B: _ClassVar[Choice]
    CHOICE_TIE: _ClassVar[Choice]
STRATEGY_UNSPECIFIED: Strategy
STRATEGY_SINGLE_TURN: Strategy
STRATEGY_THREE_TURN: Strategy
CHOICE_UNSPECIFIED: Choice
CHOICE_A: Choice
CHOICE_B: Choice
CHOICE_TIE: Choice

class GroundRequest(_message.Message):
    __slots__ = ("image", "prompt", "strategy")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    image: _common_pb2.Image
    prompt: str
    strategy: Strategy
    def __init__(self, image: _Optional[_Union[_common_pb2.Image, _Mapping]] = ..., prompt: _Optional[str] = ..., strategy: _Optional[_Union[Strategy, str]] = ...) -> None: ...

class GroundResponse(_message.Message):
    __slots__ = ("regions", "raw")
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Region]
    raw: str
    def __init__(self, regions: _Optional[_Iterable[_Union[_common_pb2.Region, _Mapping]]] = ..., raw: _Optional[str] = ...) -> None: ...

class RefineRequest(_message.Message):
    __slots__ = ("prompt",)
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    def __init__(self, prompt: _Optional[str] = ...) -> None: ...

class RefineResponse(_message.Message):
    __slots__ = ("prompt", "raw")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    raw: str
    def __init__(self, prompt: _Optional[str] = ..., raw: _Optional[str] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("image", "question")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    image: _common_pb2.Image
    question: str
    def __init__(self, image: _Optional[_Union[_common_pb2.Image, _Mapping]] = ..., question: _Optional[str] = ...) -> None: ...

class AskResponse(_message.Message):
    __slots__ = ("yes",)
    YES_FIELD_NUMBER: _ClassVar[int]
    yes: bool
    def __init__(self, yes: _Optional[bool] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("image_a", "image_b", "prompt", "one_order")
    IMAGE_A_FIELD_NUMBER: _ClassVar[int]
    IMAGE_B_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ONE_ORDER_FIELD_NUMBER: _ClassVar[int]
    image_a: _common_pb2.Image
    image_b: _common_pb2.Image
    prompt: str
    one_order: bool
    def __init__(self, image_a: _Optional[_Union[_common_pb2.Image, _Mapping]] = ..., image_b: _Optional[_Union[_common_pb2.Image, _Mapping]] = ..., prompt: _Optional[str] = ..., one_order: _Optional[bool] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("choice", "reason")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    choice: Choice
    reason: str
    def __init__(self, choice: _Optional[_Union[Choice, str]] = ..., reason: _Optional[str] = ...) -> None: ...
