"""The texts about ArtAug in model cards."""

from __future__ import annotations

from sfumato.export.card import MethodCard

CARD = MethodCard(
    summary="ArtAug: pictures were repainted under a vision-language model's advice, pairs that improved were kept, and their "
    "difference was trained into a LoRA, iteration after iteration",
    iteration="{kept} of {prompts} pairs kept, alpha {alpha}",
    data=(
        "{pairs} pairs of pictures, all painted by the model itself, of {prompts} prompts; {diverged} diverged in training",
        "no photographs and no pictures by people were used in this training; what the base model was trained on, its own card says",
    ),
    metrics={"alpha": "the strength at which the last iteration was added, chosen on tuning prompts"},
)
