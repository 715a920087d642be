"""``sfumato run SPEC --plan``: what a run needs, does and costs, found out without starting or fetching anything."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.recipes.inputs import prompts_in, value_at
from orchestrator.recipes.models import GeneratorModel, JudgeModels, ScorerModels, UnderstandingModel
from orchestrator.recipes.recipe import Recipe
from orchestrator.recipes.spec import RunSpec
from orchestrator.recipes.work import FORWARD, TYPICAL_REGIONS, Memory, StageWork, Work, count_work
from orchestrator.runs.specs import load_spec, with_prompts
from orchestrator.runs.submission import check_prompts
from sfumato.diffusion.families.catalog import FAMILIES, supported
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.models.hub import cached, is_hub_name
from sfumato.runtime.models.sizes import CONVERTED, KNOWN, ModelSize, measured
from sfumato.runtime.settings import Settings
from sfumato.vista import weights

AnyRecipe = Recipe[Any, Any, Any]
PUBLISHED = {
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor",
    "hpsv2": "HPS_v2.1_compressed.pt of xswu/HPSv2 on the hub",
    "mps": "MPS_overall_checkpoint.pth of github.com/Kwai-Kolors/MPS",
}
"""The files that must be converted before they can be used."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the run's models: what it is for, what the spec calls it, where it is, how large, and what is to be done about it."""

    part: str
    reference: str
    where: str
    size: ModelSize | None
    todo: str = ""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One of the run's sets of prompts: what the spec calls it, its file, and how many of it are used."""

    field: str
    file: Path
    count: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """All that is known of a run before it begins; ``half`` and ``single`` are its memory at 16 and at 32 bits a number."""

    spec: RunSpec
    iterations: int
    prompts: list[PromptFile]
    models: list[Part]
    work: list[StageWork]
    half: list[Memory]
    single: list[Memory]
    todo: list[str]


def show_plan(path: Path, settings: Settings, *, as_json: bool) -> None:
    """Print what the run of a spec would be.

    Raises:
        InvalidInput: the spec, its prompts or a model it names cannot be used.
        MissingWeights, BrokenWeights: a model that is here is not whole.
    """
    outlook = look_ahead(path, settings)
    if as_json:
        typer.echo(json.dumps(_as_json(outlook), indent=1))
    else:
        _print(outlook, Console(highlight=False))


def look_ahead(path: Path, settings: Settings) -> Outlook:
    """Check a spec and count what its run would take; no weights are loaded, no network is asked."""
    recipe, spec = load_spec(path)
    prompts = _prompt_files(path, recipe, spec)
    models = _models(spec, recipe, path.parent, (settings.weights or weights.ROOT).resolve())
    sizes = {part.part.removeprefix("score."): part.size for part in models}
    costs = recipe.costs(spec)
    rows = costs.rows(sizes.get("generator"))
    context, together = _conversations(recipe, spec)
    widest = min(FORWARD, spec.batch * (rows + TYPICAL_REGIONS))
    half, single = (costs.memory(sizes, precision=number, rows=widest, context=context, together=together) for number in (2, 4))
    work = count_work(recipe.stages, costs.counts(rows, TYPICAL_REGIONS))
    iterations = max((loop.most(spec) for loop in recipe.loops), default=1)
    todo = [*_missing(prompts), *(part.todo for part in models if part.todo)]
    vllm = any(isinstance(model, UnderstandingModel) and model.backend == "vllm" for model in recipe.models(spec))
    if vllm and not settings.vlm_url and importlib.util.find_spec("vllm") is None:
        todo.append("vLLM is not installed here: pip install 'sfumato[vlm-cuda]' (or 'sfumato[vlm]' without CUDA), or set SFUMATO_VLM_URL.")
    return Outlook(spec, iterations, prompts, models, work, half, single, todo)


def _conversations(recipe: AnyRecipe, spec: RunSpec) -> tuple[int, int]:
    """Tokens of the longest conversation with the run's VLM, and how many are held at once; none where it asks no VLM."""
    from services.grounding.profiles import profile_named

    for model in recipe.models(spec):
        if isinstance(model, UnderstandingModel):
            profile = profile_named(model.profile)
            profile.strategy(model.strategy)
            return profile.context, profile.together
    return 0, 0


def _prompt_files(path: Path, recipe: AnyRecipe, spec: RunSpec) -> list[PromptFile]:
    """The sets of prompts; those that are here are checked."""
    content = spec.model_dump(mode="json")
    files = []
    for wanted in recipe.inputs:
        name, count = value_at(content, wanted.section, wanted.key), wanted.count(content)
        if name is not None and count is not None:
            files.append((wanted, PromptFile(wanted.field, path.parent / name, count)))
    if all(row.file.is_file() for _, row in files):
        check_prompts(*with_prompts(path, anchor=True), recipe)
        return [row for _, row in files]
    for wanted, row in files:
        found = sum(1 for _ in prompts_in(row.file, row.count, wanted.field)) if row.file.is_file() else row.count
        if found < row.count:
            raise InvalidInput(f"{wanted.field}.count", f"{row.file} has {found} prompts, the run asks for {row.count}.")
    return [row for _, row in files]


