"""Bullseye Polytope (Aghakhani et al. 2021): poisons whose mean feature is the target's.

    loss = 1/m sum_over_networks  ||mean_j phi(x_j + d_j) - phi(t)||^2 / ||phi(t)||^2

A linear layer that learns to name all poisons with their (clean) label names their mean so too, and with it the
target. The networks may be shown several random shifts of the poisons in each step (`draws`), as training would.

The victim keeps a feature extractor and learns a new linear layer on a small set, `per_class` images of each class.
Only images of that set become poisons: those of the wanted class that lie nearest to the target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

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
from edgeq.poison.networks import Features, featured
from edgeq.poison.targets import choose, possible

FeatureMap = Callable[[Tensor], Tensor]
Vectors = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Bullseye(AbstractAttack):
    """Choices of Bullseye Polytope.

    Attributes:
        eps: Largest change of a byte.
        poisons: How many images are changed.
        per_class: Images of each class in the set that the linear layer is learned on; 0 for all.
        descent: The search.
        draws: Random shifts of the poisons in each step.
        shift: Largest shift in pixels; 0 for none, as a victim without augmentation has it.
    """

    kind: ClassVar[str] = "bullseye"
    eps: int = 8
    poisons: int = 25
    per_class: int = 50
    descent: Descent = field(default_factory=lambda: Descent(steps=150))
    draws: int = 1
    shift: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_eps(self.eps)
        if self.poisons < 1 or self.draws < 1 or self.shift < 0 or self.per_class < 0:
            raise InputError(
                f"expected poisons and draws of 1 or more, shift and per_class of 0 or more, got {self.poisons}, "
                f"{self.draws}, {self.shift} and {self.per_class}; correct them"
            )

    def run(self, scene: Scene, *, watch: Watching | None = None) -> Poisons:
        """Return poisons towards the scene's target image."""
        goal = choose(scene)
        maps = [Features(net, max(net.bits)) for net in scene.nets]
        learned = transfer_set(scene.train.labels, self.per_class)
        places = learned[of_class(scene.train.labels[learned], goal.label, self.poisons, among="the transfer set")]
        aim, there = featured(maps[0], goal.images), featured(maps[0], scene.train.images[places])
        index = places[(there - aim).norm(dim=1).argsort(stable=True)[: self.poisons].cpu()]
        made, losses = self.craft(
            maps,
            scene.train.images[index].to(scene.device),
            goal.images.to(scene.device),
            seed=f"{scene.seed} {scene.number}",
            watch=watch,
        )
        return Poisons(index, made.cpu(), goal, losses)

    def targets(self, scene: Scene) -> int:
        """Return how many test images the surrogates name rightly."""
        return possible(scene)

    def craft(
        self,
        maps: Sequence[FeatureMap],
        bases: UInt8[Tensor, "k 3 h w"],
        target: UInt8[Tensor, "1 3 h w"],
        *,
        seed: str = "",
        watch: Watching | None = None,
    ) -> tuple[UInt8[Tensor, "k 3 h w"], tuple[float, ...]]:
        """Return the bases as poisons, and the loss at each step."""
        clean = bases.float() / 255.0
        with torch.no_grad():
            aims = [features(target.float() / 255.0)[0] for features in maps]

        def loss(change: Tensor, t: int) -> Tensor:
            gen = generator("bullseye", seed, t)
            total = change.new_zeros(())
            for _ in range(self.draws):
                seen = shifted(clean + change, self.shift, gen)
                total = (
                    total
                    + torch.stack(
                        [distance(features(seen), aim) for features, aim in zip(maps, aims, strict=True)]
                    ).mean()
                )
            return total / self.draws

        change, losses = descend(
            loss, torch.zeros_like(clean), ball(clean, self.eps), self.descent, watch or Watching()
        )
        return within(bases, change, eps=self.eps), losses


def distance(poisons: Vectors, target: Float[Tensor, " d"]) -> Float[Tensor, ""]:
    """Return the squared distance of the poisons' mean from the target, relative to the target's square."""
    return (poisons.mean(0) - target).square().sum() / target.square().sum().clamp(min=1e-12)


def transfer_set(labels: Int64[Tensor, " n"], per_class: int) -> Int64[Tensor, " k"]:
    """Return the places of the last `per_class` images of each class, in order; 0 for all.

    The last, so that an extractor trained on the first images of `signs` has hardly seen them: classes are not of one
    size, so a few of the last images of a small class lie further in front.
    """
    if per_class == 0:
        return torch.arange(len(labels))
    places = [(labels == label).nonzero()[:, 0][-per_class:] for label in labels.unique().tolist()]
    return torch.cat(places).sort().values
