"""``sfumato vlm``: the server of the understanding model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.runtime.vlm import VlmModel

app = typer.Typer(no_args_is_help=True, help="The server of the vision-language model.")


@app.callback()
def root() -> None:
    """The server of the vision-language model."""


@app.command()
def serve(
    profile: Annotated[str, typer.Option(help="vista, qwen2-vl, qwen2.5-vl or qwen3-vl.")] = "vista",
    model: Annotated[str, typer.Option(help="Folder of the model or its id on a hub; the profile vista has a built-in one.")] = "",
    gpus: Annotated[int, typer.Option(min=1, max=64, help="CUDA devices for the model (tensor parallel).")] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads, for the CPU build.")] = 1,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds until it must be healthy (vista: 600, others: 3600).")] = None,
    log: Annotated[Path | None, typer.Option(help="File for the server's log.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file of its certificate, for TLS; needs --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its certificate's key.")] = None,
) -> None:
    """Start vLLM with an OpenAI-compatible API, wait until it is healthy, and serve until Ctrl-C.

    If SFUMATO_VLM_API_KEY is set, clients must send this key.

    Example: sfumato vlm serve --profile qwen2.5-vl --model Qwen/Qwen2.5-VL-7B-Instruct
    """
    from rich.console import Console

    from sfumato.errors import InvalidInput, Unavailable
    from sfumato.runtime.settings import Settings
    from sfumato.runtime.vlm import CertificatePair, serving

    if (certificate is None) != (key is None):
        raise InvalidInput("certificate", "TLS needs both a certificate and a key.", hint="Give --certificate and --key.")
    console = Console(stderr=True)
    chosen = served_model(profile, model, gpus)
    pair = CertificatePair(certificate, key) if certificate and key else None
    shown = Settings().vlm_api_key.get_secret_value()
    with ExitStack() as stack:
        with console.status("starting vLLM ...") as status:

            def waited(seconds: float) -> None:
                status.update(waiting(seconds))

            options = {"host": host, "port": port, "threads": threads, "timeout": timeout, "log": log, "api_key": shown, "pair": pair}
            server = stack.enter_context(serving(chosen, on_wait=waited, **options))
        typer.echo(f"{server.url}/v1")
        console.print(f"serving {chosen.name!r}; Ctrl-C ends it")
        try:
            code = server.wait()
        except KeyboardInterrupt:
            console.print("ending vLLM ...")
            return
        raise Unavailable(f"vLLM ended with code {code}.")


def served_model(profile: str, model: Path | str = "", gpus: int = 1) -> VlmModel:
    """The model to serve for a profile: a folder or an id on a hub, or the built-in model of the profile vista.

    Raises:
        InvalidInput: an unknown profile, or a profile without a built-in model.
        MissingWeights: the built-in model does not exist.
        BrokenWeights: it is damaged.
    """
    from services.grounding.profiles import VISTA, profile_named
    from sfumato.errors import InvalidInput
    from sfumato.runtime.vlm import VlmModel
    from sfumato.vista.weights import locate

    chosen = profile_named(profile)
    if chosen is VISTA:
        # Small enough for full precision anywhere, and its last bits are part of a run's result.
        source = str(model or locate("understanding"))
        return VlmModel(source, chosen.name, chosen.pixels, chosen.context, cpu_dtype="float32", cpu_cache=1)
    if not str(model):
        hint = "Give its folder or its id on a hub, such as Qwen/Qwen2.5-VL-7B-Instruct."
        raise InvalidInput("model", f"the profile {chosen.name} has no built-in model.", hint=hint)
    return VlmModel(str(model), chosen.name, chosen.pixels, chosen.context, gpus=gpus, ready=3600.0)


def waiting(seconds: float) -> str:
    """The progress text while a server starts."""
    return f"starting vLLM (about a minute on a CPU for the built-in model) ... {seconds:.0f} s"
