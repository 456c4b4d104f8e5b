"""One patch for all images: each step draws images and views, and climbs the mean loss over them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.attacks.base import Ascent, PatchResult, Progress, Seed, climb, mean, seed_key
from edgeq.attacks.eot import EOT, apply, draw_views
from edgeq.attacks.goal import Goal, Loss, Victim
from edgeq.attacks.patch import to_bytes
from edgeq.data.seeds import generator
from edgeq.errors import InputError


@dataclass(frozen=True)
class Universal:
    """How a universal patch is made.

    Attributes:
        size: Side of the patch in pixels.
        ascent: Steps.
        eot: Views that it must survive.
        loss: What is climbed.
        batch_size: Images per step.
    """

    size: int
    ascent: Ascent
    eot: EOT
    loss: Loss
    batch_size: int


def universal_patch(
    victim: Victim, images: Tensor, goal: Goal, choices: Universal, *, seed: Seed, progress: Progress | None
) -> PatchResult:
    """Return a patch that raises the mean loss over all images and views; images of their own target are left out."""
    if goal.targets is not None:
        usable = (goal.labels != goal.targets).nonzero()[:, 0]
        if len(usable) == 0:
            raise InputError("expected images of other classes than the target, got none; add some")
        images, goal = images[usable], goal.at(usable)
    shape, size = (images.shape[2], images.shape[3]), choices.size
    gen = generator("universal", seed_key(seed))
    start = torch.rand(1, images.shape[1], size, size, generator=gen, dtype=images.dtype).to(images.device)
    order = _Order(len(images), gen)
    queries = 0

    def score(patch: Tensor, _step: int) -> tuple[Tensor, Tensor]:
        nonlocal queries
        index = order.take(choices.batch_size).to(images.device)
        views = draw_views(choices.eot, len(index), size=size, image_size=shape, gen=gen)
        shown = apply(images[index], patch, views)
        queries += len(index)
        return goal.at(index).loss(victim(shown), choices.loss), shown

    done = climb(start, score, choices.ascent, progress=progress)
    with torch.no_grad():
        patch = to_bytes(done.patch)
        losses, _ = score(patch, 0)
    return PatchResult(
        patch,
        None,
        choices.eot,
        losses.mean().double()[None],
        torch.tensor([queries], device=images.device),
        tuple(done.trace),
        mean(done.flats),
        mean(done.deads),
    )


class _Order:
    """Images in random order, all of them before any comes again."""

    def __init__(self, count: int, gen: torch.Generator) -> None:
        self.count, self.gen = count, gen
        self.left = torch.empty(0, dtype=torch.int64)

    def take(self, batch: int) -> Tensor:
        while len(self.left) < min(batch, self.count):
            self.left = torch.cat([self.left, torch.randperm(self.count, generator=self.gen)])
        taken, self.left = self.left[:batch], self.left[batch:]
        return taken
