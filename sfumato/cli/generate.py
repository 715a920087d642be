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
    from sfumato.types import GenerateRequest, Image, Region


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture should show.")],
    seed: Annotated[int, typer.Option(help="The same seed and prompt give the same picture.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write; it also holds the parameters.")] = Path("out.png"),
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
    from sfumato.texts import normalised

    if not output.parent.is_dir() or output.is_dir():
        raise InvalidInput("output", f"{output} cannot be written: its folder does not exist or it is a folder.")
    advice = _regions(regions)
    prompt = normalised(prompt)
    if not prompt:
        raise InvalidInput("prompt", "is empty.", hint="Say what the picture should show.")
    address = address_of("generator", server, local, "" if model == "vista" else "model")
    options = _Options(prompt, seed, width, height, steps, guidance, advice, regional_steps, soft_edges)
    paint = _painted_there if address else _painted_here
    image, request, seconds = paint(options, address or model, adapter, scale)
    parameters = _parameters(request, model) | ({"adapter": str(adapter), "scale": scale} if adapter else {})
    _write(image, upscale, parameters, output)
    report = json.dumps({"file": str(output), "seconds": round(seconds, 3), **parameters})
    typer.echo(report if as_json else f"{output}  ({seconds:.2f} s)")


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


def _painted_here(options: _Options, model: str, adapter: Path | None, scale: float) -> tuple[Image, GenerateRequest, float]:
    """The image by a model in this process, the complete request, and the seconds."""
    from services.generator.engine import load_generator
    from sfumato.lora.files import load
    from sfumato.runtime.device import pick_device
    from sfumato.runtime.models.references import vista_root
    from sfumato.runtime.settings import Settings
    from sfumato.vista import weights

    folder = weights.locate("generator", vista_root(Settings())) if model == "vista" else Path(model)
    engine = load_generator(folder, device=pick_device())
    request = options.request(engine.limits)
    if adapter is not None:
        engine.set_adapter(load(adapter), scale)
    started = time.perf_counter()
    return engine.generate([request])[0].image, request, time.perf_counter() - started


def _painted_there(options: _Options, address: str, adapter: Path | None, scale: float) -> tuple[Image, GenerateRequest, float]:
    """The same by the service at an address."""
    from sfumato.cli.calls import painter

    with painter(address) as served:
        request = options.request(served.limits)
        if adapter is not None:
            served.use(adapter, scale)
        started = time.perf_counter()
        return served.paint(request), request, time.perf_counter() - started


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


def _parameters(request: GenerateRequest, model: str) -> dict[str, Any]:
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


def _write(image: Image, upscale: int, parameters: dict[str, Any], output: Path) -> None:
    """A PNG with the generation parameters as JSON in its tEXt chunk ``parameters``."""
    import numpy as np
    from PIL import Image as Pillow
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(parameters, ensure_ascii=True))
    Pillow.fromarray(np.repeat(np.repeat(image, upscale, 0), upscale, 1)).save(output, format="PNG", pnginfo=info)
