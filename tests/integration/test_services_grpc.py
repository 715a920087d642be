"""The services' own programs on the shipped Vista weights, as processes: they load, answer, and end when they are told to."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest

from services.generator.engine import load_generator
from services.scoring.engine import ScoringEngine
from services.scoring.loading import load_scorers
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image, encode_png
from sfumato.types import GenerateRequest
from sfumato.v1 import common_pb2, generator_pb2, generator_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from sfumato.vista import weights
from tests.integration.programs import SECONDS, Program, program
from tests.unit.services.serving import bomb, told

PROMPT = "a full moon over mountains and a lake at night"
TOKEN = (("authorization", "Bearer right"),)


def test_pictures_are_painted_and_scored_as_by_the_engines(tmp_path: Path) -> None:
    request = GenerateRequest(PROMPT, 7, steps=2)
    (expected,) = load_generator(weights.locate("generator")).generate([request])
    with program("generator", tmp_path) as (running, channel):
        generator = generator_pb2_grpc.GeneratorServiceStub(channel)
        painting = generator_pb2.Painting(prompt=PROMPT, seeds=[7], steps=2)
        asked = generator_pb2.GenerateRequest(painting=painting, delivery=common_pb2.DELIVERY_ARTIFACT)
        (picture,) = generator.Generate(asked, timeout=SECONDS, metadata=TOKEN).pictures
        image = decode_image(ArtifactStore(str(tmp_path)).get(picture.image.artifact))
        assert encode_png(image) == encode_png(expected.image)
        assert running.end() == 0
    with program("scoring", tmp_path, SFUMATO_SCORING_METRICS='["clip", "aesthetic"]') as (running, channel):
        scoring = scoring_pb2_grpc.ScoringServiceStub(channel)
        told_of = scoring.ListMetrics(scoring_pb2.ListMetricsRequest(), timeout=SECONDS, metadata=TOKEN).metrics
        assert [metric.name for metric in told_of] == ["clip", "aesthetic"]
        inline = common_pb2.Image(data=encode_png(image))
        items = [scoring_pb2.ScoreItem(image=held, prompt=PROMPT) for held in (picture.image, inline)]
        scores = scoring.Score(scoring_pb2.ScoreRequest(items=items), timeout=SECONDS, metadata=TOKEN).scores
        engine = ScoringEngine(load_scorers(["clip", "aesthetic"]))
        assert [dict(row.values) for row in scores] == engine.score([image, image], [PROMPT, PROMPT])
        items = [scoring_pb2.ScoreItem(image=common_pb2.Image(data=bomb()), prompt=PROMPT)]
        with pytest.raises(grpc.RpcError) as caught:
            scoring.Score(scoring_pb2.ScoreRequest(items=items), timeout=SECONDS, metadata=TOKEN)
        assert told(caught.value)[2] == ["items[0].image.data"]
        with pytest.raises(grpc.RpcError) as caught:
            scoring.Score(scoring_pb2.ScoreRequest(items=items), timeout=SECONDS)
        assert told(caught.value)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert running.end() == 0 and any("Draining" in line for line in running.log)


def test_a_service_without_its_weights_says_so_and_ends_with_2(tmp_path: Path) -> None:
    running = Program("scoring", {"SFUMATO_ARTIFACTS": str(tmp_path), "SFUMATO_WEIGHTS": str(tmp_path)})
    try:
        assert running.process.wait(SECONDS) == 2
    finally:
        running.end(signal.SIGKILL)
    assert "the Vista weights of 'aesthetic' are not in" in "".join(running.log) and "Traceback" not in "".join(running.log)
