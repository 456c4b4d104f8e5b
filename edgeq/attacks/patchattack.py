"""PatchAttack: black-box patches of one colour (MPA) or of texture (TPA), after Yang et al. (arXiv 2004.05682).

Monochrome: the search is over place and colour. Texture: over place, an entry of a dictionary built from the user's own
data, and the part of it that is cut out; a targeted attack uses textures of the target class.

Departures from the paper, which drives the same search spaces with a reinforcement-learning agent per image: here a
random search that varies its best candidate (`edgeq.attacks.blackbox`) asks the questions; there is one patch where the
paper may add several of 3.5 % of the area each; and the dictionary is clustered from simple maps instead of VGG-19's.
The number of questions of each image is in `PatchResult.queries`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from edgeq.attacks.base import AbstractPatchAttack, PatchResult, Progress, Seed, seed_key
from edgeq.attacks.blackbox import Budget, Render, random_search
from edgeq.attacks.goal import Goal, Victim
from edgeq.attacks.patch import Placement, Region, allowed, cut
from edgeq.attacks.textures import Textures
from edgeq.data.seeds import generator
from edgeq.errors import InputError


@dataclass(frozen=True)
class PatchAttack(AbstractPatchAttack):
    """The choices of the attack.

    Attributes:
        size: Side of the patch in pixels.
        textures: The dictionary; None is the monochrome attack.
        queries: Most questions per image.
        proposals: Candidates per image and round.
        explore: Fraction of the rounds that draw uniformly.
        region: Where patches may lie.
        batch_size: Candidates at once; the result does not depend on it.
    """

    size: int = 6
    textures: Textures | None = None
    queries: int = 1000
    proposals: int = 10
    explore: float = 0.3
    region: Region = "anywhere"
    batch_size: int = 500

    def __post_init__(self) -> None:
        """Check the budget and the textures' size."""
        if self.proposals < 1 or self.queries < self.proposals or self.batch_size < 1:
            raise InputError(
                f"expected queries >= proposals >= 1, got {self.queries} and {self.proposals}; ask more questions"
            )
        if self.textures is not None and self.textures.images.shape[-1] < self.size:
            raise InputError(
                f"expected textures of at least {self.size} pixels, got {self.textures.images.shape[-1]}; build the "
                "dictionary with a larger side"
            )

    @torch.no_grad()
    def _run(self, victim: Victim, images: Tensor, goal: Goal, seed: Seed, progress: Progress | None) -> PatchResult:
        places = allowed((images.shape[2], images.shape[3]), self.size, self.region).to(images.device)
        if self.textures is None:
            render, dims = _monochrome(places, images.shape[1], self.size), 3 + images.shape[1]
        else:
            render, dims = _textured(places, self.textures, goal, self.size), 6
        budget = Budget(self.queries // self.proposals, self.proposals, self.explore, self.batch_size)
        gen = generator("patchattack", seed_key(seed))
        best = random_search(
            victim, images, goal, render, dims=dims, size=self.size, budget=budget, gen=gen, progress=progress
        )
        return PatchResult(best.patch, best.places, None, best.rank, best.queries)


def _place(places: Bool[Tensor, "rows columns"], points: Tensor) -> Placement:
    """Return the place at (y, x) where it is allowed, else the one that the third coordinate picks from the list."""
    rows, columns = places.shape
    y, x = (points[:, 0] * rows).long(), (points[:, 1] * columns).long()
    options = places.nonzero()
    other = options[(points[:, 2] * len(options)).long()]
    ok = places[y, x]
    return Placement(torch.where(ok, y, other[:, 0]), torch.where(ok, x, other[:, 1]))


def _monochrome(places: Tensor, channels: int, size: int) -> Render:
    def render(_index: Tensor, points: Tensor) -> tuple[Tensor, Placement]:
        colour = (points[:, 3 : 3 + channels] * 256).floor() / 255
        return colour[:, :, None, None].expand(-1, -1, size, size), _place(places, points)

    return render


def _textured(places: Tensor, textures: Textures, goal: Goal, size: int) -> Render:
    device = places.device
    images = textures.images.to(device)
    slack = images.shape[-1] - size + 1
    classes = [None] if goal.targets is None else goal.targets.unique().tolist()
    entries = {label: textures.of(label).to(device) for label in classes}

    def render(index: Tensor, points: Tensor) -> tuple[Tensor, Placement]:
        entry = torch.zeros_like(index)
        for label, found in entries.items():
            picked = found[(points[:, 3] * len(found)).long()]
            mine = torch.ones_like(index, dtype=torch.bool) if goal.targets is None else goal.targets[index] == label
            entry = torch.where(mine, picked, entry)
        corner = Placement((points[:, 4] * slack).long(), (points[:, 5] * slack).long())
        return cut(images[entry], corner, size), _place(places, points)

    return render
