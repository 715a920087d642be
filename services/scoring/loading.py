"""The weights of a metric by its name, and how a scorer is made of them.

A metric's weights are Vista's own, which come with the package, or those that a run names for it: a folder, or a model on
the Hugging Face hub. Only safetensors are read, never a pickle (``sfumato convert`` makes the one of the other).

    clip       a CLIP model; the paper's is openai/clip-vit-large-patch14
    aesthetic  ``model.safetensors`` with LAION's ``layers.0.weight`` ..., on the CLIP that is named for ``clip``
    pickscore  a CLIP model; yuvalkirstain/PickScore_v1
    mps        a CLIP model, ``attention.safetensors`` and ``mps.json``
    hpsv2      a CLIP model; Vista has none of its own
    nudenet    nothing: the model is in the package nudenet
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from transformers.utils import logging as transformers_logging

from services.scoring.clip import AestheticScorer, ClipEncoder, CosineScorer
from services.scoring.metric import Scorer
from services.scoring.mps import CrossModel, MpsScorer, PublishedPreference
from services.scoring.nudenet import NudeNetScorer
from services.scoring.sources import Source, named, shipped
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.models.builtin import BUILT_IN
from sfumato.scoring.networks import AestheticPredictor, ConditionedAttention, MultiPreference, width_of

VISTA = ("aesthetic", "clip", "pickscore", "mps")
"""Metrics that Vista has weights for: ``vista-clip`` ... mean these even if a run names others for ``clip``."""
METRICS = (*VISTA, "hpsv2", "nudenet")
KNOWN = (*METRICS, *(f"vista-{name}" for name in VISTA))

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The source of tokenizer and image processor for CLIP ViT-H/14 models that are published without, such as PickScore."""


