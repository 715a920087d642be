"""``sfumato review``: a person answers the questions of a run about its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.runs import Server

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.cli.questions import Questions
    from sfumato.runs.records import Question
    from sfumato.runtime.settings import Settings
    from sfumato.types import Image, Region


def review(
    run: Annotated[str, typer.Argument(help="The run's id.", metavar="RUN_ID")],
    accept: Annotated[list[str] | None, typer.Option(metavar="ID", help="Accept the question whose id begins so (repeatable).")] = None,
    reject: Annotated[list[str] | None, typer.Option(metavar="ID", help="Reject the question whose id begins so (repeatable).")] = None,
    reason: Annotated[str, typer.Option(help="Why, for --reject.")] = "",
    pictures: Annotated[Path | None, typer.Option(help="Write the pictures as PNG files into this folder, for a viewer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the waiting questions as JSON and ask nothing.")] = False,
    runs: Annotated[Path | None, typer.Option(help="The folder of the runs (default: runs/, or SFUMATO_RUNS).")] = None,
    server: Server = "",
    local: Annotated[bool, typer.Option("--local", help="Look among the runs of this folder, even if a system is up.")] = False,
) -> None:
    """Answer the questions of a run that waits for a person: is the right picture clearly better than the left one?

    y accepts, n rejects and asks why, s leaves a question for later, q ends. Every answer is stored at once.

    Examples: sfumato review ID; sfumato review ID --pictures /tmp/pairs; sfumato review ID --reject 3f2a --reason "two moons"
    """
    from rich.console import Console

    from sfumato.cli.servers import server_of
    from sfumato.runs.records import Answer
    from sfumato.runtime.settings import Settings

    settings = Settings() if runs is None else Settings(runs=runs)
    with ExitStack() as stack:
        if server_of("orchestrator", server, local, settings.runs):
            from sfumato.cli import questions, remote

            desk: Questions = questions.RemoteQuestions(stack.enter_context(remote.connect(server, settings)), run)
        else:
            desk = _here(run, settings)
        waiting = desk.waiting()
        for question, accepted in _chosen(waiting, accept or (), reject or ()):
            desk.answer(Answer(question.id, accepted, "" if accepted else reason))
            waiting.remove(question)
        files = _written(waiting, desk, pictures) if pictures else {}
        if as_json:
            typer.echo(json.dumps([_entry(question, files) for question in waiting], indent=1))
            return
        console = Console(highlight=False)
        if not (accept or reject):
            waiting = _Review(console, desk, files).ask(waiting)
        if waiting:
            console.print(f"{len(waiting)} questions still wait: sfumato review {run}", soft_wrap=True)
        else:
            console.print(f"No question waits for a person. {desk.then}", soft_wrap=True)


def _here(run: str, settings: Settings) -> Questions:
    """The questions of a run in this folder. Its record is enough; no model is loaded."""
    from orchestrator.runs.records import Records
    from sfumato.cli.questions import LocalQuestions
    from sfumato.runtime.artifacts import ArtifactStore

    artifacts = ArtifactStore(settings.artifacts_url)
    return LocalQuestions(Records(artifacts, settings.runs).record(run)[0], run, artifacts)


class _Review:
    """The conversation in the terminal."""

    def __init__(self, console: Console, desk: Questions, files: dict[str, Path]) -> None:
        self.console, self.desk, self.files = console, desk, files

    def ask(self, questions: Sequence[Question]) -> list[Question]:
        """Show one question after the other; those that are left."""
        from sfumato.runs.records import Answer

        left = list(questions)
        for number, question in enumerate(questions, 1):
            self.console.rule(f"{number} of {len(questions)}")
            self._show(question)
            said = self._answer()
            if said is None:
                break
            if isinstance(said, str):
                continue
            answer = Answer(question.id, *said)
            if self.desk.answer(answer) != answer:
                self._say("Another answer was given before this one; the first one stands.")
            left.remove(question)
        return left

    def _show(self, question: Question) -> None:
        from sfumato.cli.pictures import half_blocks
        from sfumato.drawing import COLOURS

        regions = [(number, region) for picture in question.pictures for number, region in enumerate(picture.regions)]
        self._say(question.prompt, "bold")
        if question.asked != question.prompt:
            self._say(f"asked: {question.asked}", "dim")
        if question.id in self.files:
            self._say(f"left | right: {self.files[question.id]}")
        elif self.console.color_system is None:
            self._say("This terminal shows no colours and so no pictures: sfumato review ID --pictures FOLDER writes them.", "dim")
        else:
            room = self.console.height - len(regions) - 8
            self.console.print(half_blocks(_decoded(question, self.desk), self.console.width, max(room, 8)))
        for number, region in regions:
            self._say(f"■ {region.prompt}", COLOURS[number % len(COLOURS)])
        self._say(_scores(question))

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
            self._say("y accepts, n rejects ('n' and a reason, or only n), s leaves the question for later, q ends.")

    def _line(self, question: str) -> str | None:
        """A line of the input, None at its end."""
        try:
            return self.console.input(question, markup=False).strip()
        except EOFError:
            self.console.print()
            return None

    def _say(self, words: str, style: str = "") -> None:
        self.console.print(words, style=style or None, markup=False, soft_wrap=True)


def _chosen(questions: Sequence[Question], accept: Sequence[str], reject: Sequence[str]) -> list[tuple[Question, bool]]:
    """The questions that are named, each with its answer.

    Raises:
        InvalidInput: no question, or more than one, has such an id; or one is named twice.
    """
    from sfumato.errors import InvalidInput

    chosen = []
    for field, prefixes in (("accept", accept), ("reject", reject)):
        for prefix in prefixes:
            found = [question for question in questions if prefix and question.id.startswith(prefix)]
            if len(found) != 1:
                what = "more than one waiting question has" if found else "no waiting question has"
                raise InvalidInput(field, f"{what} an id that begins with {prefix!r}.", hint="The ids: sfumato review ID --json")
            chosen.append((found[0], field == "accept"))
    named = [question.id for question, _ in chosen]
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise InvalidInput("accept", f"the question {twice[0][:12]} is named twice.")
    return chosen


def _written(questions: Sequence[Question], desk: Questions, folder: Path) -> dict[str, Path]:
    """A PNG for every question: its pictures side by side, with their boxes and advice."""
    from sfumato.drawing import side_by_side
    from sfumato.errors import InvalidInput
    from sfumato.runtime.images import write_png

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("pictures", f"{folder} cannot be created ({error.strerror}).") from error
    files = {question.id: folder / f"{number:03d}-{question.id[:12]}.png" for number, question in enumerate(questions, 1)}
    for question in questions:
        write_png(side_by_side(_decoded(question, desk)), files[question.id], "pictures")
    return files


def _decoded(question: Question, desk: Questions) -> list[tuple[Image, Sequence[Region]]]:
    """The pictures of a question, each with its regions."""
    from sfumato.runtime.images import decode_image

    return [(decode_image(desk.fetch(picture.digest)), picture.regions) for picture in question.pictures]


def _entry(question: Question, files: dict[str, Path]) -> dict[str, Any]:
    """A waiting question, for scripts."""
    pictures = [
        {
            "caption": picture.caption,
            "digest": picture.digest,
            "regions": [{"bbox": list(region.box), "prompt": region.prompt} for region in picture.regions],
            "scores": picture.scores,
        }
        for picture in question.pictures
    ]
    entry = {name: getattr(question, name) for name in ("id", "phase", "iteration", "prompt", "asked", "seed")}
    return entry | {"pictures": pictures} | ({"picture": str(files[question.id])} if question.id in files else {})


def _scores(question: Question) -> str:
    """The scores of the first picture, those of the last, and the differences."""
    first, last = question.pictures[0].scores, question.pictures[-1].scores
    pairs = ((name, first[name], last[name]) for name in first if name in last)
    return "   ".join(f"{name} {before:.2f} -> {after:.2f} ({after - before:+.2f})" for name, before, after in pairs)
