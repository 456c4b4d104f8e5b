"""Images within eps of others, and the projected gradient ascent in that ball (Madry et al., arXiv 1706.06083).

x_{t+1} = clip(x_t + a_t sign(grad loss), x_0 - eps, x_0 + eps),   within [0, 1]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeq.errors import InputError

Losses = Callable[[Tensor], Tensor]  # images in [0, 1] -> one loss for each


@dataclass(frozen=True)
class Pace:
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


def ascend(losses: Losses, ball: Ball, pace: Pace, gen: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Climb each image's loss from a random start and return the last step's images."""
    x = ball.random(gen)
    for t in range(pace.steps):
        x.requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(losses(x).sum(), (x,), materialize_grads=True)
        x = ball.project(x.detach() + ball.eps * pace.at(t) * torch.nan_to_num(grad).sign())
    return x
