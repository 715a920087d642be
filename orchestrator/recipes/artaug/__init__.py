"""ArtAug (paper section 3): the stages in the order in which a sample passes them.

An ambiguous prompt is refined; X is generated from it and a seed; a VLM suggests improvements by region; X' is generated from the same
prompt and seed under that advice; the pair is kept if X' is better and no reviewer rejects it. An adapter is trained on every kept pair;
their mean is fused with the alpha that the tuning prompts select, and the held-out prompts measure the result. The next iteration
starts from the fused model, until too few pairs are kept.

Other modules of this folder import `state` and each other, never this file.
"""

from __future__ import annotations

from orchestrator.engine.stages import Barrier, Loop, PerBatch, Phase, Stage
from orchestrator.recipes.artaug import judging, measuring, pairs, tells, tuning
from orchestrator.recipes.artaug.card import CARD
from orchestrator.recipes.artaug.files import files, headline
from orchestrator.recipes.artaug.lineage import products
from orchestrator.recipes.artaug.spec import INPUTS, ArtAugSpec, needed_models, review
from orchestrator.recipes.artaug.state import COMPARISON, ITERATION, again, conclude, shown, start
from orchestrator.recipes.artaug.work import ArtAugCosts, Counts
from orchestrator.recipes.recipe import Recipe

PAIRS: tuple[Stage, ...] = (
    PerBatch(  # section 4.1.1
        "refine", "grounding", pairs.refine, pairs.absorb_refined, pairs.on_dead_letter, work=Counts.refine
    ),
    PerBatch(  # X, section 3.1
        "generate", "generator", pairs.generate, pairs.absorb_generated, pairs.on_dead_letter, work=Counts.generate
    ),
    PerBatch(  # u(X) = {(P_i, M_i)}
        "ground", "grounding", pairs.ground, pairs.absorb_grounded, pairs.on_dead_letter, tells=tells.GROUND, work=Counts.ground
    ),
    PerBatch(  # X'
        "regenerate", "generator", pairs.regenerate, pairs.absorb_regenerated, pairs.on_dead_letter, work=Counts.regenerate
    ),
    PerBatch(  # section 3.2
        "score", "scoring", pairs.score, pairs.absorb_scored, pairs.on_dead_letter, tells=tells.SCORE, work=Counts.score
    ),
    PerBatch(  # Figure 4
        "similarity", "scoring", pairs.similarity, pairs.absorb_similarity, pairs.on_dead_letter, tells=tells.SIMILARITY, work=Counts.score
    ),
    PerBatch("vlm_review", "grounding", pairs.vlm_review, pairs.absorb_vlm_review, pairs.on_dead_letter, work=Counts.vlm_review),
    Barrier("human_review", pairs.human_review, pairs.absorb_human_review, asks=pairs.questions, work=Counts.human_review),
    Barrier("filter", tuning.nothing, pairs.select, tells=tells.FILTER),
)
TUNING: tuple[Barrier, ...] = (
    Barrier(  # phi_1, phi_2, section 3.3
        "train",
        tuning.train,
        tuning.absorb_trained,
        tuning.on_dead_letter,
        services=("trainer", "joint"),
        tells=tells.TRAIN,
        work=Counts.train,
    ),
    Barrier(  # phi, section 3.4
        "average", tuning.average, tuning.absorb_averaged, services=("trainer",), tells=tells.AVERAGE, work=Counts.one_task
    ),
    # theta + alpha * phi, for every candidate alpha
    Barrier("stack", tuning.stack, tuning.absorb_stacked, services=("trainer",), work=Counts.stack),
    Barrier("paint_tuning", tuning.repaint, tuning.absorb_repainted, services=("generator",), work=Counts.paint_tuning),
    Barrier("choose_alpha", tuning.rate, tuning.choose_alpha, services=("scoring",), tells=tells.CHOOSE_ALPHA, work=Counts.choose_alpha),
    # section 4.1
    Barrier("paint_heldout", measuring.repaint, measuring.absorb_repainted, services=("generator",), work=Counts.paint_heldout),
    Barrier(
        "score_heldout", measuring.rate, measuring.absorb_rated, services=("scoring",), tells=tells.SCORE_HELDOUT, work=Counts.score_heldout
    ),
)
CONCLUDE = Barrier("conclude", tuning.product, tuning.conclude, services=("trainer",), tells=tells.CONCLUDE, work=Counts.one_task)
STAGES: tuple[Stage, ...] = (
    Loop(ITERATION, (*PAIRS, *TUNING, CONCLUDE), again, most=lambda spec: spec.stop.max_iterations),
    Phase(
        COMPARISON,
        (
            Barrier("naive", tuning.nothing, tuning.begin_naive),  # section 4.3.2, Table 2
            *tuning.compared(TUNING),
            Barrier(
                "ground_again", judging.ground_again, tuning.conclude_naive, services=("grounding",), work=Counts.ground_again
            ),
            Barrier("judge", judging.judge, judging.absorb_judged, services=("scoring",), work=Counts.judge),  # for the report
        ),
    ),
)

RECIPE = Recipe(
    name="artaug",
    spec=ArtAugSpec,
    inputs=INPUTS,
    models=needed_models,
    stages=STAGES,
    start=start,
    conclude=conclude,
    files=files,
    headline=headline,
    costs=ArtAugCosts,
    products=products,
    shown=shown,
    review=review,
    card=CARD,
)
