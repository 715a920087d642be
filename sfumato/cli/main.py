"""The command line. Commands import heavy libraries themselves, so that ``--help`` is fast."""

from __future__ import annotations

import signal
import sys

import typer

from sfumato.cli import ground, lora, models, runs, score, vista, vlm
from sfumato.cli import run as run_command
from sfumato.cli.convert import convert
from sfumato.cli.export import export
from sfumato.cli.generate import generate
from sfumato.cli.review import review
from sfumato.cli.serve import serve
from sfumato.cli.up import down, up
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights, SfumatoError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="A text-to-image model that learns from its own corrections.",
)
app.command()(generate)
app.command()(ground.ground)
app.command()(score.score)
app.command()(convert)
app.command()(run_command.run)
app.command()(review)
app.command()(serve)
app.command()(export)
app.command()(up)
app.command()(down)
app.add_typer(runs.app, name="runs")
app.add_typer(models.app, name="models")
app.add_typer(lora.app, name="lora")
app.add_typer(vlm.app, name="vlm")
app.add_typer(vista.app, name="vista")


def main() -> None:
    """Run the command line. Errors of `sfumato.errors` are printed and become the exit status."""
    signal.signal(signal.SIGTERM, _terminated)  # so that servers and workers are stopped too
    try:
        status = app(standalone_mode=False)
    except typer.Abort:
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SfumatoError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InvalidInput | MissingWeights | BrokenWeights) else 1) from None
    except Exception as error:
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:  # not the parser's error but a defect: show the traceback
            raise
        show()
        raise SystemExit(code) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def _terminated(number: int, _: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
