"""The linear layers and 1x1 convolutions of a base model. Reads the headers of weight files only; PyTorch is not needed."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from sfumato.diffusion.families.catalog import DENOISERS
from sfumato.errors import BrokenWeights, MissingWeights


def base_modules(folder: Path) -> dict[str, list[int]]:
    """What an adapter may change in a saved pipeline's denoiser: ``[out, in]`` of linears and 1x1 convolutions by ``<denoiser>.<module>``.

    Raises:
        MissingWeights: ``folder`` has no denoiser.
        BrokenWeights: a weight file cannot be read.
    """
    modules = {}
    for part in DENOISERS:
        for file in sorted((Path(folder) / part).glob("*.safetensors")):
            try:
                with safe_open(file, framework="np") as weights:
                    shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 (not a mapping)
            except (SafetensorError, OSError) as error:
                raise BrokenWeights(f"{file} cannot be read: {error}.", hint="Fetch the model again.") from error
            names = {key: shape for key, shape in shapes.items() if key.endswith(".weight") and tuple(shape[2:]) in ((), (1, 1))}
            modules |= {f"{part}.{key.removesuffix('.weight')}": list(shape[:2]) for key, shape in names.items() if len(shape) > 1}
    if not modules:
        raise MissingWeights(f"{folder} holds no denoiser's weights.", hint="Give the folder that contains model_index.json.")
    return modules
