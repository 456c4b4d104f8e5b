"""A shielded model under attack, and what each way differentiates.

    straight       the whole model, gradients straight through the choice of codewords
    soft           the whole model, codewords chosen by a softmax that cools
    identity       the whole model, the derivative of the VQ-VAE replaced by 1
    class-branch   the logits of the class feature alone: no codebook is in the way
    shield-branch  those of the shield alone
    fab            the whole model, towards its nearest boundary
    square         nothing; it asks for answers

All of them choose among their iterates by the whole model's answers. Half of the logits of a shielded model have an
exact gradient; where the other half's is non-zero but wrong, it misleads the sum, and `class-branch` climbs better than
`straight`. So each is there, and the minimum counts.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from edgeq.purifiers.base import FIXED, Draw
from edgeq.purifiers.deployed import AbstractDeployed, Inside, Look, Victim
from edgeq.purifiers.guarded import GuardedTowers

BRANCHES = ("class-branch", "shield-branch")
SHIELD_WAYS = ("straight", "soft", "identity", *BRANCHES, "fab", "square")


@dataclass(frozen=True)
class Shielded(AbstractDeployed):
    """A shielded model as it is deployed, its texts read once; made by `shielded`.

    Attributes:
        guard: The model.
        texts: Features of its classes.
        temperature: Of a soft choice of codewords; 0 but in attacks.
    """

    guard: GuardedTowers
    texts: Float[Tensor, "classes d"]
    temperature: float = 0.0
    samples: int = 1
    draw: Draw = FIXED

    def __call__(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the guarded logits."""
        return self.guard.fused(images, self.texts, temperature=self.temperature)

    @property
    def stochastic(self) -> bool:
        """Nothing is drawn."""
        return False

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of attack that mean something."""
        return ways_of(self.guard)

    def victim(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits of the class feature: the model without its shield."""
        return self.guard.logits(self.guard.look(images)[0], self.texts)

    def branch(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits of the shield alone."""
        shield = self.guard.shield
        assert shield is not None
        return self.guard.logits(shield.projected(shield(self.guard.look(images)[1])), self.texts)

    def seen(self, look: Look) -> Victim:
        """Return what the attacker differentiates."""
        if look.way == "class-branch":
            return self.victim
        if look.way == "shield-branch":
            return self.branch
        if look.way == "soft":
            return replace(self, temperature=look.temperature)
        return self._identity if look.way == "identity" else self

    def drawn(self, draw: Draw) -> "Shielded":
        """Return itself: nothing is drawn."""
        return self

    def inside(self, images: Shaped[Tensor, "n c h w"]) -> Inside:
        """Return the features before and behind the VQ-VAE, and the codes."""
        grid = self.guard.look(images)[1]
        after = grid if self.guard.shield is None else self.guard.shield(grid)
        return Inside(grid, after, self.guard.chosen(images)[1])

    def _identity(self, images: Tensor) -> Tensor:
        guard, shield = self.guard, self.guard.shield
        assert shield is not None
        seen, grid = guard.look(images)
        with torch.no_grad():
            moved = shield(grid) - grid
        drawn = shield.projected(grid + moved)
        return (1 - guard.fusion) * guard.logits(seen, self.texts) + guard.fusion * guard.logits(drawn, self.texts)


@torch.no_grad()
def shielded(guard: GuardedTowers) -> Shielded:
    """Return a trained model as it is deployed."""
    return Shielded(guard, guard.texts())


def ways_of(guard: GuardedTowers) -> tuple[str, ...]:
    """Return the ways that mean something: without a shield its branches are one, without codewords none is soft."""
    if guard.shield is None:
        return ("straight", "fab", "square")
    return tuple(way for way in SHIELD_WAYS if way != "soft" or guard.shield.codebook is not None)
