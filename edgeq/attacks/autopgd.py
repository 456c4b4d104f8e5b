"""Auto-PGD (Croce and Hein, arXiv 2003.01690): an ascent in a ball whose steps halve themselves.

    z = P(x_t + a sign(grad_t)),   x_{t+1} = P(x_t + 3/4 (z - x_t) + 1/4 (x_t - x_{t-1})),   a = 2 eps at first

At checkpoints, which come closer together as the search goes on, an image's a is halved and its search goes on from the
best point so far, if less than three quarters of the steps since the last checkpoint climbed, or if the best has stayed
the same since and a was not halved then.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.attacks.ball import AbstractSearch, AbstractWay, Ball

MOMENTUM = 0.25
CLIMBING = 0.75
FIRST, SHRINK, LEAST = 22, 3, 6  # hundredths of the steps: the first period, what each is shorter by, the last


def checkpoints(steps: int) -> tuple[int, ...]:
    """Return the steps before which each image's search is judged."""
    found, place, period = [], FIRST, FIRST
    while place < 100:
        found.append(math.ceil(place * steps / 100))
        period = max(period - SHRINK, LEAST)
        place += period
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Auto(AbstractWay):
    """So many steps of Auto-PGD."""

    steps: int

    def start(self, ball: Ball) -> "AutoPGD":
        """Return a search."""
        return AutoPGD(ball, self.steps)


class AutoPGD(AbstractSearch):
    """One search for a batch of images.

    Args:
        ball: Where the images may go.
        steps: How many gradients it will see.
    """

    def __init__(self, ball: Ball, steps: int) -> None:
        self.ball, self.judged = ball, checkpoints(steps)
        each = torch.ones(len(ball.centre), device=ball.centre.device)
        self.size = 2 * ball.eps * each
        self.highest = self.highest_then = self.last = -torch.inf * each  # last: the loss of the step before
        self.climbs, self.halved_then = 0 * each, each > 0
        self.since = 0
        self.answer = self.slope = self.before = ball.centre

    def move(
        self, x: Float[Tensor, "n c h w"], losses: Float[Tensor, " n"], grad: Float[Tensor, "n c h w"], t: int
    ) -> Float[Tensor, "n c h w"]:
        """Return the images of step t + 1, given the losses and their gradient at those of step t."""
        losses = losses.nan_to_num(-torch.inf)
        better = losses > self.highest
        if t:
            self.climbs = self.climbs + (losses > self.last)
        self.highest, self.last = torch.where(better, losses, self.highest), losses
        self.answer, self.slope = _where(better, x, self.answer), _where(better, grad, self.slope)
        step = x - self.before if t else torch.zeros_like(x)
        if t in self.judged:
            stuck = self.climbs < CLIMBING * (t - self.since)
            stuck |= ~self.halved_then & (self.highest <= self.highest_then)
            self.size = torch.where(stuck, self.size / 2, self.size)
            step = _where(stuck, self.answer - self.before, step)
            x, grad = _where(stuck, self.answer, x), _where(stuck, self.slope, grad)
            self.last = torch.where(stuck, self.highest, losses)
            self.climbs, self.halved_then = torch.zeros_like(self.climbs), stuck
            self.highest_then, self.since = self.highest, t
        far = self.ball.project(x + self.size.reshape(-1, 1, 1, 1) * grad.sign())
        self.before = x
        if not t:
            return far
        return self.ball.project(x + (1 - MOMENTUM) * (far - x) + MOMENTUM * step)


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, 1, 1, 1), yes, no)
