"""What each method says of itself on a model card, by the name of its recipe."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.recipes.artaug.card import CARD as ARTAUG
from sfumato.export.card import MethodCard

CARDS: Mapping[str, MethodCard] = {"artaug": ARTAUG}
