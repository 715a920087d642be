"""``sfumato run``: a recipe from its spec to its report, resumable at any point."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.recipes.artaug import Model, Plan, State
    from orchestrator.transport import LocalService
    from sfumato.runtime.artifacts import ArtifactStore
    from sfumato.runtime.settings import Settings

RECORD = "run.json"


def run(
    spec: Annotated[Path | None, typer.Argument(help="A run spec (YAML); see configs/.", metavar="[SPEC]")] = None,
    resume: Annotated[str, typer.Option("--resume", metavar="ID", help="Go on with a run by its id.")] = "",
    runs: Annotated[Path | None, typer.Option(help="Where runs lie (default: runs/, or SFUMATO_RUNS).")] = None,
) -> None:
    """Run one iteration of the loop; what is finished already is not done again. Prints the path of the report.

    A run's id is its spec's name and a hash of all its result depends on, so the same spec goes on where it stood.

    Example: sfumato run configs/artaug-vista.yaml
    """
    from sfumato.errors import InvalidInput
    from sfumato.runtime.settings import Settings

    settings = Settings() if runs is None else Settings(runs=runs)
    if (spec is None) == (not resume):
        raise InvalidInput("spec", "give either a spec or --resume ID.", hint="Example: sfumato run configs/artaug-vista.yaml")
    if resume:
        folder = settings.runs / resume
        if Path(resume).name != resume or not (folder / RECORD).is_file():
            raise InvalidInput("resume", f"there is no run {resume!r} in {settings.runs}.")
        if json.loads((folder / RECORD).read_text())["finished"]:
            typer.echo(folder / "report.html")
            return
        plan = _recorded_plan(folder, settings)
    else:
        assert spec is not None
        plan, folder = _planned(spec, settings)
    _execute(plan, folder, settings)


def _planned(path: Path, settings: Settings) -> tuple[Plan, Path]:
    from orchestrator.recipes.artaug import Plan
    from orchestrator.spec import load_spec, read_prompts, run_id
    from sfumato.errors import InvalidInput

    spec = load_spec(path)
    prompts, heldout = read_prompts(spec.prompts, "prompts"), read_prompts(spec.evaluate, "evaluate")
    shared = set(prompts) & set(heldout)
    if shared:
        raise InvalidInput("evaluate", f"{len(shared)} held-out prompts are also used for pairs, such as {min(shared)!r}.")
    models = _models(spec.model, spec.score.metrics, settings.weights)
    plan = Plan(spec, prompts, heldout, models)
    name = run_id(spec, prompts, heldout, {part: model.version for part, model in models.items()})
    return plan, settings.runs / name


def _recorded_plan(folder: Path, settings: Settings) -> Plan:
    """The plan of a begun run from its record; the spec and the prompts' files are not needed any more.

    Raises:
        InvalidInput: the weights are not those the run began with.
    """
    from orchestrator.recipes.artaug import Plan
    from orchestrator.spec import RunSpec
    from sfumato.errors import InvalidInput

    record = json.loads((folder / RECORD).read_text())
    spec = RunSpec.model_validate(record["spec"])
    models = _models(spec.model, spec.score.metrics, settings.weights)
    changed = [name for name, model in models.items() if model.version != record["models"][name]["version"]]
    if changed:
        raise InvalidInput("resume", f"the weights of {', '.join(changed)} changed since the run began.", hint="Start a new run.")
    return Plan(spec, tuple(record["prompts"]), tuple(record["heldout"]), models)


def _models(name: str, metrics: tuple[str, ...], weights_root: Path | None) -> dict[str, Model]:
    """Folder and version of the generator, the understanding module and the scorers."""
    import hashlib

    from orchestrator.recipes.artaug import Model
    from sfumato.runtime.versions import model_version
    from sfumato.vista import weights

    root = (weights_root or weights.ROOT).resolve()
    generator = weights.locate("generator", root) if name == "vista" else Path(name)
    understanding = weights.locate("understanding", root)
    parts = [weights.locate(part, root) for part in sorted({"clip", *metrics})]
    scorers = hashlib.sha256("".join(model_version(part) for part in parts).encode()).hexdigest()
    return {
        "generator": Model(model_version(generator), str(generator.resolve())),
        "understanding": Model(model_version(understanding), str(understanding)),
        "scorers": Model(scorers, str(root)),
    }


def _execute(plan: Plan, folder: Path, settings: Settings) -> None:
    from rich.console import Console

    from orchestrator import engine
    from orchestrator.recipes import artaug
    from orchestrator.report import write_report
    from orchestrator.transport import LocalTransport
    from sfumato.cli.progress import RunProgress
    from sfumato.runtime.artifacts import ArtifactStore

    console = Console(stderr=True)
    started = time.monotonic()
    artifacts = ArtifactStore(settings.artifacts_url)
    folder.mkdir(parents=True, exist_ok=True)
    _record(plan, folder, finished=False)
    console.print(f"run [bold]{folder.name}[/bold]")
    try:
        with (
            RunProgress(console, folder, artifacts) as progress,
            LocalTransport(_services(plan, folder, settings), settings.artifacts_url) as transport,
        ):
            state = engine.run(artaug.STAGES, plan, artaug.start(plan), plan.spec.batch, transport, artifacts, progress.show)
    except KeyboardInterrupt:
        console.print(f"stopped; what is finished is kept. Go on with: sfumato run --resume {folder.name}")
        raise
    if state.fused:
        (folder / "adapter.safetensors").write_bytes(artifacts.get(state.fused))
    page = write_report(plan, state, artifacts, _judged(plan, state, artifacts), folder)
    _record(plan, folder, finished=True)
    console.print(f"{len(state.kept)} of {len(state.samples)} pairs kept; {time.monotonic() - started:.0f} s")
    typer.echo(page)


def _services(plan: Plan, folder: Path, settings: Settings) -> dict[str, LocalService]:
    """The services of this machine; this is the one place that knows their modules."""
    import os

    from orchestrator.transport import LocalService

    grounding = plan.spec.ground
    threads = str(settings.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    workers = settings.workers or (min(os.cpu_count() or 1, 4) if plan.spec.model == "vista" else 1)
    companion, server = None, {"SFUMATO_VLM_URL": settings.vlm_url}
    if grounding.backend == "vllm" and not settings.vlm_url:
        from sfumato.cli.companion import BackgroundVlm
        from sfumato.cli.vlm import served_model

        model = served_model(grounding.profile, Path(plan.models["understanding"].path))
        companion = BackgroundVlm(model, folder / "vllm.log", settings.threads)
        server = companion.environment
    return {
        "generator": LocalService("services.generator.tasks", workers, environment),
        "grounding": LocalService("services.grounding.tasks", 1, environment | server, companion),
        "scoring": LocalService("services.scoring.tasks", 1, environment),
        "trainer": LocalService("services.trainer.tasks", workers, environment),
    }


def _judged(plan: Plan, state: State, artifacts: ArtifactStore) -> dict[str, dict[str, float]] | None:
    """What the independent judge says of the held-out pictures, after the run; only Vista has one."""
    if plan.spec.model != "vista":
        return None
    from sfumato.runtime.images import decode_image
    from sfumato.vista.evaluation.run import judge_run

    images = {"base": [decode_image(artifacts.get(row.base)) for row in state.heldout]}
    if state.fused:
        images["tuned"] = [decode_image(artifacts.get(row.tuned)) for row in state.heldout]
    return judge_run(images, plan.heldout)


def _record(plan: Plan, folder: Path, *, finished: bool) -> None:
    record = _Record(
        spec=plan.spec.model_dump(mode="json"),
        prompts=list(plan.prompts),
        heldout=list(plan.heldout),
        models={name: asdict(model) for name, model in plan.models.items()},
        finished=finished,
    )
    temporary = folder / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)


@dataclass(frozen=True, slots=True)
class _Record:
    """What ``--resume`` needs: the run without its files."""

    spec: dict
    prompts: list[str]
    heldout: list[str]
    models: dict
    finished: bool
