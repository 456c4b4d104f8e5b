"""A patch for each image: the state of a batch's search, which keeps the best patch and place that were seen."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from edgeq.attacks.base import Ascent, Climb, Progress, climb
from edgeq.attacks.goal import Goal, Loss, Victim
from edgeq.attacks.patch import Placement, paste, to_bytes

NEIGHBOURS = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])


@dataclass
class Best:
    """The best of every image so far, over steps, restarts and batches."""

    patch: Float[Tensor, "n c k k"]
    places: Placement
    rank: Float[Tensor, " n"]
    queries: Int64[Tensor, " n"]

    @staticmethod
    def none(images: Float[Tensor, "n c h w"], size: int) -> "Best":
        """Return the state before the first patch."""
        n, channels = images.shape[:2]
        zero = torch.zeros(n, dtype=torch.int64, device=images.device)
        patch = torch.zeros(n, channels, size, size, dtype=images.dtype, device=images.device)
        rank = torch.full((n,), -torch.inf, dtype=torch.float64, device=images.device)
        return Best(patch, Placement(zero.clone(), zero.clone()), rank, zero.clone())

    def offer(self, index: Int64[Tensor, " k"], patch: Tensor, places: Placement, rank: Tensor) -> None:
        """Keep what is better than before for the images at `index`."""
        better = rank > self.rank[index]
        at = index[better]
        self.patch[at] = patch.detach()[better]
        self.places.top[at] = places.top[better]
        self.places.left[at] = places.left[better]
        self.rank[at] = rank[better]

    def reached(self, members: int = 1) -> Bool[Tensor, " n"]:
        """Return which images reached their goal on all members."""
        return self.rank >= members


@dataclass
class Search:
    """One batch, one restart.

    Attributes:
        victim: Victim.
        images: The batch.
        goal: Its goal.
        index: Where its images lie in `best`.
        best: What is updated.
        places: Where the patches lie now.
        allowed: Where they may lie.
        loss: What is climbed.
        stride: Pixels of a move.
        every: Steps between moves; 0 stays.
        keep: "best" of all steps, or "last" (saves the last forward pass).
    """

    victim: Victim
    images: Tensor
    goal: Goal
    index: Tensor
    best: Best
    places: Placement
    allowed: Tensor
    loss: Loss
    stride: int = 2
    every: int = 0
    keep: str = "best"

    def run(self, patch: Tensor, ascent: Ascent, progress: Progress | None = None) -> Climb:
        """Climb, and offer every patch on the way (or the last)."""
        done = climb(patch, self._score, ascent, progress=progress)
        with torch.no_grad():
            final = to_bytes(done.patch)
            if self.keep == "best":
                self._offer(final, self._ask(final, self.places))
            else:
                self.best.offer(self.index, final, self.places, torch.zeros_like(self.best.rank[self.index]))
        return done

    @torch.no_grad()
    def scout(self, patch: Tensor, starts: Iterable[tuple[Tensor, Placement]]) -> Tensor:
        """Go to the best of the own place and some others, and return the patch that is best there."""
        rank = self.goal.rank(self._ask(to_bytes(patch), self.places))
        for other, places in starts:
            sent = to_bytes(other)
            new = self.goal.rank(self._ask(sent, places))
            better = new > rank
            rank = torch.where(better, new, rank)
            patch = torch.where(better[:, None, None, None], sent, patch)
            top = torch.where(better, places.top, self.places.top)
            self.places = Placement(top, torch.where(better, places.left, self.places.left))
        return patch

    def _score(self, patch: Tensor, t: int) -> tuple[Tensor, Tensor]:
        if self.every and t and t % self.every == 0:
            self._move(patch.detach())
        sent = to_bytes(patch)
        shown = paste(self.images, sent, self.places)
        logits = self.victim(shown)
        self.best.queries[self.index] += 1
        if self.keep == "best":
            self._offer(sent, logits.detach())
        return self.goal.loss(logits, self.loss), shown

    def _ask(self, sent: Tensor, places: Placement) -> Tensor:
        self.best.queries[self.index] += 1
        return self.victim(paste(self.images, sent, places))

    def _offer(self, sent: Tensor, logits: Tensor) -> None:
        self.best.offer(self.index, sent, self.places, self.goal.rank(logits))

    @torch.no_grad()
    def _move(self, patch: Tensor) -> None:
        """Go to the best of the four neighbours if it beats staying; a move out of the allowed places is no move."""
        sent = to_bytes(patch)
        top, left = self.places.top.clone(), self.places.left.clone()
        rank = self.goal.rank(self._ask(sent, self.places))
        rows, columns = self.allowed.shape
        for dy, dx in (NEIGHBOURS * self.stride).tolist():
            y, x = (self.places.top + dy).clamp(0, rows - 1), (self.places.left + dx).clamp(0, columns - 1)
            ok = self.allowed[y, x]
            y, x = torch.where(ok, y, self.places.top), torch.where(ok, x, self.places.left)
            new = self.goal.rank(self._ask(sent, Placement(y, x)))
            better = new > rank
            top, left, rank = torch.where(better, y, top), torch.where(better, x, left), torch.where(better, new, rank)
        self.places = Placement(top, left)


def input_gradient(
    victim: Victim, images: Float[Tensor, "n c h w"], goal: Goal, loss: Loss
) -> Float[Tensor, "n c h w"]:
    """Return the gradient of each image's loss with respect to its pixels; zeros where there is none."""
    variable = images.clone().requires_grad_()
    losses = goal.loss(victim(variable), loss)
    if not losses.requires_grad:
        return torch.zeros_like(images)
    (grad,) = torch.autograd.grad(losses.sum(), (variable,), materialize_grads=True)
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)


def window_sums(pixels: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n rows columns"]:
    """Return, for every place of a patch, the mean over the pixels that it would hide."""
    return F.avg_pool2d(pixels.sum(1, keepdim=True), size, stride=1)[:, 0]


def draw_weighted(
    weights: Float[Tensor, "n rows columns"], allowed: Bool[Tensor, "rows columns"], uniform: Float[Tensor, " n"]
) -> Placement:
    """Return an allowed place for each image, drawn in proportion to its weight by one uniform number."""
    flat = (weights.clamp_min(0.0) * allowed).flatten(1).double()
    flat = torch.where(flat.sum(1, keepdim=True) > 0, flat, allowed.flatten().double())
    heights = flat.cumsum(1)
    at = torch.searchsorted(heights, (uniform.double() * heights[:, -1])[:, None], right=True)[:, 0]
    return Placement(at // weights.shape[2], at % weights.shape[2])


def choose(sums: Float[Tensor, "n rows columns"], allowed: Bool[Tensor, "rows columns"]) -> Placement:
    """Return the allowed place of the largest sum for each image."""
    best = sums.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    return Placement(best // sums.shape[2], best % sums.shape[2])
