"""``sfumato review``: a person looks at the pairs that a run wants to train on, and says which are really better."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.runs import Server

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.recipes.artaug import Plan
    from sfumato.cli.pairs import Pair, Pairs
    from sfumato.runtime.settings import Settings
    from sfumato.types import Image


def review(
    run: Annotated[str, typer.Argument(help="The run's id.", metavar="RUN_ID")],
    accept: Annotated[list[str] | None, typer.Option(metavar="ID", help="Accept the pair whose id begins so (repeatable).")] = None,
    reject: Annotated[list[str] | None, typer.Option(metavar="ID", help="Reject the pair whose id begins so (repeatable).")] = None,
    reason: Annotated[str, typer.Option(help="Why, for --reject.")] = "",
    pictures: Annotated[Path | None, typer.Option(help="Write the pairs as PNG files into this folder, for a viewer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the waiting pairs as JSON and ask nothing.")] = False,
    runs: Annotated[Path | None, typer.Option(help="Where runs lie (default: runs/, or SFUMATO_RUNS).")] = None,
    server: Server = "",
    local: Annotated[bool, typer.Option("--local", help="Look among the runs of this folder, whatever is up.")] = False,
) -> None:
    """Look at the pairs of a run that waits for a person (filter.review: human): before and after, side by side.

    y accepts, n rejects and asks why, s leaves a pair for later, q ends. Every answer is kept at once.

    Examples: sfumato review ID; sfumato review ID --pictures /tmp/pairs; sfumato review ID --reject 3f2a --reason "two moons"
    """
    from rich.console import Console

    from sfumato.cli.servers import server_of
    from sfumato.runtime.settings import Settings

    settings = Settings() if runs is None else Settings(runs=runs)
    with ExitStack() as stack:
        if server_of("orchestrator", server, local, settings.runs):
            from sfumato.cli import pairs, remote

            desk: Pairs = pairs.RemotePairs(stack.enter_context(remote.connect(server, settings)), run)
        else:
            desk = _here(run, settings)
        waiting = desk.waiting()
        for pair, accepted in _chosen(waiting, accept or (), reject or ()):
            desk.answer(pair, accepted, "" if accepted else reason)
            waiting.remove(pair)
        files = _written(waiting, desk, pictures) if pictures else {}
        if as_json:
            typer.echo(json.dumps([_entry(pair, files) for pair in waiting], indent=1))
            return
        console = Console(highlight=False)
        if not (accept or reject):
            waiting = _Review(console, desk, files).ask(waiting)
        if waiting:
            console.print(f"{len(waiting)} pairs still wait: sfumato review {run}", soft_wrap=True)
        else:
            console.print(f"No pair waits for a person. {desk.then}", soft_wrap=True)


def _here(run: str, settings: Settings) -> Pairs:
    """The pairs of a run in this folder."""
    from sfumato.cli.pairs import LocalPairs
    from sfumato.cli.planning import find_run
    from sfumato.runtime.artifacts import ArtifactStore

    folder = find_run(run, settings)
    return LocalPairs(_plan(folder), folder.name, ArtifactStore(settings.artifacts_url))


class _Review:
    """The conversation in the terminal."""

    def __init__(self, console: Console, desk: Pairs, files: dict[str, Path]) -> None:
        self.console, self.desk, self.files = console, desk, files

    def ask(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Show one pair after the other; those that are left."""
        left = list(pairs)
        for number, pair in enumerate(pairs, 1):
            self.console.rule(f"{number} of {len(pairs)}")
            self._show(pair)
            said = self._answer()
            if said is None:
                break
            if isinstance(said, str):
                continue
            accepted, reason = said
            if self.desk.answer(pair, accepted, reason) != (accepted, reason):
                self._say("Somebody answered this one meanwhile; that stands.")
            left.remove(pair)
        return left

    def _show(self, pair: Pair) -> None:
        from sfumato.cli.pictures import COLOURS, side_by_side

        self._say(pair.prompt, "bold")
        if pair.asked != pair.prompt:
            self._say(f"asked: {pair.asked}", "dim")
        if pair.id in self.files:
            self._say(f"before | after: {self.files[pair.id]}")
        elif self.console.color_system is None:
            self._say("No colours here, so no pictures: sfumato review ID --pictures FOLDER writes them.", "dim")
        else:
            room = self.console.height - len(pair.regions) - 8
            self.console.print(side_by_side(*self._pictures(pair), pair.regions, self.console.width, max(room, 8)))
        for number, region in enumerate(pair.regions):
            self._say(f"■ {region.prompt}", COLOURS[number % len(COLOURS)])
        self._say(_scores(pair))

    def _pictures(self, pair: Pair) -> tuple[Image, Image]:
        return _decoded(pair, self.desk)

    def _answer(self) -> tuple[bool, str] | str | None:
        """(accepted, reason), "skip", or None to end."""
        while True:
            said = self._line("Is the right one clearly better? y / n [why] / s skip / q quit: ")
            if said is None:
                return None
            word, _, reason = said.partition(" ")
            match word.lower():
                case "y" | "yes":
                    return True, ""
                case "n" | "no":
                    return False, reason.strip() or self._line("Why (Enter for no reason)? ") or ""
                case "s" | "skip":
                    return "skip"
                case "q" | "quit":
                    return None
            self._say("y accepts, n rejects ('n' and a reason, or just n), s leaves it for later, q ends.")

    def _line(self, question: str) -> str | None:
        """A line from the person, None at the end of the input."""
        try:
            return self.console.input(question, markup=False).strip()
        except EOFError:
            self.console.print()
            return None

    def _say(self, words: str, style: str = "") -> None:
        self.console.print(words, style=style or None, markup=False, soft_wrap=True)


