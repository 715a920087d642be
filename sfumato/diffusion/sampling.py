"""From requests to final latents and pictures: check, group, batch, paint, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion.families.family import Family
from sfumato.diffusion.limits import check_request
from sfumato.diffusion.regional import plan_branches, regional_average
from sfumato.types import GenerateRequest, Image


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A painted picture, the packed latents ``[tokens, channels]`` it was decoded from, and its seed."""

    image: Image
    latents: Tensor
    seed: int


def paint(
    family: Family,
    requests: Sequence[GenerateRequest],
    *,
    max_batch: int,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Picture]:
    """Paint every request, in order; those that differ only in prompt, seed and regions share forwards.

    Args:
        family: the model.
        requests: any mixture of sizes, steps, guidance and numbers of regions.
        max_batch: rows (pictures and region branches) in one forward at most.
        on_step: told ``(steps done, steps in all)`` over all batches.

    Raises:
        InvalidInput: a request the model cannot serve; checked before anything is painted.
    """
    for request in requests:
        check_request(request, family.limits, family.count_tokens)
    batches = cut_batches(requests, max_batch)
    total = sum(requests[batch[0]].steps for batch in batches)
    done = 0

    def step_ended() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    pictures: dict[int, Picture] = {}
    for batch in batches:
        members = [requests[index] for index in batch]
        branches = plan_branches(members, family)
        with regional_average(family, branches, max_batch):
            latents = family.paint(members, step_ended)
        images = family.decode(latents, members[0].width, members[0].height)
        for index, member, image, final in zip(batch, members, images, latents, strict=True):
            pictures[index] = Picture(image=image, latents=final.detach().cpu(), seed=member.seed)
    return [pictures[index] for index in range(len(requests))]


def cut_batches(requests: Sequence[GenerateRequest], max_batch: int) -> list[list[int]]:
    """Indices of the requests that share one pipeline call: same size, steps and guidance, at most ``max_batch``."""
    groups: dict[tuple[int, int, int, float], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault((request.width, request.height, request.steps, request.guidance_scale), []).append(index)
    return [group[start : start + max_batch] for group in groups.values() for start in range(0, len(group), max_batch)]
