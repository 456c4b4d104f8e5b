"""LAVAN: localised visible noise, away from the main object (Karmon, Zoran, Goldberg, arXiv 1801.02608).

The loss is on logits and pushes the target up and the source down together, z_t - z_y, so it does not fade when the
network is sure. Per image: noise of its own at a place drawn from the region. Universal: one noise for all images and
all places of the region. Only the image-domain form (noise within [0, 1]) exists here, because bytes cannot carry the
unbounded one.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgeq.attacks.base import AbstractPatchAttack, Ascent, PatchResult, Progress, Record, Seed, seed_key
from edgeq.attacks.eot import pixels
from edgeq.attacks.goal import Goal, Victim
from edgeq.attacks.patch import Region, allowed, draw_places
from edgeq.attacks.perimage import Best, Search
from edgeq.attacks.universal import Universal, universal_patch
from edgeq.data.seeds import generator


@dataclass(frozen=True)
class LAVAN(AbstractPatchAttack):
    """The choices of the attack.

    Attributes:
        size: Side of the patch in pixels.
        universal: One noise for all images instead of one each.
        ascent: Steps.
        region: Where the noise lies; not over the middle by default.
        batch_size: Images at once (per image), or per step (universal).
    """

    size: int = 6
    universal: bool = False
    ascent: Ascent = field(default_factory=lambda: Ascent(steps=300, step=0.05))
    region: Region = "border"
    batch_size: int = 250

    def _run(self, victim: Victim, images: Tensor, goal: Goal, seed: Seed, progress: Progress | None) -> PatchResult:
        if self.universal:
            choices = Universal(self.size, self.ascent, pixels(self.region), "logits", self.batch_size)
            return universal_patch(victim, images, goal, choices, seed=seed, progress=progress)
        gen = generator("lavan", seed_key(seed))
        region = allowed((images.shape[2], images.shape[3]), self.size, self.region)
        places = draw_places(region, len(images), gen).to(images.device)
        noise = torch.rand(len(images), images.shape[1], self.size, self.size, generator=gen, dtype=images.dtype)
        best = Best.none(images, self.size)
        record = Record(self.ascent.steps)
        for index in torch.arange(len(images), device=images.device).split(self.batch_size):
            search = Search(
                victim, images[index], goal.at(index), index, best, places.at(index), region.to(images.device), "logits"
            )
            done = search.run(noise[index.cpu()].to(images.device), self.ascent, progress)
            record.add(done, len(index))
        return PatchResult(
            best.patch, best.places, None, best.rank, best.queries, tuple(record.trace), record.flat, record.dead
        )
