"""Gradient matching, "Witches' Brew" (Geiping et al. 2021): training on the poisons is training on the target.

    g_t = grad_theta CE(f(t), wanted class),    g_p = grad_theta mean_j CE(f(shift(x_j + d_j)), their class)
    loss = 1 - <g_t, g_p> / (||g_t|| ||g_p||)

The poisons are images of the wanted class, so their labels are right. Where the angle is small, each step of a
training that lowers the poisons' loss lowers that of the target under the wrong name, too. The search differentiates a
gradient, so it runs through the float width; it is begun anew from several random changes, and the best end kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks.victim import surrogate
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.poison.base import (
    AbstractAttack,
    Descent,
    Poisons,
    Scene,
    Watching,
    ball,
    check_eps,
    descend,
    of_class,
    shifted,
    within,
)
from edgeq.poison.targets import choose, possible
from edgeq.quant.bits import FLOAT_BITS
from edgeq.quant.network import MultiBitNet

SHARE = 0.01  # of the training images, as published


@dataclass(frozen=True)
class Learner:
    """A classifier and what of it learns.

    Attributes:
        logits: Of float images in [0, 1], twice differentiable.
        parameters: What training would move.
    """

    logits: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]

    def gradient(
        self, images: Float[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], *, again: bool = False
    ) -> Float[Tensor, " p"]:
        """Return the gradient of the mean cross-entropy as one vector; `again` lets it be differentiated."""
        loss = F.cross_entropy(self.logits(images), labels)
        parts = torch.autograd.grad(loss, self.parameters, create_graph=again, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])


@dataclass(frozen=True)
class GradientMatching(AbstractAttack):
    """Choices of gradient matching.

    Attributes:
        eps: Largest change of a byte.
        poisons: How many images are changed; 0 for a hundredth of the training images.
        descent: The search from one start.
        restarts: How many starts.
        shift: Largest shift in pixels of the poisons in each step, as in training.
    """

    kind: ClassVar[str] = "gradient-matching"
    eps: int = 8
    poisons: int = 0
    descent: Descent = field(default_factory=lambda: Descent(steps=250, step=1 / 255, rule="signed-adam"))
    restarts: int = 2
    shift: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_eps(self.eps)
        if self.poisons < 0 or self.restarts < 1 or self.shift < 0:
            raise InputError(
                f"expected poisons and shift of 0 or more and restarts of 1 or more, got {self.poisons}, {self.shift} "
                f"and {self.restarts}; correct them"
            )

    def run(self, scene: Scene, *, watch: Watching | None = None) -> Poisons:
        """Return poisons towards the scene's target image."""
        goal = choose(scene)
        count = self.poisons or max(1, round(SHARE * len(scene.train)))
        places = of_class(scene.train.labels, goal.label, count, among="the training images")
        key = f"{scene.seed} {scene.number}"
        chosen = torch.randperm(len(places), generator=generator("gradient matching poisons", key))[:count]
        index = places[chosen.sort().values]
        made, losses = self.craft(
            [learner(net) for net in scene.nets],
            scene.train.images[index].to(scene.device),
            goal.images.to(scene.device),
            goal.label,
            seed=key,
            watch=watch,
        )
        return Poisons(index, made.cpu(), goal, losses)

    def targets(self, scene: Scene) -> int:
        """Return how many test images the surrogates name rightly."""
        return possible(scene)

    def craft(
        self,
        learners: Sequence[Learner],
        bases: UInt8[Tensor, "k 3 h w"],
        target: UInt8[Tensor, "1 3 h w"],
        label: int,
        *,
        seed: str = "",
        watch: Watching | None = None,
    ) -> tuple[UInt8[Tensor, "k 3 h w"], tuple[float, ...]]:
        """Return the bases as poisons, and the loss at each step of the best start."""
        clean, clip = bases.float() / 255.0, ball(bases.float() / 255.0, self.eps)
        wanted = torch.full((len(bases),), label, device=bases.device)
        with torch.enable_grad():
            aims = [one.gradient(target.float() / 255.0, wanted[:1]) for one in learners]

        def apart(images: Tensor) -> Tensor:
            found = [one.gradient(images, wanted, again=True) for one in learners]
            return torch.stack([mismatch(a, b) for a, b in zip(aims, found, strict=True)]).mean()

        watch = watch or Watching()
        best: tuple[float, Tensor, tuple[float, ...]] | None = None
        for start in range(self.restarts):
            key = f"{seed} {start}"
            noise = 2 * torch.rand(clean.shape, generator=generator("gradient matching", key)) - 1

            def loss(change: Tensor, t: int, key: str = key) -> Tensor:
                return apart(shifted(clean + change, self.shift, generator("gradient matching", key, t)))

            first = noise.to(clean) * self.eps / 255
            change, losses = descend(loss, first, clip, self.descent, watch, f"start {start}")
            made = within(bases, change, eps=self.eps)
            with torch.enable_grad():
                end = float(apart(made.float() / 255.0).detach())
            if best is None or end < best[0]:
                best = end, made, losses
        assert best is not None
        return best[1], best[2]


def mismatch(a: Float[Tensor, " p"], b: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """Return 1 - cosine."""
    return 1.0 - F.cosine_similarity(a, b, dim=0)


def learner(net: MultiBitNet) -> Learner:
    """Return a network's float width and all of its parameters that learn there."""
    if FLOAT_BITS not in net.bits:
        raise InputError(f"expected a surrogate with width 32, got {list(net.bits)}; gradients are matched in float")
    return Learner(surrogate(net, FLOAT_BITS), tuple(p for p in net.parameters() if p.requires_grad))
