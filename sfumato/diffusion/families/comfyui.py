"""What ComfyUI's nodes need to know of a family. Data only: this module can be imported without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComfyUINodes:
    """The nodes and files with which ComfyUI loads a family's models.

    Attributes:
        latent: the node that makes the empty latents.
        files: the model's published file by the model's name on the hub: a whole checkpoint, or the denoiser where ``text`` is given.
        text: the published files of the two text encoders and their type, for denoisers without them.
        autoencoder: the published file of the autoencoder, for denoisers without it.
    """

    latent: str
    files: Mapping[str, str]
    text: tuple[str, str, str] | None = None
    autoencoder: str = ""
