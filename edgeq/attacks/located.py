"""Location-optimised patches, one per image, as in patch adversarial training (Rao, Stutz, Schiele, arXiv 2005.02313).

Every image gets its own patch at its own place. The first place is where a patch promises most: with g the gradient of
the loss at the clean image x, the linearised gain of an optimal patch is

    sum over its pixels of max(g (1 - x), -g x)        place = "gain"
    sum over its pixels of |g|                         place = "gradient"

and the patch that attains the former is 1 where g > 0 and 0 where g < 0: it is the first restart's start. Later
restarts start from random patches at places drawn in proportion to the sums.

A gradient at one point is a poor guide to places, the more so if the network was trained against patches found that
way: one colour at a place found by asking can then beat it. So scouts go first: the victim is asked about `scouts`
other starts, of one colour at places drawn at random and of the linearised optimum at places drawn in proportion to
the sums in turn, and the best of all is where the ascent begins.

Then Adam or sign steps climb the margin, optionally trying the four neighbouring places every few steps. The best patch
and place over all scouts, steps and restarts is kept for each image, and an image that has reached its goal is left out
of later restarts.

Against a network that was trained on such patches many places have to be tried, and most are soon seen to be bad. So
last comes a race (`Race`): a heat of many starts with few steps each, and a final in which each image's best ones climb
on. A network that withstood 65 % of single searches withstood 25 % of races, as of thirty restarts that took thrice as
long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.attacks.base import AbstractPatchAttack, Ascent, PatchResult, Progress, Record, Seed, seed_key
from edgeq.attacks.goal import Goal, Loss, Victim
from edgeq.attacks.patch import Placement, Region, allowed, cut, draw_places
from edgeq.attacks.perimage import Best, Search, choose, draw_weighted, input_gradient, window_sums
from edgeq.data.seeds import generator
from edgeq.errors import InputError


@dataclass(frozen=True)
class Race:
    """Many short climbs and a few long ones, for images that have not reached their goal.

    Attributes:
        starts: Climbs of the heat.
        heat: How they climb.
        scouts: Starts that are asked about before each of them.
        finalists: How many of each image's climbs go on.
        final: How they go on.
    """

    starts: int = 32
    heat: Ascent = field(default_factory=lambda: Ascent(20, 0.2, "sign", decay=True))
    scouts: int = 8
    finalists: int = 4
    final: Ascent = field(default_factory=lambda: Ascent(60, 0.1, decay=True))

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.finalists <= self.starts or self.scouts < 0:
            raise InputError(
                f"expected 1 to {self.starts} finalists of {self.starts} starts and scouts of 0 or more, got "
                f"{self.finalists} and {self.scouts}; correct them"
            )


@dataclass(frozen=True)
class Located(AbstractPatchAttack):
    """The choices of the attack.

    Attributes:
        size: Side of the patch in pixels.
        ascent: Steps.
        loss: What is climbed.
        place: How the first place is chosen: "gain", "gradient" or "random".
        start: First restart's patch: "gradient" (the linearised optimum), "random" or "grey".
        region: Where patches may lie.
        scouts: Other starts that are asked about before each ascent, a forward pass each.
        restarts: Worst case over so many searches.
        race: What is tried last on images that have not reached their goal.
        move_every: Steps between tries of the neighbouring places; 0 for none.
        stride: Pixels of such a move.
        keep: "best" of all steps, or "last" (one forward pass less, for training).
        batch_size: Images at once; the result does not depend on it.
    """

    size: int = 6
    ascent: Ascent = field(default_factory=Ascent)
    loss: Loss = "margin"
    place: Literal["gain", "gradient", "random"] = "gain"
    start: Literal["gradient", "random", "grey"] = "gradient"
    region: Region = "anywhere"
    scouts: int = 0
    restarts: int = 1
    race: Race | None = None
    move_every: int = 0
    stride: int = 2
    keep: Literal["best", "last"] = "best"
    batch_size: int = 250

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.restarts, self.batch_size, self.stride) < 1 or min(self.move_every, self.scouts) < 0:
            raise InputError(
                f"expected restarts, batch_size and stride of 1 or more, and move_every and scouts of 0 or more, got "
                f"{self.restarts}, {self.batch_size}, {self.stride}, {self.move_every} and {self.scouts}; correct them"
            )
        if self.keep == "last" and (self.restarts > 1 or self.race is not None):
            raise InputError(f"expected no restarts and no race with keep='last', got {self.restarts}; use keep='best'")

    def _run(self, victim: Victim, images: Tensor, goal: Goal, seed: Seed, progress: Progress | None) -> PatchResult:
        places = allowed((images.shape[2], images.shape[3]), self.size, self.region).to(images.device)
        best = Best.none(images, self.size)
        record = Record(self.ascent.steps)
        for restart in range(self.restarts):
            noise = self._noise(images, places, (seed, restart), self.scouts)
            active = torch.arange(len(images), device=images.device)
            if restart:
                active = active[~best.reached(_members(victim, images))]
            for index in _parts(active, self.batch_size):
                search, patch = self._begin(victim, images[index], goal.at(index), index, best, noise, restart)
                done = search.run(patch, self.ascent, progress)
                if restart == 0:
                    record.add(done, len(index))
        late = 0.0
        if self.race is not None and len(images):
            late = self._run_race(self.race, (victim, images, goal), best, places, seed, progress)
        trace = tuple(record.trace)
        return PatchResult(
            best.patch, best.places, None, best.rank, best.queries, trace, record.flat, record.dead, late
        )

    def _noise(self, images: Tensor, places: Tensor, seed: tuple[Seed, int], scouts: int) -> "_Noise":
        return _Noise(images, self.size, places, generator("located", seed_key(seed[0]), seed[1]), scouts)

    def _run_race(
        self,
        race: Race,
        scene: tuple[Victim, Tensor, Goal],
        best: Best,
        places: Tensor,
        seed: Seed,
        progress: Progress | None,
    ) -> float:
        """Let climbs of the images that are left compete, and offer the best to `best`; return `PatchResult.late`."""
        victim, images, goal = scene
        members = _members(victim, images)
        runner = replace(self, scouts=race.scouts, move_every=0)
        heats, left = [], torch.zeros(0)
        for start in range(race.starts):
            if start == 3 * race.starts // 4:
                left = ~best.reached(members)
            noise = self._noise(images, places, (seed, self.restarts + start), race.scouts)
            own = Best.none(images, self.size)
            for index in _parts((~best.reached(members)).nonzero()[:, 0], self.batch_size):
                search, patch = runner._begin(victim, images[index], goal.at(index), index, own, noise, 1)
                search.run(patch, race.heat, progress)
                best.offer(index, own.patch[index], own.places.at(index), own.rank[index])
                best.queries[index] += own.queries[index]
            heats.append(own)
        late = float((left & best.reached(members)).float().mean())
        order = torch.stack([heat.rank for heat in heats]).argsort(stable=True, dim=0, descending=True)
        patches = torch.stack([heat.patch for heat in heats])
        tops, lefts = (torch.stack([getattr(heat.places, side) for heat in heats]) for side in ("top", "left"))
        for place in order[: race.finalists]:
            for index in _parts((~best.reached(members)).nonzero()[:, 0], self.batch_size):
                which = place[index]
                where = Placement(tops[which, index], lefts[which, index])
                search = self._search(victim, images[index], goal.at(index), index, best, where, places)
                search.run(patches[which, index], race.final, progress)
        return late

    def _search(
        self, victim: Victim, images: Tensor, goal: Goal, index: Tensor, best: Best, where: Placement, allowed: Tensor
    ) -> Search:
        every = self.move_every
        return Search(victim, images, goal, index, best, where, allowed, self.loss, self.stride, every, self.keep)

    def _begin(
        self, victim: Victim, images: Tensor, goal: Goal, index: Tensor, best: Best, noise: "_Noise", restart: int
    ) -> tuple[Search, Tensor]:
        places, patch = noise.places.at(index), noise.patch[index]
        grad = promise = None
        if self.place != "random" or (self.start == "gradient" and (self.scouts or restart == 0)):
            best.queries[index] += 1
            grad = input_gradient(victim, images, goal, self.loss)
        if grad is not None and self.place != "random":
            promise = window_sums(_promise(images, grad, self.place), self.size)
            # the largest of log s_i + Gumbel noise is a draw in proportion to s_i
            sums = promise.clamp_min(1e-30).log() + noise.gumbel[index] if restart else promise
            places = choose(sums, noise.allowed)
        if grad is not None and self.start == "gradient" and restart == 0:
            patch = _optimum(grad, places, patch)
        if self.start == "grey" and restart == 0:
            patch = torch.full_like(patch, 0.5)
        search = self._search(victim, images, goal, index, best, places, noise.allowed)
        if self.scouts:
            patch = search.scout(patch, (noise.scout(k, index, grad, promise) for k in range(self.scouts)))
        return search, patch


class _Noise:
    """All that is random in a restart, drawn for all images at once so that batches do not matter."""

    def __init__(self, images: Tensor, size: int, places: Tensor, gen: torch.Generator, scouts: int) -> None:
        n, channels = images.shape[:2]
        self.allowed = places
        self.patch = torch.rand(n, channels, size, size, generator=gen, dtype=images.dtype).to(images.device)
        self.places: Placement = draw_places(places.cpu(), n, gen).to(images.device)
        uniform = torch.rand(n, *places.shape, generator=gen, dtype=images.dtype).clamp_min(1e-30)
        self.gumbel = -(-uniform.log()).clamp_min(1e-30).log().to(images.device)
        self.points = torch.rand(scouts, n, 1 + channels, generator=gen, dtype=images.dtype).to(images.device)

    def scout(self, k: int, index: Tensor, grad: Tensor | None, promise: Tensor | None) -> tuple[Tensor, Placement]:
        """Return the k-th other start: one colour somewhere, or the linearised optimum where it promises something."""
        point, patch = self.points[k, index], self.patch[index]
        if k % 2 and grad is not None and promise is not None:
            places = draw_weighted(promise, self.allowed, point[:, 0])
            return _optimum(grad, places, patch), places
        options = self.allowed.nonzero()
        chosen = options[(point[:, 0] * len(options)).long()]
        colour = (point[:, 1:, None, None] * 256).floor() / 255
        return colour.expand_as(patch), Placement(chosen[:, 0], chosen[:, 1])


def _promise(images: Tensor, grad: Tensor, place: str) -> Float[Tensor, "n c h w"]:
    return torch.maximum(grad * (1 - images), -grad * images) if place == "gain" else grad.abs()


def _optimum(grad: Tensor, places: Placement, patch: Tensor) -> Tensor:
    """Return the patch that the gradient wants there, and `patch` where it wants nothing."""
    hidden = cut(grad, places, patch.shape[-1])
    return torch.where(hidden == 0, patch, (hidden > 0).to(patch))


def _parts(index: Tensor, batch: int) -> Sequence[Tensor]:
    return index.split(batch) if len(index) else ()


@torch.no_grad()
def _members(victim: Victim, images: Tensor) -> int:
    logits = victim(images[:1])
    return 1 if logits.dim() == 2 else int(logits.shape[:-2].numel())


def training_attack(size: int = 6, *, steps: int = 4, scouts: int = 8) -> Located:
    """Return the cheap version to train against: `steps` + 1 forward and backward passes, `scouts` + 2 forward ones.

    One gradient gives the first place and patch, scouts other ones; few sign steps follow. With a step of half the
    range of brightness, falling along a half cosine, four of them come within about ten points of the success of
    thirty Adam steps; steps of 0.1 do not. Without scouts a network learns to withstand what lies where its gradient
    points, and one colour elsewhere still fools it.
    """
    ascent = Ascent(steps, 0.5, "sign", decay=True)
    return Located(size=size, ascent=ascent, scouts=scouts, keep="best", batch_size=1 << 30)


def strong_attack(size: int = 6, *, steps: int = 60, starts: int = 64, scouts: int = 150) -> Located:
    """Return the version to evaluate with: a long search, places tried again on the way, and a race of `starts`."""
    race = None
    if starts:
        heat = Ascent(max(1, steps // 2), 0.2, "sign", decay=True)
        race = Race(starts, heat, finalists=-(-starts // 8), final=Ascent(steps, 0.1, decay=True))
    ascent = Ascent(steps, 0.2, "sign", decay=True)
    return Located(size=size, ascent=ascent, move_every=10, scouts=scouts, race=race)