def load_scorers(
    names: Sequence[str] = VISTA,
    root: Path | None = None,
    models: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> list[Scorer]:
    """The scorers of these metrics, in their order.

    Args:
        names: of `KNOWN`.
        root: where Vista's weights lie, the package's own where absent; their files' checksums are verified.
        models: a folder or hub model for each metric that is not to use Vista's weights.
        device: where they compute (NudeNet: always on the CPU).

    Raises:
        InvalidInput: an unknown metric; a model for a metric that takes none; ``aesthetic`` without its CLIP.
        MissingWeights, BrokenWeights: files are absent or damaged.
    """
    return Scorers(root, models, device).load(names)


def check_metrics(names: Sequence[str], models: Mapping[str, str]) -> None:
    """Refuse metrics and models that `load_scorers` cannot load, before a file is read.

    Raises:
        InvalidInput: see `load_scorers`.
    """
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise InvalidInput("metrics", f"unknown: {', '.join(unknown)}.", hint=f"Known metrics: {', '.join(KNOWN)}.")
    able = [name for name in METRICS if name != "nudenet"]
    unknown = [name for name in models if name not in able]
    if unknown:
        raise InvalidInput("models", f"no model can be named for {', '.join(unknown)}.", hint=f"Metrics that take one: {', '.join(able)}.")
    if "aesthetic" in models and "clip" not in models:
        hint = "Name under 'clip' the CLIP that the head was fitted to: openai/clip-vit-large-patch14 for LAION's."
        raise InvalidInput("models", "'aesthetic' is a head on a CLIP model, and none is named.", hint=hint)


class Scorers:
    """The scorers of one set of weights, loaded at their first use; metrics on the same CLIP share it.

    The arguments are those of `load_scorers`.
    """

    def __init__(self, root: Path | None = None, models: Mapping[str, str] | None = None, device: str = "cpu") -> None:
        self.root, self.models, self.device = root or BUILT_IN["vista"].root, models or {}, device
        self._encoders: dict[Path, ClipEncoder] = {}
        self._scorers: dict[str, Scorer] = {}

    def load(self, names: Sequence[str]) -> list[Scorer]:
        """The scorers of these metrics, in their order. Raises: see `load_scorers`."""
        check_metrics(names, self.models)
        for name in names:
            if name not in self._scorers:
                self._scorers[name] = self._load(name)
        return [self._scorers[name] for name in names]

    def _load(self, name: str) -> Scorer:
        metric = name.removeprefix("vista-")
        if metric == "nudenet":
            return NudeNetScorer.load()
        models = self.models if metric == name else {}
        source = self._source(metric, models)
        if metric == "aesthetic":
            clip = self._source("clip", models)
            return AestheticScorer(name, self._encoder(clip), load_head(source), f"{source.version}+{clip.version}")
        encoder = self._encoder(source)
        if metric == "mps":
            return load_mps(name, source, encoder)
        scale = encoder.model.logit_scale.exp().item() if metric == "pickscore" else 100.0
        return CosineScorer(name, encoder, scale, source.version)

    def _source(self, metric: str, models: Mapping[str, str]) -> Source:
        if metric in models:
            return named(models[metric])
        if metric in VISTA:
            return shipped(metric, self.root)
        hint = (
            "Fetch HPS_v2.1_compressed.pt from xswu/HPSv2 on the hub, then: "
            "sfumato convert HPS_v2.1_compressed.pt FOLDER --as hpsv2, and name the folder for 'hpsv2' (score.models in a spec)."
        )
        raise MissingWeights(f"Vista has no weights for the metric {metric!r}.", hint=hint)

    def _encoder(self, source: Source) -> ClipEncoder:
        if source.folder not in self._encoders:
            self._encoders[source.folder] = load_encoder(source, self.device)
        return self._encoders[source.folder]


def load_encoder(source: Source, device: str = "cpu", processor: str = PROCESSOR) -> ClipEncoder:
    """The CLIP in a folder, in single precision. Where it has no tokenizer or image processor, that of ``processor``.

    Raises:
        BrokenWeights: a file is absent or cannot be read.
        MissingWeights: the folder has no processor, and ``processor`` is not available.
    """
    with _quiet():
        options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        model = source.read(lambda: CLIPModel.from_pretrained(source.folder, **options))
    try:
        words = source.folder if _has(source, "tokenizer.json", "vocab.json") else processor
        tokenizer = AutoTokenizer.from_pretrained(words)
        # Pictures are resized by Pillow, as in the training of these models, whether or not torchvision is installed.
        eyes = source.folder if _has(source, "preprocessor_config.json") else processor
        pictures = AutoImageProcessor.from_pretrained(eyes, backend="pil")
    except (OSError, ValueError) as error:
        what = f"the CLIP model in {source.folder} has no usable tokenizer or image processor, and {processor} is not available."
        raise MissingWeights(what, hint=f"Where there is a network: hf download {processor} --include '*.json' '*.txt'") from error
    return ClipEncoder(model.to(device), tokenizer, pictures)  # pyright: ignore[reportArgumentType]


def load_head(source: Source) -> AestheticPredictor:
    """LAION's layers of whatever width, from ``model.safetensors``."""

    def read() -> AestheticPredictor:
        state = load_file(source.folder / "model.safetensors")
        head = AestheticPredictor(state["layers.0.weight"].shape[1])
        head.load_state_dict({name: value.float() for name, value in state.items()})
        return head

    return source.read(read)


def load_mps(name: str, source: Source, encoder: ClipEncoder) -> MpsScorer:
    """An MPS folder's ``attention.safetensors`` and ``mps.json`` on its CLIP: Vista's network, or the published one, which
    has a ``threshold`` in its ``mps.json``.
    """

    def read() -> MpsScorer:
        config = json.loads((source.folder / "mps.json").read_text())
        state = {key: value.float() for key, value in load_file(source.folder / "attention.safetensors").items()}
        clip, condition = encoder.model, config["conditions"]["overall"]
        if "threshold" in config:
            cross_model = CrossModel(width_of(clip), config["layers"], config["heads"])
            cross_model.load_state_dict(state)
            return MpsScorer(name, encoder, PublishedPreference(clip, cross_model, config["threshold"]), condition, source.version)
        attention = ConditionedAttention(width_of(clip), config["heads"])
        attention.load_state_dict(state)
        return MpsScorer(name, encoder, MultiPreference(clip, attention), condition, source.version)

    return source.read(read)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers while a model loads; its setting is put back."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _has(source: Source, *names: str) -> bool:
    return any((source.folder / name).is_file() for name in names)
