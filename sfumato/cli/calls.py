"""The service calls of `sfumato generate`, `ground` and `score`; the results equal those of a computation in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from sfumato.cli.servers import server_of
from sfumato.errors import InvalidInput
from sfumato.runtime.client import calling, channel, upload
from sfumato.runtime.images import decode_image, read_image
from sfumato.runtime.settings import Settings
from sfumato.types import GenerateRequest, Image, Region
from sfumato.v1 import common_pb2, generator_pb2, grounding_pb2, scoring_pb2
from sfumato.v1.generator_pb2_grpc import GeneratorServiceStub
from sfumato.v1.grounding_pb2_grpc import GroundingServiceStub
from sfumato.v1.scoring_pb2_grpc import ScoringServiceStub

INLINE = 8 * 2**20
"""Most bytes of an image in a message; a larger one goes through the artifact store."""
STRATEGIES = {"single-turn": grounding_pb2.STRATEGY_SINGLE_TURN, "three-turn": grounding_pb2.STRATEGY_THREE_TURN}


def address_of(service: str, server: str, local: bool, only_here: str) -> str:
    """The address of the service to call; empty if the work is done in this process (see `server_of`).

    ``only_here`` is the name of a given option that applies to this process only; empty if none was given.

    Raises:
        InvalidInput: such an option was given together with a service.
    """
    if only_here and not local:
        if server:
            hint = "Leave it out, or work in this process with --local."
            raise InvalidInput(only_here, f"does not apply to the service at {server}, which has its own.", hint=hint)
        return ""
    return server_of(service, server, local, Settings().runs)


class RemotePainter:
    """A client of the generator service for `sfumato generate`."""

    def __init__(self, connection: grpc.Channel, address: str) -> None:
        """Get the model's limits as ``limits``. Raises: as `calling`."""
        self._channel, self._address = connection, address
        self._stub = GeneratorServiceStub(connection)
        self._adapters: list[common_pb2.AdapterRef] = []
        with calling(address):
            self.limits = self._stub.GetLimits(generator_pb2.GetLimitsRequest())

    def use(self, adapter: Path, scale: float) -> None:
        """Use this LoRA from now on. Raises: as `sfumato.lora.files.load`, and as `calling`."""
        from sfumato.lora.files import load
        from sfumato.runtime.models.adapters import encode_adapter

        digest = upload(self._channel, encode_adapter(load(adapter)))
        self._adapters = [common_pb2.AdapterRef(artifact=digest, weight=scale)]

    def paint(self, request: GenerateRequest) -> Image:
        """The image of the served model. Raises: as `calling`."""
        painting = generator_pb2.Painting(
            prompt=request.prompt,
            seeds=[request.seed],
            width=request.width,
            height=request.height,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            regions=[common_pb2.Region(prompt=region.prompt, box=_box(region)) for region in request.regions],
            regional_steps=request.regional_steps,
            soft_edges=request.soft_edges,
        )
        asked = generator_pb2.GenerateRequest(painting=painting, model=common_pb2.ModelRef(adapters=self._adapters))
        with _as_options("painting."), calling(self._address):
            (picture,) = self._stub.Generate(asked).pictures
        return decode_image(picture.image.data)


@contextmanager
def painter(address: str) -> Iterator[RemotePainter]:
    """A client of the generator service at an address. Raises: as `calling`."""
    with channel(address) as connection:
        yield RemotePainter(connection, address)


def advice(address: str, image: Path, prompt: str, strategy: str) -> list[Region]:
    """The advice of the grounding service at an address about an image. Raises: as `read_image`, and as `calling`."""
    if strategy not in STRATEGIES:
        raise InvalidInput("strategy", f"{strategy!r} is unknown.", hint=f"Choose one of {', '.join(STRATEGIES)}.")
    with channel(address) as connection:
        asked = grounding_pb2.GroundRequest(image=_picture(connection, image), prompt=prompt, strategy=STRATEGIES[strategy])
        with calling(address):
            answer = GroundingServiceStub(connection).Ground(asked)
    return [Region(region.prompt, (region.box.x1, region.box.y1, region.box.x2, region.box.y2)) for region in answer.regions]


def scores(address: str, images: Sequence[Path], prompt: str, metrics: Sequence[str]) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Each image's scores by metric, and the metrics' versions, from the scoring service at an address.

    Raises: as `read_image`, and as `calling`.
    """
    with channel(address) as connection:
        items = [scoring_pb2.ScoreItem(image=_picture(connection, image), prompt=prompt) for image in images]
        stub = ScoringServiceStub(connection)
        with calling(address):
            rows = stub.Score(scoring_pb2.ScoreRequest(items=items, metrics=metrics)).scores
            known = {metric.name: metric.version for metric in stub.ListMetrics(scoring_pb2.ListMetricsRequest()).metrics}
    return [{name: row.values[name] for name in metrics} for row in rows], {name: known[name] for name in metrics}


def _picture(connection: grpc.Channel, path: Path) -> common_pb2.Image:
    """The message of an image file; a file that is not an image is refused here, by its name."""
    read_image(path)
    data = path.read_bytes()
    if len(data) <= INLINE:
        return common_pb2.Image(data=data)
    return common_pb2.Image(artifact=upload(connection, data))


def _box(region: Region) -> common_pb2.Box:
    x1, y1, x2, y2 = region.box
    return common_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2)


@contextmanager
def _as_options(prefix: str) -> Iterator[None]:
    """Rename refused fields to the command line's options."""
    try:
        yield
    except InvalidInput as error:
        message = error.message.removeprefix(f"{error.field}: ")
        raise InvalidInput(error.field.removeprefix(prefix), message, hint=error.hint) from error