def _missing(prompts: list[PromptFile]) -> list[str]:
    """What to do about missing files of prompts: the commands in the README of their folder, where there is one."""
    todo = []
    for folder in dict.fromkeys(row.file.parent for row in prompts if not row.file.is_file()):
        absent = [row for row in prompts if row.file.parent == folder and not row.file.is_file()]
        words = "; ".join(f"{row.field}.file: {row.file} is missing, {row.count} prompts, one a line" for row in absent)
        readme = folder / "README.md"
        commands = re.search(r"```\w*\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL) if readme.is_file() else None
        todo.append(f"{words}. From {readme}:\n{commands[1].rstrip()}" if commands else f"{words}.")
    return todo


def _models(spec: RunSpec, recipe: AnyRecipe, here: Path, root: Path) -> list[Part]:
    """Every model of the run, in the order of the recipe; ``here`` is the spec's folder."""
    parts: list[Part] = []
    for model in recipe.models(spec):
        if isinstance(model, GeneratorModel):
            _check_family(model.reference)
            parts.append(Part(model.part, *_rest(_part("model", model.reference, here, _shipped(model.reference, root / model.part)))))
        elif isinstance(model, UnderstandingModel):
            parts.append(
                Part(model.part, *_rest(_part("ground.model", model.reference, here, _shipped(model.reference, root / model.part))))
            )
        elif isinstance(model, ScorerModels):
            named = dict(model.named)
            if named:
                from services.scoring.loading import check_metrics

                check_metrics(model.metrics, named)
            parts += [_scorer(metric, named.get(metric), here, root) for metric in sorted({"clip", *model.metrics})]
        elif not isinstance(model, JudgeModels):
            parts.append(Part(model.part, "", "absent", None, f"{model.part}: what it needs is not known here."))
    return parts


def _shipped(reference: str, folder: Path) -> Path | None:
    return folder if reference == "vista" else None


def _rest(part: Part) -> tuple[str, str, ModelSize | None, str]:
    return part.reference, part.where, part.size, part.todo


def _scorer(metric: str, reference: str | None, here: Path, root: Path) -> Part:
    """A metric's weights: those the spec names, Vista's, or a package's."""
    name = f"score.{metric}"
    if metric == "nudenet":
        absent = importlib.util.find_spec("nudenet") is None
        todo = "The package nudenet is not installed: pip install 'sfumato[scoring]'." if absent else ""
        return Part(name, "nudenet", "absent" if absent else "package", ModelSize({}), todo)
    if reference is not None:
        return _part(name, reference, here, None, metric)
    if metric == "hpsv2":
        return Part(name, "", "absent", ModelSize({"model": CONVERTED[metric]}), _conversion(metric, here / "weights" / metric))
    return _part(name, "vista", here, root / metric)


def _part(name: str, reference: str, here: Path, shipped: Path | None, metric: str = "") -> Part:
    """Where a model is: in the package, in a folder, in the hub's cache, still on the hub, or still to be converted.

    Raises:
        InvalidInput: it is none of these.
    """
    if shipped is not None:
        folder = weights.locate(shipped.name, shipped.parent)
        return Part(name, reference, "package", measured(folder))
    if Path(reference).is_dir():
        return Part(name, reference, "folder", measured(Path(reference)))
    if is_hub_name(reference):
        return _on_hub(name, reference)
    if metric in CONVERTED:
        return Part(name, reference, "absent", ModelSize({"model": CONVERTED[metric]}), _conversion(metric, here / reference))
    raise InvalidInput(name, f"{reference!r} is neither a folder nor a name on the hub.", hint="Write OWNER/NAME, or a path.")


def _on_hub(name: str, reference: str) -> Part:
    """A model by its name on the hub, of which some may be here."""
    folder = cached(reference)
    if folder is not None:
        return Part(name, reference, "hub cache", measured(folder))
    size = KNOWN.get(reference)
    amount = f"{_gigabytes(size.total * size.file_bytes)}" if size else "its size is not known before"
    todo = f"{reference} would be fetched from the hub by the run ({amount})."
    if size and size.gated:
        todo += f" Before that, accept its licence at huggingface.co/{reference} and log in: hf auth login"
    return Part(name, reference, "hub", size, todo)


def _conversion(metric: str, folder: Path) -> str:
    source = PUBLISHED[metric]
    return f"score.{metric}: fetch {source}, then: sfumato convert {source.split()[0]} {folder} --as {metric}"


def _check_family(reference: str) -> None:
    """Refuse a pipeline that is here and that no family knows.

    Raises:
        InvalidInput: its class is unknown.
        MissingWeights: the folder holds no pipeline.
    """
    here = reference != "vista" and (Path(reference).is_dir() or is_hub_name(reference))
    folder = cached(reference) if here else None
    if folder is None:
        return
    index = folder / "model_index.json"
    if not index.is_file():
        raise MissingWeights(f"{folder} holds no diffusers pipeline.", hint="Give the folder that contains model_index.json.")
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if name not in FAMILIES:
        raise InvalidInput("model", f"{folder} holds a {name}, which is of no supported family.", hint=f"Supported: {supported()}.")


def _as_json(outlook: Outlook) -> dict[str, Any]:
    iterations = outlook.iterations
    models = [
        {
            "part": part.part,
            "reference": part.reference,
            "where": part.where,
            "parameters": None if part.size is None else part.size.total,
            "todo": part.todo,
        }
        for part in outlook.models
    ]
    stages = [
        {
            "phase": work.phase,
            "stage": work.stage,
            "service": work.service,
            "once": asdict(work.once),
            "iteration": asdict(work.each),
            "run": asdict(work.total(iterations)),
        }
        for work in outlook.work
    ]
    memory_rows = [
        {
            "service": half.service,
            "bytes_16_bit": {"weights": half.weights, "work": half.work},
            "bytes_32_bit": {"weights": single.weights, "work": single.work},
        }
        for half, single in zip(outlook.half, outlook.single, strict=True)
    ]
    return {
        "name": outlook.spec.name,
        "iterations_at_most": iterations,
        "regions_a_picture": TYPICAL_REGIONS,
        "prompts": [{**asdict(row), "file": str(row.file), "here": row.file.is_file()} for row in outlook.prompts],
        "models": models,
        "stages": stages,
        "run": asdict(sum((work.total(iterations) for work in outlook.work), Work())),
        "memory": memory_rows,
        "todo": outlook.todo,
    }


def _print(outlook: Outlook, console: Console) -> None:
    console.print(f"[bold]{outlook.spec.name}[/bold]: the plan; nothing is started, nothing fetched")
    _print_models(outlook, console)
    _print_work(outlook, console)
    _print_memory(outlook, console)
    for number, todo in enumerate(outlook.todo, 1):
        if number == 1:
            console.print("[bold]To do first[/bold]")
        console.print(f"{number}. {todo}", markup=False, soft_wrap=True)


def _print_models(outlook: Outlook, console: Console) -> None:
    table = Table("model", "named", "where", title="Models and prompts", title_justify="left")
    table.add_column("parameters", justify="right")
    where = {"package": "installed", "hub": "would be fetched", "absent": "to be made first", "hub cache": "in the hub's cache"}
    for part in outlook.models:
        count = "not known" if part.size is None else _count(part.size.total) if part.size.total else ""
        table.add_row(part.part, part.reference, where.get(part.where, part.where), count)
    for row in outlook.prompts:
        table.add_row(row.field, f"{row.count} of {row.file}", "here" if row.file.is_file() else "missing", "")
    console.print(table)


def _print_work(outlook: Outlook, console: Console) -> None:
    iterations = outlook.iterations
    title = f"Work of an iteration, and of {iterations} at most; forwards of the denoiser at {TYPICAL_REGIONS} regions a picture"
    table = Table(title=title, title_justify="left")
    for column in ("stage", "service"):
        table.add_column(column, no_wrap=True)
    for column in ("tasks", "in all", "forwards", "in all", "asked or scored"):
        table.add_column(column, justify="right")
    phase = outlook.work[0].phase if outlook.work else ""
    for work in outlook.work:
        if work.phase != phase:
            table.add_section()
            phase = work.phase
        table.add_row(work.stage, work.service, *_cells(work.each, work.total(iterations)))
    each, total = (sum(part, Work()) for part in zip(*((work.each, work.total(iterations)) for work in outlook.work), strict=True))
    table.add_section()
    table.add_row("all", "", *_cells(each, total))
    console.print(table)


def _cells(each: Work, total: Work) -> list[str]:
    asked = total.questions + total.pictures if not (total.questions and total.pictures) else 0
    return [f"{number:,}" if number else "" for number in (each.tasks, total.tasks, each.forwards, total.forwards, asked)]


def _print_memory(outlook: Outlook, console: Console) -> None:
    table = Table("service", title="Memory of a worker, about: weights + work", title_justify="left")
    for column in ("at 16 bits", "at 32 bits"):
        table.add_column(column, justify="right")
    for half, single in zip(outlook.half, outlook.single, strict=True):
        table.add_row(half.service, _memory(half), _memory(single))
    console.print(table)


def _memory(row: Memory) -> str:
    if row.weights is None:
        return "not known"
    work = "?" if row.work is None else _gigabytes(row.work)
    return f"{_gigabytes(row.weights)} + {work}" if row.work != 0 else _gigabytes(row.weights)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
