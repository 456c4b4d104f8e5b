"""Images within eps of others, and the projected gradient ascent in that ball (Madry et al., arXiv 1706.06083).

x_{t+1} = clip(x_t + a_t sign(grad loss), x_0 - eps, x_0 + eps),   within [0, 1]
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeq.errors import InputError

Losses = Callable[[Tensor], Tensor]  # images in [0, 1] -> one loss for each


class AbstractSearch(ABC):
    """One search: the steps of `ascend`, one by one.

    Attributes:
        answer: What it has found so far.
    """

    answer: Tensor

    @abstractmethod
    def move(
        self, x: Float[Tensor, "n c h w"], losses: Float[Tensor, " n"], grad: Float[Tensor, "n c h w"], t: int
    ) -> Float[Tensor, "n c h w"]:
        """Return the images of step t + 1, given the losses and their gradient at those of step t."""


class AbstractWay(ABC):
    """How a search goes.

    Attributes:
        steps: Gradient steps.
    """

    steps: int

    @abstractmethod
    def start(self, ball: "Ball") -> AbstractSearch:
        """Return a search."""


@dataclass(frozen=True)
class Pace(AbstractWay):
    """How fast, and how far.

    Attributes:
        steps: Gradient steps.
        step: Size of the first, in units of eps.
        decay: Let the size fall to 0 along a half cosine.
    """

    steps: int
    step: float = 0.25
    decay: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1 or not 0 < self.step < math.inf:
            raise InputError(f"expected steps >= 1 and step > 0, got {self.steps} and {self.step}; correct them")

    def at(self, t: int) -> float:
        """Return the size of step t, in units of eps."""
        return self.step * (0.5 + 0.5 * math.cos(math.pi * t / self.steps)) if self.decay else self.step

    def start(self, ball: "Ball") -> "Steady":
        """Return a search."""
        return Steady(ball, self)


class Steady(AbstractSearch):
    """Steps as long as a pace says; the answer is the last.

    Args:
        ball: Where the images may go.
        pace: How fast.
    """

    def __init__(self, ball: "Ball", pace: Pace) -> None:
        self.ball, self.pace = ball, pace
        self.answer = ball.centre

    def move(
        self, x: Float[Tensor, "n c h w"], losses: Float[Tensor, " n"], grad: Float[Tensor, "n c h w"], t: int
    ) -> Float[Tensor, "n c h w"]:
        """Return the images of step t + 1, given the gradient at those of step t."""
        self.answer = self.ball.project(x + self.ball.eps * self.pace.at(t) * grad.sign())
        return self.answer


class Ball:
    """The images within eps (of 1) of some bytes."""

    def __init__(self, images: UInt8[Tensor, "n c h w"], eps: float) -> None:
        self.centre, self.eps = images.float() / 255.0, eps

    def project(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the nearest image of the ball."""
        return (self.centre + (x - self.centre).clamp(-self.eps, self.eps)).clamp(0.0, 1.0)

    def random(self, gen: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return a random image of the ball; drawn on the CPU, so that devices agree."""
        noise = torch.rand(self.centre.shape, generator=gen).to(self.centre)
        return self.project(self.centre + self.eps * (2 * noise - 1))


def ascend(losses: Losses, ball: Ball, way: AbstractWay, gen: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Climb each image's loss from a random start and return what the search found."""
    x, search = ball.random(gen), way.start(ball)
    for t in range(way.steps):
        x = search.move(x, *uphill(losses, x), t)
    return search.answer


def uphill(losses: Losses, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Return each image's loss and its gradient, 0 where that is not a number."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        found = losses(x)
        (grad,) = torch.autograd.grad(found.sum(), (x,), materialize_grads=True)
    return found.detach(), torch.nan_to_num(grad)
