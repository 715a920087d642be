"""``sfumato ground``: advice about one image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.servers import Local, server_option

if TYPE_CHECKING:
    from rich.console import Console

    from services.grounding.engine import Backend
    from services.grounding.profiles import Profile
    from sfumato.runtime.settings import Settings
    from sfumato.types import Image, Region


class Choice(StrEnum):
    """Where the model runs."""

    vllm = "vllm"
    transformers = "transformers"


def ground(
    image: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP picture.")],
    prompt: Annotated[str, typer.Option(help="The picture's prompt.")],
    draw: Annotated[Path | None, typer.Option(help="PNG to write: the picture with the boxes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for programs.")] = False,
    backend: Annotated[Choice | None, typer.Option(help="vllm (default if it is installed), or transformers in this process.")] = None,
    url: Annotated[str, typer.Option(envvar="SFUMATO_VLM_URL", help="A running OpenAI-compatible server.")] = "",
    profile: Annotated[str, typer.Option(help="vista, qwen2-vl, qwen2.5-vl or qwen3-vl.")] = "vista",
    model: Annotated[str, typer.Option(help="Folder of the model or its id on a hub; the profile vista has a built-in one.")] = "",
    strategy: Annotated[str, typer.Option(help="single-turn, or three-turn: describe, analyse, then the list.")] = "single-turn",
    server: Annotated[str, server_option("grounding")] = "",
    local: Local = False,
) -> None:
    """Print regions of a picture that could be more beautiful and their better content: ArtAug's JSON, boxes in pixels.

    Example: sfumato ground moon.png --prompt "a full moon over mountains" --draw boxes.png
    """
    from rich.console import Console

    from services.grounding.profiles import profile_named
    from sfumato.advice import DESCRIPTION
    from sfumato.cli.calls import address_of, advice
    from sfumato.drawing import drawn
    from sfumato.errors import InvalidInput
    from sfumato.runtime.images import read_image, write_png
    from sfumato.texts import normalised

    console, prompt = Console(stderr=True), normalised(prompt)
    chosen = profile_named(profile)
    picture = read_image(image)
    if url and backend is Choice.transformers:
        raise InvalidInput("url", "is for a server; the transformers backend runs in this process.", hint="Leave out one of them.")
    given = {"url": url, "backend": backend, "model": model, "profile": profile != "vista"}
    address = address_of("grounding", server, local, next((name for name, value in given.items() if value), ""))
    if address:  # its model may support other strategies
        regions = advice(address, image, prompt, strategy)
        console.print(f"answered by the service at {address}")
    else:
        chosen.strategy(strategy)  # checked before a server is started
        regions = _grounded_here(console, picture, prompt, backend, url, chosen, model, strategy)
    entries = [{"bbox": list(region.box), DESCRIPTION: region.prompt} for region in regions]
    typer.echo(json.dumps(entries) if as_json or not entries else "[\n  " + ",\n  ".join(map(json.dumps, entries)) + "\n]")
    if draw is not None:
        write_png(drawn(picture, regions), draw, "draw")
        console.print(f"boxes drawn in {draw}")


def _grounded_here(
    console: Console, picture: Image, prompt: str, backend: Choice | None, url: str, profile: Profile, model: str, strategy: str
) -> Sequence[Region]:
    """The advice of a model that this process calls directly."""
    from services.grounding.engine import GroundingEngine

    with _backend(console, backend, url, profile.name, model) as asked:
        return GroundingEngine(asked, profile, strategy).ground(picture, prompt).regions


@contextmanager
def _backend(console: Console, choice: Choice | None, url: str, profile: str, model: str) -> Iterator[Backend]:
    """The backend, which is printed: a running server, a server started for this call, or this process."""
    from sfumato.cli.vlm import served_model, waiting
    from sfumato.runtime import vlm
    from sfumato.runtime.settings import Settings

    settings = Settings()
    if url:
        with _http(url, (profile, model), settings) as backend:
            console.print(f"answered by the server at {url}")
            yield backend
        return
    served = served_model(profile, model)
    if choice is Choice.vllm or (choice is None and vlm.installed()):
        key = settings.vlm_api_key.get_secret_value()
        with (
            console.status("starting vLLM ...") as status,
            vlm.serving(served, api_key=key, on_wait=lambda seconds: status.update(waiting(seconds))) as server,
        ):
            status.stop()
            console.print(f"answered by vLLM ({vlm.installed()}), started for this call; to keep one running: sfumato vlm serve")
            with _http(server.url, (profile,), settings) as backend:
                yield backend
        return
    from services.grounding.local_backend import LocalBackend

    with console.status("loading the model ..."):
        backend = LocalBackend(Path(served.source))
    console.print("answered by transformers in this process" + ("" if choice else " (vLLM is not installed)"))
    yield backend


@contextmanager
def _http(url: str, names: Sequence[str], settings: Settings) -> Iterator[Backend]:
    from services.grounding.http_backend import HttpBackend, model_served

    key, ca = settings.vlm_api_key.get_secret_value(), settings.vlm_ca
    model = model_served(url, [name for name in names if name], api_key=key, ca=ca)
    backend = HttpBackend(url, model, api_key=key, ca=ca, timeout=settings.vlm_timeout)
    try:
        yield backend
    finally:
        backend.close()
