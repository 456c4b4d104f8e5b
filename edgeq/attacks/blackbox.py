"""Search by questions alone: many candidates per image and round, the best kept and varied.

A candidate is a point of the unit cube, which a `render` function turns into a patch and a place. The first part of the
rounds draws points uniformly; the rest vary the best point: each coordinate moves with probability 1/2 by a Gaussian
that narrows from WIDE to NARROW, and with probability JUMP it is drawn anew. Only answers (logits) are used. An image
is left alone once its goal is reached, and its questions are counted up to that one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.attacks.base import Progress
from edgeq.attacks.goal import Goal, Victim
from edgeq.attacks.patch import Placement, paste, to_bytes
from edgeq.attacks.perimage import Best

WIDE, NARROW = 0.3, 0.03  # of a coordinate's range
JUMP = 0.1

Render = Callable[[Tensor, Tensor], tuple[Tensor, Placement]]  # image indices, points -> patches, places


@dataclass(frozen=True)
class Budget:
    """How many questions.

    Attributes:
        rounds: Rounds.
        proposals: Candidates per image and round.
        explore: Fraction of the rounds that draw uniformly.
        batch_size: Candidates at once; the result does not depend on it.
    """

    rounds: int
    proposals: int
    explore: float
    batch_size: int


def random_search(
    victim: Victim,
    images: Tensor,
    goal: Goal,
    render: Render,
    *,
    dims: int,
    size: int,
    budget: Budget,
    gen: torch.Generator,
    progress: Progress | None,
) -> Best:
    """Return the best patch and place of each image."""
    best = Best.none(images, size)
    n, every = len(images), budget.proposals
    point = torch.zeros(n, dims)
    members = 1
    for t in range(budget.rounds):
        points = _propose(point, t, budget, gen)
        active = (~best.reached(members)).nonzero()[:, 0]
        if len(active) == 0:
            break
        for index in active.split(max(1, budget.batch_size // every)):
            candidates = points[index.cpu()].flatten(0, 1).to(images.device)
            patch, places = render(index.repeat_interleave(every), candidates)
            patch = to_bytes(patch)
            repeated, wanted = images[index].repeat_interleave(every, 0), goal.at(index).repeat(every)
            logits = victim(paste(repeated, patch, places))
            members = logits[..., 0, 0].numel()
            rank = wanted.rank(logits).reshape(-1, every)
            top = rank.argmax(1)
            first = (rank >= members).double().argmax(1) + 1  # questions up to the first that reached the goal
            best.queries[index] += torch.where((rank >= members).any(1), first, every)
            row = torch.arange(len(index), device=images.device) * every + top
            better = rank.amax(1) > best.rank[index]
            point[index[better].cpu()] = candidates[row[better]].cpu()
            best.offer(index, patch[row], places.at(row), rank.amax(1))
        if progress is not None:
            progress(t + 1, budget.rounds, float(best.rank.mean()))
    return best


def _propose(point: Tensor, t: int, budget: Budget, gen: torch.Generator) -> Tensor:
    """Return points for every image, whether it is still searched or not, so that others do not change its draws."""
    shape = (len(point), budget.proposals, point.shape[1])
    uniform = torch.rand(shape, generator=gen)
    step = torch.randn(shape, generator=gen)
    coin = torch.rand(shape, generator=gen)
    turn = int(budget.explore * budget.rounds)
    if t < max(turn, 1):
        return uniform
    width = WIDE * (NARROW / WIDE) ** ((t - turn) / max(budget.rounds - turn, 1))
    moved = point[:, None] + width * step * (coin < 0.5)
    return torch.where(coin > 1 - JUMP, uniform, moved).clamp(0.0, 1.0 - 1e-6)
