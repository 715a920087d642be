"""Regional averaging (ArtAug section 3.1) as a hook on the denoiser of an unmodified pipeline.

At every step, element by element in latent space, on whatever the model predicts (noise or velocity)::

    prediction = (f(P) + sum_i f(P_i) * M_i) / (1 + sum_i M_i)

The branches of all samples of a batch go through the denoiser together: one forward where the paper counts n + 1. With
classifier-free guidance the prompt's prediction is mixed, and the one unconditional branch is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from sfumato.diffusion.arguments import bound, flatten, unflatten
from sfumato.diffusion.families.family import Family
from sfumato.types import GenerateRequest

HOOK = "sfumato_regional_average"


@dataclass(frozen=True, slots=True)
class Branches:
    """The region branches of one batch of ``samples`` pictures; shapes in the layout of the family's latents.

    ``owner[r]`` is the sample that branch ``r`` belongs to, ``until[r]`` the share of the schedule in which it acts;
    ``conditions`` holds the text arguments of the denoiser's forward, ``[branches, ...]``; ``masks`` is ``[branches, ...]``;
    ``prompt_weight`` is ``[samples, ...]``: one, plus the masks of regions that repeat the sample's own prompt.
    """

    owner: tuple[int, ...]
    until: tuple[float, ...]
    conditions: dict[str, Tensor]
    masks: Tensor
    prompt_weight: Tensor

    def active(self, progress: float) -> list[int]:
        """The branches that act when ``progress`` of the schedule is done."""
        return [branch for branch, until in enumerate(self.until) if progress < until]

    def average(self, prompt: Tensor, regions: Tensor, active: Sequence[int]) -> Tensor:
        """The formula above for ``prompt`` ``[samples, ...]`` and the predictions ``regions`` of the ``active`` branches.

        A sample without an active branch keeps its prompt's prediction bit for bit.
        """
        precision = torch.promote_types(prompt.dtype, torch.float32)
        mixed = prompt.clone()
        for sample in sorted({self.owner[branch] for branch in active}):
            below = self.prompt_weight[sample].to(prompt.device, precision)
            above = prompt[sample].to(precision) * below
            for row, branch in enumerate(active):  # a fixed order, unlike index_add on a GPU
                if self.owner[branch] == sample:
                    mask = self.masks[branch].to(prompt.device, precision)
                    above = above + regions[row].to(precision) * mask
                    below = below + mask
            mixed[sample] = (above / below).to(prompt.dtype)
        return mixed


def plan_branches(requests: Sequence[GenerateRequest], family: Family) -> Branches | None:
    """Encode the region prompts of a batch once and lay out its branches; ``None`` when it needs none.

    Regions of one picture that share a prompt share a branch, and those that repeat its own prompt only weigh it more: the
    formula is linear in the masks, so this saves forwards and changes nothing.
    """
    width, height = requests[0].width, requests[0].height
    weight = torch.ones(len(requests), *family.mask((0, 0, width, height), width, height).shape)
    masks: dict[tuple[int, str], Tensor] = {}
    for sample, request in enumerate(requests):
        for region in request.regions if request.regional_steps > 0 else ():
            if region.strength == 0:
                continue
            mask = region.strength * family.mask(region.box, width, height, request.soft_edges)
            if region.prompt == request.prompt:
                weight[sample] += mask
            else:
                key = (sample, region.prompt)
                masks[key] = masks[key] + mask if key in masks else mask
    if not masks:
        return None
    texts = sorted({prompt for _, prompt in masks})
    rows = torch.tensor([texts.index(prompt) for _, prompt in masks], dtype=torch.long)
    return Branches(
        owner=tuple(sample for sample, _ in masks),
        until=tuple(requests[sample].regional_steps for sample, _ in masks),
        conditions={name: tensor[rows.to(tensor.device)] for name, tensor in family.encode(texts).items()},
        masks=torch.stack(list(masks.values())),
        prompt_weight=weight,
    )


class RegionalAverage(ModelHook):
    """Replaces the denoiser's forward by the forwards of all branches and their average.

    Rows are, in this order: the unconditional ones if there is classifier-free guidance, one for each of ``samples``, one for each
    active branch. At most ``max_rows`` go through the denoiser at once. ``per_sample`` names the forward's arguments with a row per
    sample, latents first; a dictionary among the arguments (SDXL's added conditions) is looked into.
    """

    def __init__(self, branches: Branches | None, samples: int, per_sample: Sequence[str], max_rows: int) -> None:
        super().__init__()
        self.branches, self.samples, self.max_rows = branches, samples, max_rows
        self.per_sample = tuple(per_sample)
        # The share of the schedule that is done; set after every step of the pipeline.
        self.progress = 0.0

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Forward all rows, average those of the prompts, answer as the denoiser does."""
        forward: Any = self.fn_ref.original_forward
        arguments = bound(type(module), args, kwargs)
        active = [] if self.branches is None else self.branches.active(self.progress)
        # Skip-layer guidance (SD3) asks for the prompt's prediction by a weaker model: there is nothing to mix.
        if arguments.get("skip_layers") is not None:
            return forward(**arguments)
        flat, nested = flatten(arguments)
        count = len(flat[self.per_sample[0]])
        if not active and count <= self.max_rows:
            return forward(**arguments)
        rows = self._rows(flat, count, active)
        outputs = []
        for start in range(0, count + len(active), self.max_rows):
            part = {name: tensor[start : start + self.max_rows] for name, tensor in rows.items()}
            with _cache_context(module, f"regional_{start}"):
                outputs.append(forward(**unflatten(flat | part, nested)))
        prediction = torch.cat([output[0] for output in outputs])
        if self.branches is not None and active:
            first = count - self.samples  # the unconditional rows stay as they are
            mixed = self.branches.average(prediction[first:count], prediction[count:], active)
            prediction = torch.cat([prediction[:first], mixed])
        return (prediction,) if isinstance(outputs[0], tuple) else type(outputs[0])(sample=prediction)

    def _rows(self, flat: dict[str, Any], count: int, active: Sequence[int]) -> dict[str, Tensor]:
        """Every argument with a row per sample; below it the branches' rows: their own texts, the rest repeated from their samples."""
        rows = {name: flat[name] for name in self.per_sample if isinstance(flat.get(name), Tensor) and flat[name].ndim > 0}
        if self.branches is None or not active:
            return rows
        owners = torch.tensor([count - self.samples + self.branches.owner[branch] for branch in active])
        chosen = torch.tensor(active)
        for name, value in rows.items():
            text = self.branches.conditions.get(name)
            below = value[owners.to(value.device)] if text is None else text[chosen.to(text.device)].to(value)
            rows[name] = torch.cat([value, below])
        return rows


def _cache_context(module: nn.Module, name: str) -> Any:
    """Caches between steps (diffusers' feature caches) must not mix chunks, nor steps with and without advice."""
    context = getattr(module, "cache_context", None)
    return nullcontext() if context is None else context(name)


@contextmanager
def regional_average(family: Family, branches: Branches | None, samples: int, rows: int, max_rows: int) -> Iterator[RegionalAverage | None]:
    """While open, the family's denoiser answers with the regional average, at most ``max_rows`` rows a forward.

    ``rows`` is what the pipeline itself will ask for at once. Without branches and where that fits, the denoiser is left as it is.
    """
    if branches is None and rows <= max_rows:
        yield None
        return
    registry = HookRegistry.check_if_exists_or_initialize(family.denoiser)
    hook = RegionalAverage(branches, samples, family.per_sample, max_rows)
    registry.register_hook(hook, HOOK)
    try:
        yield hook
    finally:
        registry.remove_hook(HOOK, recurse=False)
