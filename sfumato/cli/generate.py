"""``sfumato generate``: one image from a prompt."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.servers import Local, server_option

if TYPE_CHECKING:
    from sfumato.runtime.infotext import GenerationParameters
    from sfumato.runtime.picture_files import Format
    from sfumato.types import GenerateRequest, Image, Region


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture should show.")],
    seed: Annotated[int, typer.Option(help="The same seed and prompt give the same picture.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .png, .jpg or .webp to write, with its parameters.")] = Path(
        "out.png"
    ),
    steps: Annotated[int | None, typer.Option(help="Sampling steps (default: the model's).")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance (default: the model's).")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels (default: the model's).")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels (default: the model's).")] = None,
    regions: Annotated[str, typer.Option(help='Advice as JSON or a file of it: [{"bbox": [x1, y1, x2, y2], "prompt": "..."}].')] = "",
    regional_steps: Annotated[float, typer.Option(help="The share of the steps, from the first, with regional advice.")] = 1.0,
    soft_edges: Annotated[float, typer.Option(help="Width in pixels of the blend at regions' edges; 0 is a hard edge.")] = 0.0,
    model: Annotated[str, typer.Option(help="vista, or the folder of a diffusers pipeline.")] = "vista",
    adapter: Annotated[Path | None, typer.Option(help="A LoRA to fuse first, such as runs/ID/adapter.safetensors.")] = None,
    scale: Annotated[float, typer.Option(help="The LoRA's weight.")] = 1.0,
    upscale: Annotated[int, typer.Option(min=1, max=16, help="Enlarge every pixel this many times.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    server: Annotated[str, server_option("generator")] = "",
    local: Local = False,
) -> None:
    """Generate a picture, by the service of the running system, or in this process.

    Example: sfumato generate "a full moon over mountains and a lake at night" --seed 7 -o moon.png
    """
    from sfumato.cli.calls import address_of
    from sfumato.errors import InvalidInput
    from sfumato.runtime.picture_files import format_of
    from sfumato.texts import normalised

    if not output.parent.is_dir() or output.is_dir():
        raise InvalidInput("output", f"{output} cannot be written: its folder does not exist or it is a folder.")
    kind = format_of(output, "output")
    advice = _regions(regions)
    prompt = normalised(prompt)
    if not prompt:
        raise InvalidInput("prompt", "is empty.", hint="Say what the picture should show.")
    address = address_of("generator", server, local, "" if model == "vista" else "model")
    options = _Options(prompt, seed, width, height, steps, guidance, advice, regional_steps, soft_edges)
    paint = _painted_there if address else _painted_here
    painted = paint(options, address or model, adapter, scale)
    settings = ({"Adapter": adapter.name} if adapter else {}) | ({"Enlarged": upscale} if upscale > 1 else {})
    _write(painted, upscale, painted.parameters(scale if adapter else None, settings), kind, output)
    report = {"file": str(output), "seconds": round(painted.seconds, 3), **_report(painted.request, painted.model or painted.version)}
    report |= {"adapter": str(adapter), "scale": scale} if adapter else {}
    typer.echo(json.dumps(report) if as_json else f"{output}  ({painted.seconds:.2f} s)")


@dataclass(frozen=True, slots=True)
class _Options:
    """The options; None means the model's default."""

    prompt: str
    seed: int
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    regions: tuple[Region, ...]
    regional_steps: float
    soft_edges: float

    def request(self, limits: Any) -> GenerateRequest:
        """The request, with the defaults of a model's limits."""
        from sfumato.types import GenerateRequest

        return GenerateRequest(
            prompt=self.prompt,
            seed=self.seed,
            width=limits.default_size if self.width is None else self.width,
            height=limits.default_size if self.height is None else self.height,
            steps=limits.default_steps if self.steps is None else self.steps,
            guidance_scale=limits.default_guidance if self.guidance is None else self.guidance,
            regions=self.regions,
            regional_steps=self.regional_steps,
            soft_edges=self.soft_edges,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Painted:
    """An image, the complete request, the seconds, the sampler, and the model's name and version; each is empty if it is not known."""

    image: Image
    request: GenerateRequest
    seconds: float
    sampler: str
    model: str
    version: str

    def parameters(self, adapter_scale: float | None, settings: dict[str, Any]) -> GenerationParameters:
        """What the file says of how it was made; values that are the default of every model are left out."""
        from sfumato.runtime.infotext import GenerationParameters

        request = self.request
        shares = {"Regional steps": (request.regional_steps, 1.0), "Soft edges": (request.soft_edges, 0.0)}
        return GenerationParameters(
            prompt=request.prompt,
            seed=request.seed,
            steps=request.steps,
            sampler=self.sampler,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            model=self.model,
            version=self.version,
            adapter_scale=adapter_scale,
            regions=request.regions,
            settings=settings | {name: f"{value:g}" for name, (value, default) in shares.items() if value != default},
        )


def _painted_here(options: _Options, model: str, adapter: Path | None, scale: float) -> _Painted:
    """The image by a model in this process. The version of another model than Vista is not computed: its files may be tens of GB."""
    from services.generator.engine import load_generator
    from sfumato.lora.files import load
    from sfumato.runtime.device import pick_device
    from sfumato.runtime.models.versions import model_version

    folder = _vista() if model == "vista" else Path(model)
    engine = load_generator(folder, device=pick_device())
    request = options.request(engine.limits)
    if adapter is not None:
        engine.set_adapter(load(adapter), scale)
    started = time.perf_counter()
    image = engine.generate([request])[0].image
    seconds = time.perf_counter() - started
    version = model_version(folder) if model == "vista" else ""
    return _Painted(image, request, seconds, engine.limits.sampler, folder.resolve().name if version == "" else model, version)


def _painted_there(options: _Options, address: str, adapter: Path | None, scale: float) -> _Painted:
    """The same by the service at an address, which knows its model's version but no name."""
    from sfumato.cli.calls import painter
    from sfumato.errors import BrokenWeights, MissingWeights
    from sfumato.runtime.models.versions import model_version

    with painter(address) as served:
        request = options.request(served.limits)
        if adapter is not None:
            served.use(adapter, scale)
        started = time.perf_counter()
        image = served.paint(request)
        seconds = time.perf_counter() - started
        limits = served.limits
    try:
        name = "vista" if model_version(_vista()) == limits.base else ""
    except (MissingWeights, BrokenWeights):
        name = ""
    return _Painted(image, request, seconds, limits.sampler, name, limits.base)


def _vista() -> Path:
    """The folder of Vista's generator. Raises: as `sfumato.vista.weights.locate`."""
    from sfumato.runtime.models.references import vista_root
    from sfumato.runtime.settings import Settings
    from sfumato.vista import weights

    return weights.locate("generator", vista_root(Settings()))


def _regions(text: str) -> tuple[Region, ...]:
    """Advice in the form of `ground --json`, from the text or from the file that it names.

    Raises:
        InvalidInput: not JSON, or not in this form.
    """
    from sfumato.errors import InvalidInput
    from sfumato.texts import read_text

    if not text:
        return ()
    try:
        data = json.loads(text if text.lstrip()[:1] in "[{" else read_text(Path(text), "regions"))
    except json.JSONDecodeError as error:
        raise InvalidInput("regions", f"is not JSON: {error}.") from error
    entries = data.get("regions") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise InvalidInput("regions", "must be a list.", hint='[{"bbox": [x1, y1, x2, y2], "prompt": "..."}]')
    return tuple(_region(index, entry) for index, entry in enumerate(entries))


def _region(index: int, entry: Any) -> Region:
    from sfumato.errors import InvalidInput
    from sfumato.texts import normalised
    from sfumato.types import Region

    box = entry.get("bbox", entry.get("box")) if isinstance(entry, dict) else None
    words = entry.get("prompt", entry.get("aesthetical description")) if isinstance(entry, dict) else None
    if not isinstance(words, str) or not isinstance(box, list) or len(box) != 4 or not all(type(side) is int for side in box):
        raise InvalidInput(f"regions[{index}]", "needs a bbox of four whole numbers and a prompt.")
    return Region(normalised(words), (box[0], box[1], box[2], box[3]))


def _report(request: GenerateRequest, model: str) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance": request.guidance_scale,
        "regions": [{"bbox": list(region.box), "prompt": region.prompt} for region in request.regions],
        "regional_steps": request.regional_steps,
        "soft_edges": request.soft_edges,
        "model": model,
    }


def _write(painted: _Painted, upscale: int, parameters: GenerationParameters, kind: Format, output: Path) -> None:
    """The picture's file, with its parameters.

    Raises:
        InvalidInput: it cannot be written.
    """
    import numpy as np

    from sfumato.errors import InvalidInput
    from sfumato.runtime.files import write_whole
    from sfumato.runtime.picture_files import encode

    try:
        write_whole(output, encode(np.repeat(np.repeat(painted.image, upscale, 0), upscale, 1), parameters, kind))
    except OSError as error:
        raise InvalidInput("output", f"{output} cannot be written ({error.strerror}).") from error
