"""Which widths a training step has, of those that are active.

    0           all, on the same images
    1           one; the widths take turns
    2           two; the pairs take turns
    3 and more  the highest, the lowest and random ones between (the sandwich rule of slimmable networks, arXiv
                1903.05134), on the same images: an epoch costs as much less

Where widths or pairs take turns, an epoch goes through the images `passes` times, in another order each time. With as
many passes as there are turns, every width takes as many steps on as many images as with 0 (with pairs, more), and the
shared weights take as many times more steps, each on other images.
"""

from dataclasses import dataclass
from itertools import combinations

import torch

from edgeq.data.seeds import generator
from edgeq.errors import InputError


@dataclass(frozen=True)
class Turns:
    """The choice.

    Attributes:
        widths: In a step, see the module.
        passes: Over the images in an epoch where widths or pairs take turns, at most one per turn; 0 for that.
    """

    widths: int = 0
    passes: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.widths < 0:
            raise InputError(f"expected 0 or more widths per step, got {self.widths}; 0 takes all")
        if self.passes < 0:
            raise InputError(f"expected 0 or more passes, got {self.passes}; 0 takes one per turn")

    def rounds(self, active: tuple[int, ...]) -> int:
        """Return how often an epoch goes through the images."""
        count = len(self._groups(active))
        return min(self.passes or count, count)

    def all_at_once(self, active: tuple[int, ...]) -> bool:
        """Tell whether every step has all widths."""
        return self.widths == 0 or self.widths >= len(active)

    def share(self, active: tuple[int, ...]) -> float:
        """Return in which share of the steps a width is, on average."""
        return 1.0 if self.all_at_once(active) else self.widths / len(active)

    def drawn(self, active: tuple[int, ...], key: tuple[int, int, int, int]) -> tuple[int, ...]:
        """Return the widths of the step with this key (seed, epoch, batch, process); the same in every process."""
        groups = self._groups(active)
        if len(groups) > 1 or self.all_at_once(active):
            return groups[(key[1] + key[2]) % len(groups)]  # an epoch begins with another one than the epoch before
        order = torch.randperm(len(active) - 2, generator=generator("widths", *key[:3]))
        between = sorted(order[: self.widths - 2].tolist())
        return (active[0], *(active[1 + i] for i in between), active[-1])

    def _groups(self, active: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return what takes turns: widths, pairs, or one group of all where nothing does."""
        few = self.widths in (1, 2) and self.widths < len(active)
        return list(combinations(active, self.widths)) if few else [active]


ALL = Turns()
