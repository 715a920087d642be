"""``sfumato vlm``: the server of the understanding module."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.runtime.vlm import ServedModel

app = typer.Typer(no_args_is_help=True, help="The server of the vision-language model.")


@app.callback()
def root() -> None:
    """The server of the vision-language model."""


@app.command()
def serve(
    profile: Annotated[str, typer.Option(help="vista, qwen2-vl or qwen2.5-vl.")] = "vista",
    model: Annotated[Path | None, typer.Option(help="Folder of the model; the built-in one for the profile vista.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads, for the CPU build.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until it must be healthy.")] = 600.0,
    log: Annotated[Path | None, typer.Option(help="Where the server's own log goes.")] = None,
) -> None:
    """Start vLLM with an OpenAI-compatible API, wait until it is healthy, and serve until Ctrl-C.

    Example: sfumato vlm serve --profile vista --port 8000
    """
    from rich.console import Console

    from sfumato.errors import Unavailable
    from sfumato.runtime.vlm import serving

    console = Console(stderr=True)
    chosen = served_model(profile, model)
    with ExitStack() as stack:
        with console.status("starting vLLM ...") as status:

            def waited(seconds: float) -> None:
                status.update(f"starting vLLM (about a minute on a CPU) ... {seconds:.0f} s")

            server = stack.enter_context(serving(chosen, host=host, port=port, threads=threads, timeout=timeout, log=log, on_wait=waited))
        typer.echo(f"{server.url}/v1")
        console.print(f"serving {chosen.name!r}; Ctrl-C ends it")
        try:
            code = server.wait()
        except KeyboardInterrupt:
            console.print("ending vLLM ...")
            return
        raise Unavailable(f"vLLM ended with code {code}.")


def served_model(profile: str, model: Path | None) -> ServedModel:
    """What to serve for a profile.

    Raises:
        InvalidInput: an unknown profile, or one whose model must be named.
        MissingWeights: the built-in model is not there.
        BrokenWeights: it is damaged.
    """
    from services.grounding.profiles import VISTA, profile_named
    from sfumato.errors import InvalidInput
    from sfumato.runtime.vlm import ServedModel
    from sfumato.vista.weights import locate

    name = profile_named(profile).name
    if model is None and name != VISTA.name:
        raise InvalidInput("model", f"the profile {name} has no built-in model.", hint="Give the model's folder with --model.")
    return ServedModel(model or locate("understanding"), name, context=1024 if name == VISTA.name else 8192)
