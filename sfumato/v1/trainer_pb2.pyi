from sfumato.v1 import validate_pb2 as _validate_pb2
from sfumato.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DifferentialObjective(_message.Message):
    __slots__ = ("steps_before", "steps_after")
    STEPS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    STEPS_AFTER_FIELD_NUMBER: _ClassVar[int]
    steps_before: int
    steps_after: int
    def __init__(self, steps_before: _Optional[int] = ..., steps_after: _Optional[int] = ...) -> None: ...

class NaiveObjective(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    def __init__(self, steps: _Optional[int] = ...) -> None: ...

class JointObjective(_message.Message):
    __slots__ = ("steps", "pictures", "together", "seed")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    steps: int
    pictures: int
    together: int
    seed: int
    def __init__(self, steps: _Optional[int] = ..., pictures: _Optional[int] = ..., together: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class AutomaticRank(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainingPair(_message.Message):
    __slots__ = ("prompt", "seed", "before", "after")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    seed: int
    before: str
    after: str
    def __init__(self, prompt: _Optional[str] = ..., seed: _Optional[int] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("pairs", "model", "differential", "naive", "joint", "fixed_rank", "automatic_rank", "learning_rate", "batch", "guidance", "width", "height")
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIFFERENTIAL_FIELD_NUMBER: _ClassVar[int]
    NAIVE_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    FIXED_RANK_FIELD_NUMBER: _ClassVar[int]
    AUTOMATIC_RANK_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[TrainingPair]
    model: _common_pb2.ModelRef
    differential: DifferentialObjective
    naive: NaiveObjective
    joint: JointObjective
    fixed_rank: int
    automatic_rank: AutomaticRank
    learning_rate: float
    batch: int
    guidance: float
    width: int
    height: int
    def __init__(self, pairs: _Optional[_Iterable[_Union[TrainingPair, _Mapping]]] = ..., model: _Optional[_Union[_common_pb2.ModelRef, _Mapping]] = ..., differential: _Optional[_Union[DifferentialObjective, _Mapping]] = ..., naive: _Optional[_Union[NaiveObjective, _Mapping]] = ..., joint: _Optional[_Union[JointObjective, _Mapping]] = ..., fixed_rank: _Optional[int] = ..., automatic_rank: _Optional[_Union[AutomaticRank, _Mapping]] = ..., learning_rate: _Optional[float] = ..., batch: _Optional[int] = ..., guidance: _Optional[float] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: TrainProgress
    result: TrainResult
    def __init__(self, progress: _Optional[_Union[TrainProgress, _Mapping]] = ..., result: _Optional[_Union[TrainResult, _Mapping]] = ...) -> None: ...

class TrainProgress(_message.Message):
    __slots__ = ("fit", "done", "total", "pairs", "loss")
    FIT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    fit: str
    done: int
    total: int
    pairs: int
    loss: float
    def __init__(self, fit: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., pairs: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class TrainResult(_message.Message):
    __slots__ = ("pairs",)
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[TrainedPair]
    def __init__(self, pairs: _Optional[_Iterable[_Union[TrainedPair, _Mapping]]] = ...) -> None: ...

class TrainedPair(_message.Message):
    __slots__ = ("adapter", "rank", "losses", "diverged")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    rank: int
    losses: _containers.RepeatedScalarFieldContainer[float]
    diverged: str
    def __init__(self, adapter: _Optional[str] = ..., rank: _Optional[int] = ..., losses: _Optional[_Iterable[float]] = ..., diverged: _Optional[str] = ...) -> None: ...
