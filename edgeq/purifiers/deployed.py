"""A guarded classifier as a device runs it, and the ways in which an attacker can look at it.

`edgeq.attacks.pipeline` steps and counts; what a way means, that is which function is differentiated, is said here for
purifiers, and in `shielded` for shields.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from edgeq.errors import InputError
from edgeq.purifiers.base import FIXED, AbstractPurifier, Draw, sample
from edgeq.purifiers.purevq import PureVQPurifier

Victim = Callable[[Tensor], Tensor]
PURIFIER_WAYS = ("straight", "soft", "identity", "eot", "fixed", "transfer", "fab", "square")


@dataclass(frozen=True)
class Look:
    """How an attacker looks at one step.

    Attributes:
        way: Name of the way.
        draw: The attacker's own noise.
        samples: Draws averaged by `eot`.
        temperature: Of `soft`.
    """

    way: str
    draw: Draw
    samples: int
    temperature: float


@dataclass(frozen=True)
class Inside:
    """What a bottleneck makes of images, to see what of a perturbation passes it.

    Attributes:
        before: What enters.
        after: What leaves.
        codes: Numbers of the codewords chosen; None without any.
    """

    before: Shaped[Tensor, " n *dims"]
    after: Float[Tensor, " n *dims"]
    codes: Int64[Tensor, "n h w"] | None


class AbstractDeployed(ABC):
    """A guard with its classifier; a victim of `edgeq.attacks`.

    Attributes:
        samples: Draws whose logits are averaged.
        draw: Seed of the draws.
        victim: The classifier without its guard.
    """

    samples: int
    draw: Draw
    victim: Victim

    @abstractmethod
    def __call__(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "*members n classes"]:
        """Return the logits."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether the answers depend on the draw."""

    @property
    @abstractmethod
    def ways(self) -> tuple[str, ...]:
        """The ways of attack that mean something."""

    @abstractmethod
    def seen(self, look: Look) -> Victim:
        """Return what the attacker differentiates."""

    @abstractmethod
    def drawn(self, draw: Draw) -> "AbstractDeployed":
        """Return the same with other noise."""

    @abstractmethod
    def inside(self, images: Shaped[Tensor, "n c h w"]) -> Inside:
        """Return what passes the bottleneck."""


@dataclass(frozen=True)
class Purified(AbstractDeployed):
    """A purifier and the victim behind it; itself a victim.

    Attributes:
        purifier: The purifier.
        victim: Logits of images in [0, 1].
        samples: Draws whose logits are averaged; 1 for a deterministic purifier.
        draw: Seed of the draws, and whether images share them.
        temperature: Of a soft choice of codewords; 0 but in attacks.
    """

    purifier: AbstractPurifier
    victim: Victim
    samples: int = 1
    draw: Draw = FIXED
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check the number of draws."""
        if self.samples < 1 or (self.samples > 1 and not self.purifier.stochastic):
            raise InputError(
                f"expected 1 draw of a deterministic purifier, or more of a stochastic one, got {self.samples}"
            )

    def __call__(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "*members n classes"]:
        """Return the mean logits."""
        total = self.victim(self.purified(images, 0))
        for k in range(1, self.samples):
            total = total + self.victim(self.purified(images, k))
        return total / self.samples

    @property
    def stochastic(self) -> bool:
        """Whether the purifier is."""
        return self.purifier.stochastic

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of attack that mean something for the purifier."""
        return ways_for(self.purifier)

    def seen(self, look: Look) -> Victim:
        """Return what the attacker differentiates."""
        if look.way == "transfer":
            return self.victim
        if look.way == "fixed" or not self.stochastic:
            view = self
        else:
            view = replace(self, samples=look.samples if look.way == "eot" else 1, draw=look.draw)
        if look.way == "soft":
            return replace(view, temperature=look.temperature)
        return _identity(view) if look.way == "identity" else view

    def drawn(self, draw: Draw) -> "Purified":
        """Return the same with other noise."""
        return replace(self, draw=draw)

    def purified(self, images: Shaped[Tensor, "n c h w"], k: int) -> Float[Tensor, "n c h w"]:
        """Return the images of the k-th draw."""
        return self.purifier(images, draw=sample(self.draw, k), temperature=self.temperature)

    def inside(self, images: Shaped[Tensor, "n c h w"]) -> Inside:
        """Return images, purified images, and codes."""
        codes = self.purifier.indices(images) if isinstance(self.purifier, PureVQPurifier) else None
        before = images / 255.0 if images.dtype == torch.uint8 else images
        return Inside(before, self.purifier(images), codes)


def ways_for(purifier: AbstractPurifier) -> tuple[str, ...]:
    """Return the ways that mean something for a purifier: `soft` needs codewords, `eot`, `fixed` noise, `fab` none."""
    idle = (() if purifier.codewords else ("soft",)) + (("fab",) if purifier.stochastic else ("eot", "fixed"))
    return tuple(way for way in PURIFIER_WAYS if way not in idle)


def _identity(view: Purified) -> Victim:
    """Return the pipeline whose purifier has derivative 1."""

    def victim(x: Tensor) -> Tensor:
        with torch.no_grad():
            cleaned = view.purified(x, 0)
        return view.victim(x + (cleaned - x).detach())

    return victim
