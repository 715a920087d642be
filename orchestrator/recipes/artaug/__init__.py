"""ArtAug (paper section 3): the stages stand here in the order in which a sample passes them.

A prompt is made definite; X is painted from it and a seed; a VLM says what would please, region by region; X' is painted from the
same prompt and seed under that advice; the pair is kept when X' is better and nobody objects. Every kept pair becomes an adapter,
their mean is fused as strongly as the tuning prompts bear, and the held-out prompts tell what came of it. Then again, on the fused
model, until too few pairs survive.
"""

from __future__ import annotations

from orchestrator.engine import Each, Gather, Loop, Stage
from orchestrator.recipes.artaug import judging, measuring, pairs, tuning
from orchestrator.recipes.artaug.state import HeldOut, Iteration, Model, Painted, Plan, Sample, State, Trial, again, start

__all__ = ["STAGES", "HeldOut", "Iteration", "Model", "Painted", "Plan", "Sample", "State", "Trial", "start"]

PAIRS: tuple[Stage, ...] = (
    Each("refine", "grounding", pairs.refine, pairs.absorb_refined, pairs.without),  # section 4.1.1
    Each("generate", "generator", pairs.generate, pairs.absorb_generated, pairs.without),  # X, section 3.1
    Each("ground", "grounding", pairs.ground, pairs.absorb_grounded, pairs.without),  # u(X) = {(P_i, M_i)}
    Each("regenerate", "generator", pairs.regenerate, pairs.absorb_regenerated, pairs.without),  # X'
    Each("score", "scoring", pairs.score, pairs.absorb_scored, pairs.without),  # section 3.2
    Each("resemble", "scoring", pairs.resemble, pairs.absorb_resemblance, pairs.without),  # Figure 4
    Each("review", "grounding", pairs.review, pairs.absorb_review, pairs.without),
    Gather("show", pairs.show, pairs.absorb_shown, by_person=True),
    Gather("filter", tuning.nothing, tuning.select),
)
TRIAL: tuple[Stage, ...] = (
    Gather("train", tuning.train, tuning.absorb_trained, without=tuning.without),  # phi_1, phi_2, section 3.3
    Gather("average", tuning.average, tuning.absorb_averaged),  # phi, section 3.4
    Gather("fuse", tuning.fuse, tuning.absorb_fused),  # theta + alpha * phi, for every alpha that is tried
    Gather("tune", tuning.repaint, tuning.absorb_repainted),
    Gather("choose", tuning.rate, tuning.choose),  # alpha
    Gather("evaluate", measuring.repaint, measuring.absorb_repainted),  # section 4.1
    Gather("measure", measuring.rate, measuring.absorb_rated),
)
STAGES: tuple[Stage, ...] = (
    Loop((*PAIRS, *TRIAL, Gather("finish", tuning.product, tuning.conclude)), again),
    Gather("naive", tuning.nothing, tuning.begin_naive),  # section 4.3.2, Table 2
    *TRIAL,
    Gather("compare", pairs.look_again, tuning.conclude_naive),
    Gather("judge", judging.ask, judging.absorb),  # for the report
)