def _plan(folder: Path) -> Plan:
    """The run's plan from its record alone: to look at pictures, nobody needs the models."""
    from orchestrator.spec import PromptSets, RunSpec

    from orchestrator.recipes.artaug import Model, Plan
    from sfumato.cli.planning import read_record

    record = read_record(folder)
    sets = PromptSets(**{name: tuple(prompts) for name, prompts in record.prompts.items()})
    return Plan(RunSpec.model_validate(record.spec), sets, {part: Model(**model) for part, model in record.models.items()})


def _chosen(pairs: Sequence[Pair], accept: Sequence[str], reject: Sequence[str]) -> list[tuple[Pair, bool]]:
    """The pairs that are named, each with what is said of it.

    Raises:
        InvalidInput: nothing, or more than one, has such an id; or one is named twice.
    """
    from sfumato.errors import InvalidInput

    chosen = []
    for field, prefixes in (("accept", accept), ("reject", reject)):
        for prefix in prefixes:
            found = [pair for pair in pairs if prefix and pair.id.startswith(prefix)]
            if len(found) != 1:
                what = "more than one waiting pair has" if found else "no waiting pair has"
                raise InvalidInput(field, f"{what} an id that begins with {prefix!r}.", hint="The ids: sfumato review ID --json")
            chosen.append((found[0], field == "accept"))
    named = [pair.id for pair, _ in chosen]
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise InvalidInput("accept", f"the pair {twice[0][:12]} is named twice.")
    return chosen


def _written(pairs: Sequence[Pair], desk: Pairs, folder: Path) -> dict[str, Path]:
    """A PNG for every pair: the left picture with its boxes and advice, and the right one."""
    from sfumato.cli.pictures import pair_picture
    from sfumato.errors import InvalidInput
    from sfumato.runtime.images import write_png

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("pictures", f"{folder} cannot be made ({error.strerror}).") from error
    files = {pair.id: folder / f"{number:03d}-{pair.id[:12]}.png" for number, pair in enumerate(pairs, 1)}
    for pair in pairs:
        write_png(pair_picture(*_decoded(pair, desk), pair.regions), files[pair.id], "pictures")
    return files


def _decoded(pair: Pair, desk: Pairs) -> tuple[Image, Image]:
    from sfumato.runtime.images import decode_image

    before, after = (decode_image(desk.fetch(name)) for name in (pair.before, pair.after))
    return before, after


def _entry(pair: Pair, files: dict[str, Path]) -> dict[str, Any]:
    """A waiting pair, for scripts."""
    entry = asdict(pair) | {"regions": [{"bbox": list(region.box), "prompt": region.prompt} for region in pair.regions]}
    return entry | ({"picture": str(files[pair.id])} if pair.id in files else {})


def _scores(pair: Pair) -> str:
    before, after = pair.scores_before, pair.scores_after
    return "   ".join(f"{name} {before[name]:.2f} -> {after[name]:.2f} ({after[name] - before[name]:+.2f})" for name in before)
