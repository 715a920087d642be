"""The trainer's service: messages to the engine and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from services.trainer.checkpoint import FitStep
from services.trainer.engine import train_pairs
from services.trainer.group import Alone
from services.trainer.objectives.differential import DIFFERENTIAL
from services.trainer.objectives.joint import JOINT, JointPicture, JointSettings, JointTraining
from services.trainer.objectives.naive import NAIVE
from services.trainer.objectives.objective import TrainedAdapter
from services.trainer.pairs import TrainingPair, TrainSettings
from services.trainer.served import ServedTrainer, TrainedModel
from sfumato.diffusion.families import family_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import encode_adapter
from sfumato.runtime.serving.engine_queue import Caller, EngineQueue
from sfumato.runtime.serving.images import read_artifact, within
from sfumato.runtime.serving.models import adapter_of, check_base, fused_of
from sfumato.texts import normalised
from sfumato.v1 import trainer_pb2
from sfumato.v1.trainer_pb2_grpc import TrainerServiceServicer

# What the joint training calls its pictures' parts, as the contract does.
PAIR = {"latents": "after", "prompt": "prompt"}


class TrainerServicer(TrainerServiceServicer):
    """See ``protos/sfumato/v1/trainer.proto``."""

    def __init__(self, queue: EngineQueue[ServedTrainer], artifacts: ArtifactStore) -> None:
        self._queue, self._artifacts = queue, artifacts

    async def Train(self, request: trainer_pb2.TrainRequest, context: Any) -> AsyncIterator[trainer_pb2.TrainResponse]:
        """Train the pairs together: a stream of progress, and the adapters last."""

        def work(served: ServedTrainer, caller: Caller) -> trainer_pb2.TrainResponse:
            def on_step(step: FitStep) -> None:
                caller.check()
                told = trainer_pb2.TrainProgress(fit=step.fit, done=step.done, total=step.total, pairs=step.pairs, loss=step.loss)
                caller.tell(trainer_pb2.TrainResponse(progress=told))

            return trainer_pb2.TrainResponse(result=self._result(self._trained(served, request, on_step)))

        async for event in self._queue.stream(work):
            yield event

    def _trained(self, served: ServedTrainer, request: trainer_pb2.TrainRequest, on_step: Any) -> Sequence[TrainedAdapter | Diverged]:
        check_base(request.model, served.base)
        model = served.model()
        pairs = self._pairs(model, request)
        with within("model", adapter="adapters"):
            model.fuser.use(fused_of(request.model), lambda: adapter_of(request.model, self._artifacts))
        if request.WhichOneof("objective") == JOINT.name:
            return [_joint(model, pairs, request, on_step)]
        return train_pairs(model.pipeline, pairs, settings_of(request), on_step=on_step)

    def _pairs(self, model: TrainedModel, request: trainer_pb2.TrainRequest) -> list[TrainingPair]:
        size = family_of(model.pipeline).limits.default_size
        width = request.width if request.HasField("width") else size
        height = request.height if request.HasField("height") else size
        return [
            TrainingPair(
                normalised(pair.prompt),
                self._latents(pair.before, f"pairs[{index}].before"),
                self._latents(pair.after, f"pairs[{index}].after"),
                pair.seed,
                width,
                height,
            )
            for index, pair in enumerate(request.pairs)
        ]

    def _latents(self, digest: str, field: str) -> Tensor:
        try:
            return load(read_artifact(digest, field, self._artifacts))["latents"]
        except (SafetensorError, KeyError) as error:
            raise InvalidInput(field, "is no file of latents.", hint="Name what Generate stored.") from error

    def _result(self, outcomes: Sequence[TrainedAdapter | Diverged]) -> trainer_pb2.TrainResult:
        pairs = []
        for outcome in outcomes:
            if isinstance(outcome, Diverged):
                pairs.append(trainer_pb2.TrainedPair(diverged=str(outcome)))
            else:
                digest = self._artifacts.put(encode_adapter(outcome.adapter))
                pairs.append(trainer_pb2.TrainedPair(adapter=digest, rank=outcome.rank, losses=outcome.losses))
        return trainer_pb2.TrainResult(pairs=pairs)


def _joint(
    model: TrainedModel, pairs: Sequence[TrainingPair], request: trainer_pb2.TrainRequest, on_step: Any
) -> TrainedAdapter | Diverged:
    """One adapter for all pairs, where `train_pairs` trains one for each."""
    if request.WhichOneof("rank") != "fixed_rank":
        raise InvalidInput("rank", "joint training needs a fixed one.", hint="Convergence is tested on single pairs.")
    asked, rank = request.joint, request.fixed_rank
    settings = JointSettings(rank, request.learning_rate, asked.steps, asked.pictures, asked.together, _guidance(request), asked.seed)
    pictures = [JointPicture(normalised(pair.prompt), pair.after) for pair in pairs]
    names = {"together": "joint.together", "steps": "joint.steps"}
    names |= {f"pictures[{index}].{own}": f"pairs[{index}].{name}" for index in range(len(pairs)) for own, name in PAIR.items()}
    with within("", **names):
        training = JointTraining(model.pipeline, pictures, settings, pairs[0].width, pairs[0].height)
    (result,) = training.adapters(Alone(), on_step=on_step)
    return result


def _guidance(request: trainer_pb2.TrainRequest) -> float:
    return request.guidance if request.HasField("guidance") else 1.0


def settings_of(request: trainer_pb2.TrainRequest) -> TrainSettings:
    """How the request wants its adapters trained."""
    naive = request.WhichOneof("objective") == NAIVE.name
    return TrainSettings(
        objective=(NAIVE if naive else DIFFERENTIAL).name,
        rank=request.fixed_rank if request.WhichOneof("rank") == "fixed_rank" else "auto",
        learning_rate=request.learning_rate,
        batch=request.batch,
        # A naive training has one fit only, which counts its steps as the second's.
        steps_before=1 if naive else request.differential.steps_before,
        steps_after=request.naive.steps if naive else request.differential.steps_after,
        guidance=_guidance(request),
    )
