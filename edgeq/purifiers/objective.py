"""What the trainer asks of a method: its networks, its optimizers, and one step on a batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from edgeq.purifiers.base import AbstractGuard, Draw


class AbstractObjective(nn.Module, ABC):
    """A guard in training. All of its parameters and buffers, and those of its optimizers, are the saved state.

    Attributes:
        purifier: What is trained.
        optimizers: One per player.
    """

    purifier: AbstractGuard
    optimizers: Sequence[torch.optim.Optimizer]

    @abstractmethod
    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Take one step and return the losses; "loss" is the one to watch. Nothing moves where it is not finite.

        Args:
            images: The batch.
            labels: Their classes, which purifiers do not look at.
            done: Fraction of the epochs that are over.
            draw: Noise.
        """


def descend(loss: Float[Tensor, ""], optimizer: torch.optim.Optimizer) -> bool:
    """Take a step down; False, and no step, where the loss is not finite."""
    optimizer.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(loss)):
        return False
    loss.backward()
    optimizer.step()
    return True
