"""From requests to final latents and pictures: check, group, batch, paint, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families.family import Family
from sfumato.diffusion.limits import check_request
from sfumato.diffusion.previews import Previews, watching
from sfumato.diffusion.regional import plan_branches, regional_average
from sfumato.types import GenerateRequest, Image, Start


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A painted picture, the latents (in the family's layout) it was decoded from, and its seed."""

    image: Image
    latents: Tensor
    seed: int


def paint(
    family: Family,
    requests: Sequence[GenerateRequest],
    budget: RowBudget,
    on_step: Callable[[int, int], None] | None = None,
    previews: Previews | None = None,
) -> list[Picture]:
    """Paint every request, in order; those that differ only in prompt, seed, regions and starting picture share forwards.

    Args:
        family: the model.
        requests: any mixture of sizes, steps, guidance and numbers of regions.
        budget: rows (pictures, unconditional and region branches) in one forward at most.
        on_step: is called with ``(steps done, steps in all)`` over all batches.
        previews: receives the pictures in progress; it does not change them.

    Raises:
        InvalidInput: a request the model cannot serve; checked before anything is painted.
    """
    for request in requests:
        check_request(request, family.limits, family.count_tokens)
    batches = cut_batches(requests, lambda first: budget.rows(first.width, first.height) // family.rows_per_sample(first.guidance_scale))
    progress = _Progress(sum(requests[batch[0]].steps_made for batch in batches), on_step)
    pictures: dict[int, Picture] = {}
    for batch in batches:
        members = [requests[index] for index in batch]

        def shown(clean: Tensor, done: int, batch: Sequence[int] = batch, batched: Sequence[GenerateRequest] = members) -> None:
            for index, image in zip(batch, _decode(family, clean, batched, budget), strict=True):
                assert previews is not None
                previews.tell(index, done, batched[0].steps_made, image)

        latents = _denoise(family, members, budget, progress, previews and previews.every, shown)
        for index, image, final in zip(batch, _decode(family, latents, members, budget), latents, strict=True):
            pictures[index] = Picture(image=image, latents=final.detach().cpu(), seed=requests[index].seed)
    return [pictures[index] for index in range(len(requests))]


def cut_batches(requests: Sequence[GenerateRequest], most: Callable[[GenerateRequest], int]) -> list[list[int]]:
    """Indices of the requests that share one pipeline call: same size, steps and guidance, at most ``most(one of them)``.

    Those with noise on their condition, a negative prompt, a start or a mask have batches of their own, so that they do not change a plain
    picture.
    """
    groups: dict[tuple[int, int, int, float, bool, bool, bool, int], list[int]] = {}
    for index, request in enumerate(requests):
        kind = request.condition_noise > 0, bool(request.negative_prompt), request.masked, request.steps_made
        groups.setdefault((request.width, request.height, request.steps, request.guidance_scale, *kind), []).append(index)
    batches = []
    for group in groups.values():
        size = max(1, most(requests[group[0]]))
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


class _Progress:
    """Steps over all batches; schedulers may take more steps than the request; ``on_step`` is called with those of the request."""

    def __init__(self, total: int, on_step: Callable[[int, int], None] | None) -> None:
        self.total, self.on_step = total, on_step
        self.before = self.reported = 0

    def step_ended(self, done: int, count: int, steps: int) -> None:
        """``done`` of the scheduler's ``count`` steps of a batch that asked for ``steps``."""
        now = self.before + done * steps // count
        if now > self.reported and self.on_step is not None:
            self.on_step(now, self.total)
        self.reported = now
        if done == count:
            self.before = now


def _denoise(
    family: Family,
    members: Sequence[GenerateRequest],
    budget: RowBudget,
    progress: _Progress,
    every: int | None,
    shown: Callable[[Tensor, int], None],
) -> Tensor:
    """Final latents ``[members, ...]`` of one batch; ``shown`` gets predicted latents and steps done, ``every`` so many."""
    first = members[0]
    if first.steps_made == 0:
        return family.encode_pictures([member.start.image for member in members if member.start is not None])
    rows = len(members) * family.rows_per_sample(first.guidance_scale)
    branches = plan_branches(members, family)
    averaging = regional_average(family, branches, len(members), rows, budget.rows(first.width, first.height))
    with averaging as hook, watching(family) if every else nullcontext() as watch:

        def step_ended(done: int, count: int) -> None:
            if hook is not None:
                hook.progress = done / count
            made = done * first.steps_made // count
            if watch is not None and every and done < count and made % every == 0 and made > (done - 1) * first.steps_made // count:
                shown(watch.clean(), made)
            progress.step_ended(done, count, first.steps_made)

        return family.paint(members, step_ended)


def _decode(family: Family, latents: Tensor, members: Sequence[GenerateRequest], budget: RowBudget) -> list[Image]:
    width, height = members[0].width, members[0].height
    parts = latents.split(budget.pictures(width, height))
    images = [image for part in parts for image in family.decode(part, width, height)]
    return [_joined(member.start, image) for member, image in zip(members, images, strict=True)]


def _joined(start: Start | None, painted: Image) -> Image:
    """Outside the mask the pixels of the given picture, without the autoencoder's rounding."""
    return painted if start is None or start.mask is None else np.where(start.mask[..., None] > 127, painted, start.image)
