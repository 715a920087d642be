"""Regional averaging (ArtAug section 3.1) as a hook on the denoiser of an unmodified pipeline.

At every step, element by element in latent space::

    velocity = (v(P) + sum_i v(P_i) * M_i) / (1 + sum_i M_i)

The branches of all samples of a batch go through the denoiser together: one forward where the paper counts n + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from sfumato.diffusion.families.family import Family
from sfumato.types import GenerateRequest

HOOK = "sfumato_regional_average"


@dataclass(frozen=True, slots=True)
class Branches:
    """The region branches of one batch of ``samples`` pictures.

    ``owner[r]`` is the sample that branch ``r`` belongs to; ``conditions`` holds the text arguments of the denoiser's forward,
    ``[branches, ...]``; ``masks`` is ``[branches, tokens, channels]``; ``prompt_weight`` is ``[samples, tokens, channels]``:
    one, plus the masks of regions that repeat the sample's own prompt.
    """

    owner: tuple[int, ...]
    conditions: dict[str, Tensor]
    masks: Tensor
    prompt_weight: Tensor

    def average(self, prompt: Tensor, regions: Tensor) -> Tensor:
        """The formula above for ``prompt`` ``[samples, tokens, channels]`` and ``regions`` ``[branches, tokens, channels]``."""
        total = self.prompt_weight.to(prompt.device).clone()
        mixed = prompt.float() * total
        masks = self.masks.to(prompt.device)
        for branch, sample in enumerate(self.owner):  # a fixed order, unlike index_add on a GPU
            mixed[sample] += regions[branch].float() * masks[branch]
            total[sample] += masks[branch]
        return (mixed / total).to(prompt.dtype)


def plan_branches(requests: Sequence[GenerateRequest], family: Family) -> Branches | None:
    """Encode the region prompts of a batch once and lay out its branches; ``None`` when there is no region at all.

    Regions of one picture that share a prompt share a branch, and those that repeat its own prompt need none: the formula
    is linear in the masks, so this saves forwards and changes nothing.
    """
    shape = family.mask((0, 0, requests[0].width, requests[0].height), requests[0].width, requests[0].height).shape
    weight = torch.ones(len(requests), *shape)
    masks: dict[tuple[int, str], Tensor] = {}
    for sample, request in enumerate(requests):
        for region in request.regions:
            mask = family.mask(region.box, request.width, request.height)
            if region.prompt == request.prompt:
                weight[sample] += mask
            else:
                key = (sample, region.prompt)
                masks[key] = masks[key] + mask if key in masks else mask
    if not masks and bool((weight == 1).all()):
        return None
    texts = sorted({prompt for _, prompt in masks})
    rows = torch.tensor([texts.index(prompt) for _, prompt in masks], dtype=torch.long)
    encoded = family.encode(texts) if texts else {}
    return Branches(
        owner=tuple(sample for sample, _ in masks),
        conditions={name: tensor[rows.to(tensor.device)] for name, tensor in encoded.items()},
        masks=torch.stack(list(masks.values())) if masks else torch.zeros(0, *shape),
        prompt_weight=weight,
    )


class RegionalAverage(ModelHook):
    """Replaces the denoiser's forward by the forwards of all branches and their average.

    ``per_sample`` names the forward's arguments with a row per sample; at most ``max_batch`` rows go in one forward.
    """

    def __init__(self, branches: Branches, per_sample: Sequence[str], max_batch: int) -> None:
        super().__init__()
        self.branches = branches
        self.per_sample = tuple(per_sample)
        self.max_batch = max_batch

    def new_forward(self, module: nn.Module, **kwargs: Any) -> Any:
        """Forward all rows (first every sample's own prompt, then the branches), average, return as the denoiser does."""
        forward: Any = self.fn_ref.original_forward
        branches = self.branches
        if not branches.owner:
            output = forward(**kwargs)
            return self._replace(output, branches.average(output[0], output[0][:0]))
        rows = self._rows(kwargs)
        samples = kwargs["hidden_states"].shape[0]
        count = samples + len(branches.owner)
        outputs = []
        for start in range(0, count, self.max_batch):
            part = {name: tensor[start : start + self.max_batch] for name, tensor in rows.items()}
            with self._cache_context(module, start, count):
                outputs.append(forward(**{**kwargs, **part}))
        velocity = torch.cat([output[0] for output in outputs])
        return self._replace(outputs[0], branches.average(velocity[:samples], velocity[samples:]))

    def _rows(self, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Every argument that differs between rows: per-sample ones repeated for the branches, texts put after the prompts'."""
        rows = {}
        for name in self.per_sample:
            value = kwargs.get(name)
            if value is not None:
                owner = torch.tensor(self.branches.owner, device=value.device)
                rows[name] = torch.cat([value, value[owner]])
        for name, text in self.branches.conditions.items():
            rows[name] = torch.cat([kwargs[name], text.to(kwargs[name])])
        return rows

    def _cache_context(self, module: nn.Module, start: int, count: int) -> Any:
        """Caches between steps (diffusers' feature caches) must not mix chunks: each gets a context of its own."""
        context = getattr(module, "cache_context", None)
        return nullcontext() if context is None or count <= self.max_batch else context(f"regional_{start}")

    @staticmethod
    def _replace(output: Any, velocity: Tensor) -> Any:
        return (velocity,) if isinstance(output, tuple) else type(output)(sample=velocity)


@contextmanager
def regional_average(family: Family, branches: Branches | None, max_batch: int) -> Iterator[None]:
    """While open, the family's denoiser answers with the regional average. Without branches nothing is touched."""
    if branches is None:
        yield
        return
    registry = HookRegistry.check_if_exists_or_initialize(family.denoiser)
    registry.register_hook(RegionalAverage(branches, family.per_sample, max_batch), HOOK)
    try:
        yield
    finally:
        registry.remove_hook(HOOK, recurse=False)
