"""Narcissus (Zeng et al. 2023): one pattern that says the target class louder than the class itself does.

    d = argmin_{|d| <= eps}  mean over images x of the class  CE(f(shift(x + d)), class)

The pattern is added to some training images of the class, whose labels are right. A network trained on them learns the
pattern as a feature of the class. In use it is added, one to three times as strong, to images of all other classes.

The surrogate f is a run trained on images of the same kind, which is more than the paper's attacker has: that
one trains on public images and then on the target class alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Int16, UInt8
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
    check_eps,
    descend,
    of_class,
    shifted,
)
from edgeq.poison.goals import Trigger, stamp

Logits = Callable[[Tensor], Tensor]
SHARE = 0.1  # of the class, as published: 500 of 5000 images


@dataclass(frozen=True)
class Narcissus(AbstractAttack):
    """Choices of Narcissus.

    Attributes:
        eps: Largest change of a byte.
        poisons: How many images are changed; 0 for a tenth of the class.
        descent: The search.
        batch_size: Images per step of the search.
        shift: Largest shift in pixels of what the surrogate sees, as in training.
    """

    kind: ClassVar[str] = "narcissus"
    eps: int = 8
    poisons: int = 0
    descent: Descent = field(default_factory=lambda: Descent(steps=300, step=1 / 255))
    batch_size: int = 64
    shift: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_eps(self.eps)
        if self.poisons < 0 or self.batch_size < 1 or self.shift < 0:
            raise InputError(
                f"expected poisons and shift of 0 or more and a batch size of 1 or more, got {self.poisons}, "
                f"{self.shift} and {self.batch_size}; correct them"
            )

    def run(self, scene: Scene, *, watch: Watching | None = None) -> Poisons:
        """Return poisons and the trigger of the class `scene.number`."""
        if scene.number >= scene.classes:
            raise InputError(f"expected a target class below {scene.classes}, got {scene.number}; choose another")
        places = of_class(scene.train.labels, scene.number, max(self.poisons, 1), among="the training images")
        count = self.poisons or max(1, round(SHARE * len(places)))
        key = f"{scene.seed} {scene.number}"
        chosen = torch.randperm(len(places), generator=generator("narcissus poisons", key))[:count]
        index = places[chosen.sort().values]
        pattern, losses = self.craft(
            [surrogate(net, max(net.bits)) for net in scene.nets],
            scene.train.images[places].to(scene.device),
            scene.number,
            seed=key,
            watch=watch,
        )
        goal = Trigger(pattern.cpu(), scene.number)
        return Poisons(index, stamp(scene.train.images[index], goal.pattern), goal, losses)

    def targets(self, scene: Scene) -> int:
        """Return how many classes there are."""
        return scene.classes

    def craft(
        self,
        victims: list[Logits],
        images: UInt8[Tensor, "n 3 h w"],
        label: int,
        *,
        seed: str = "",
        watch: Watching | None = None,
    ) -> tuple[Int16[Tensor, "3 h w"], tuple[float, ...]]:
        """Return the pattern in bytes, and the loss at each step."""
        bound = self.eps / 255

        def loss(change: Tensor, t: int) -> Tensor:
            gen = generator("narcissus", seed, t)
            index = torch.randint(len(images), (self.batch_size,), generator=gen).to(images.device)
            seen = shifted((images[index].float() / 255.0 + change).clamp(0.0, 1.0), self.shift, gen)
            wanted = torch.full((len(index),), label, device=images.device)
            return torch.stack([F.cross_entropy(victim(seen), wanted) for victim in victims]).mean()

        start = torch.zeros((1, *images.shape[1:]), device=images.device)
        change, losses = descend(loss, start, lambda d: d.clamp(-bound, bound), self.descent, watch or Watching())
        return (change[0] * 255.0).round().clamp(-self.eps, self.eps).to(torch.int16), losses
