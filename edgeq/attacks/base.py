"""What all patch attacks share: the ascent on the patch, written once, and the result.

    P_{t+1} = clip(P_t + step * direction(grad_P sum_i loss_i(P_t)), 0, 1)

with Adam's direction or the sign. A per-image attack has one patch per image, so the sum keeps its images apart; a
universal one has a single patch. What is differentiated is left to a `score` function.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from edgeq.attacks.eot import EOT, apply, draw_views
from edgeq.attacks.goal import Goal, Victim, check_goal
from edgeq.attacks.patch import Placement, as_float, like, paste
from edgeq.data.seeds import generator
from edgeq.errors import InputError

Progress = Callable[[int, int, float], None]  # steps done, steps in all, mean loss
Seed = int | tuple[int, ...]
Score = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # patch, step -> loss per image, images shown to the victim

VANISHED = 1e-12  # a gradient per unit of brightness below this moves no logit
DECAYS = (0.9, 0.999)  # Adam's, as published
TINY = 1e-12  # Adam's epsilon: gradients of sums over images span many orders, and the step must not depend on them


@dataclass(frozen=True)
class Ascent:
    """How a patch climbs.

    Attributes:
        steps: Gradient steps.
        step: Step size, of brightness in [0, 1].
        rule: "adam", or "sign" of the gradient.
        decay: Let the step size fall to 0 along a half cosine.
        momentum: Of the rule sign: what is kept of the gradients before, each divided by its mean size (Dong et al.,
            arXiv 1710.06081); 0 takes the newest alone.
    """

    steps: int = 60
    step: float = 0.1
    rule: Literal["adam", "sign"] = "adam"
    decay: bool = False
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.momentum < 1 or (self.momentum and self.rule != "sign"):
            raise InputError(f"expected momentum from 0 to below 1 with the rule sign, got {self}; correct it")
        if self.steps < 0 or not self.step > 0:
            raise InputError(f"expected steps >= 0 and step > 0, got {self.steps} and {self.step}; correct them")
        if self.rule not in ("adam", "sign"):
            raise InputError(f"expected rule adam or sign, got {self.rule!r}; choose one")


@dataclass(frozen=True)
class PatchResult:
    """What an attack found.

    Attributes:
        patch: One patch per image, or a universal one; multiples of 1/255.
        places: Where each image's patch lies; None for a universal patch.
        eot: The views that a universal patch was made for; None for patches per image.
        score: Per patch, the better the higher: `Goal.rank` of each image, or a universal patch's mean loss.
        queries: Per patch, how many images the victim was asked about.
        trace: Mean loss at each step (of the first restart).
        flat: Fraction of all gradients with respect to an image that were zero or not finite.
        dead: Fraction of the patches' pixel gradients that were zero or not finite.
        late: Fraction of the images that only the last quarter of a race's starts won.
    """

    patch: Float[Tensor, "m c k k"]
    places: Placement | None
    eot: EOT | None
    score: Float64[Tensor, " m"]
    queries: Int64[Tensor, " m"]
    trace: tuple[float, ...] = ()
    flat: float = 0.0
    dead: float = 0.0
    late: float = 0.0

    @property
    def size(self) -> int:
        """Side of the patch in pixels."""
        return self.patch.shape[-1]

    def on(self, images: Shaped[Tensor, "n c h w"], *, seed: Seed = 0) -> Shaped[Tensor, "n c h w"]:
        """Return the images under attack, in their own type (bytes or floats).

        Args:
            images: For patches per image, the attacked ones in their order; any for a universal patch.
            seed: Draws a universal patch's views.
        """
        if self.places is not None:
            if len(images) != len(self.patch):
                raise InputError(
                    f"expected the {len(self.patch)} attacked images, got {len(images)}; these patches are per image"
                )
            return paste(images, like(images, self.patch.to(images.device)), self.places.to(images.device))
        assert self.eot is not None
        shape = (images.shape[2], images.shape[3])
        views = draw_views(
            self.eot, len(images), size=self.size, image_size=shape, gen=generator("views", seed_key(seed))
        )
        return like(images, apply(as_float(images), self.patch.to(images.device), views))


@dataclass
class Climb:
    """What `climb` leaves: the last patch, and of each step the mean loss and the fractions without a gradient.

    Attributes:
        patch: The last patch.
        trace: Mean loss.
        flats: Fraction of the images without a gradient.
        deads: Fraction of the patch's pixels without one.
    """

    patch: Tensor
    trace: list[float] = field(default_factory=list)
    flats: list[float] = field(default_factory=list)
    deads: list[float] = field(default_factory=list)


@dataclass
class Record:
    """The mean course over the batches of a per-image attack."""

    steps: int
    images: int = 0
    trace: list[float] = field(default_factory=list)
    flat: float = 0.0
    dead: float = 0.0

    def add(self, done: Climb, images: int) -> None:
        """Add a batch."""
        if not self.trace:
            self.trace = [0.0] * self.steps
        before, self.images = self.images, self.images + images
        self.trace = [(a * before + b * images) / self.images for a, b in zip(self.trace, done.trace, strict=True)]
        self.flat = (self.flat * before + mean(done.flats) * images) / self.images
        self.dead = (self.dead * before + mean(done.deads) * images) / self.images


def mean(values: list[float]) -> float:
    """Return the mean, 0 of nothing."""
    return sum(values) / max(len(values), 1)


def climb(patch: Float[Tensor, "m c k k"], score: Score, ascent: Ascent, *, progress: Progress | None = None) -> Climb:
    """Climb `ascent.steps` steps on the sum of the scores; the module docstring has the formula."""
    done = Climb(patch.detach())
    first = torch.zeros_like(patch)
    second = torch.zeros_like(patch)
    for t in range(ascent.steps):
        variable = done.patch.clone().requires_grad_()
        losses, shown = score(variable, t)
        grad, flat, dead = _gradients(losses, variable, shown)
        rate = ascent.step * (0.5 + 0.5 * math.cos(math.pi * t / ascent.steps) if ascent.decay else 1.0)
        if ascent.rule == "sign":
            size = grad.flatten(1).abs().mean(1).reshape(-1, 1, 1, 1)
            first = ascent.momentum * first + grad / size.clamp_min(TINY)
            direction = first.sign()
        else:
            first.lerp_(grad, 1 - DECAYS[0])
            second.lerp_(grad.square(), 1 - DECAYS[1])
            root = (second / (1 - DECAYS[1] ** (t + 1))).sqrt()
            direction = first / (1 - DECAYS[0] ** (t + 1)) / (root + TINY)
        done.patch = (done.patch + rate * direction).clamp(0.0, 1.0)
        done.trace.append(float(losses.detach().mean()))
        done.flats.append(flat)
        done.deads.append(dead)
        if progress is not None:
            progress(t + 1, ascent.steps, done.trace[-1])
    return done


def _gradients(losses: Tensor, patch: Tensor, shown: Tensor) -> tuple[Tensor, float, float]:
    """Return the patch's gradient, and the fractions of images and of the patch's pixels without one."""
    if not losses.requires_grad:  # the victim's answer does not depend on what it is shown
        return torch.zeros_like(patch), 1.0, 1.0
    grad, image = torch.autograd.grad(losses.sum(), (patch, shown), materialize_grads=True)
    strongest = image.flatten(1).abs().amax(1)
    flat = ~(strongest > VANISHED) | strongest.isinf()
    grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
    return grad, float(flat.float().mean()), float((grad == 0).float().mean())


class AbstractPatchAttack(ABC):
    """An attack is a frozen dataclass of its choices; `run` checks and converts, `_run` searches."""

    def run(
        self,
        victim: Victim,
        images: Shaped[Tensor, "n c h w"],
        goal: Goal,
        *,
        seed: Seed = 0,
        progress: Progress | None = None,
    ) -> PatchResult:
        """Attack a victim.

        Args:
            victim: Logits of float images in [0, 1], see `edgeq.attacks.goal`.
            images: Bytes, or floats in [0, 1], on the victim's device.
            goal: True classes, and targets for a targeted attack.
            seed: Decides everything random; the same seed gives the same patches.
            progress: Called after each step.
        """
        check_goal(goal, images)
        with torch.enable_grad():
            return self._run(victim, as_float(images).detach(), goal.to(images.device), seed, progress)

    @abstractmethod
    def _run(self, victim: Victim, images: Tensor, goal: Goal, seed: Seed, progress: Progress | None) -> PatchResult:
        """Search for the patches."""


def seed_key(seed: Seed) -> str:
    """Return a seed of one number or several as a part of a generator's key."""
    return repr(seed)
