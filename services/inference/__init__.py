"""Serves the fused model over HTTP: ``bentoml serve services.inference:Inference``, or `sfumato serve`."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """The Bento service, made when it is asked for: engines and their tests need no server."""
    if name == "Inference":
        from services.inference.service import Inference

        return Inference
    raise AttributeError(name)
