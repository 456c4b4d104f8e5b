"""What counts as a poisoning attack's success, on a classifier trained on what the attacker changed.

* `Targets`: images that training never sees are named as the attacker wants.
* `Trigger`: images of *other* classes are named as the attacker wants once a pattern is added to them, times
  a strength. Images of the wanted class prove nothing and are not shown; strength 0 says how often it happens anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int16, Int64, UInt8
from torch import Tensor

from edgeq.attacks.success import Success
from edgeq.data.splits import Split

Classify = Callable[[Tensor], Tensor]  # bytes -> classes
STRENGTHS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Targets:
    """Some images, and what they shall be named.

    Attributes:
        images: The images.
        labels: Their true classes.
        label: The class that the attacker wants.
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    label: int

    def shown(self, test: Split) -> dict[str, Tensor]:
        """Return what the classifier is asked about."""
        return {"target": self.images}


@dataclass(frozen=True)
class Trigger:
    """A pattern, and what images with it shall be named.

    Attributes:
        pattern: What is added, in bytes.
        label: The class that the attacker wants.
    """

    pattern: Int16[Tensor, "3 h w"]
    label: int

    def shown(self, test: Split) -> dict[str, Tensor]:
        """Return what the classifier is asked about, by strength."""
        others = test.images[test.labels != self.label]
        return {f"x{strength}": stamp(others, self.pattern, strength) for strength in STRENGTHS}


def stamp(
    images: UInt8[Tensor, "n 3 h w"], pattern: Int16[Tensor, "3 h w"], strength: int = 1
) -> UInt8[Tensor, "n 3 h w"]:
    """Return the images with a pattern added, times a strength."""
    return (images.to(torch.int16) + strength * pattern).clamp(0, 255).to(torch.uint8)


def successes(goal: Targets | Trigger, test: Split, classify: Classify) -> dict[str, Success]:
    """Count how often a classifier says what the attacker wants, for each thing that it is shown."""
    counted = {}
    for name, images in goal.shown(test).items():
        wins = int((classify(images) == goal.label).sum()) if len(images) else 0
        counted[name] = Success(wins, len(images))
    return counted
