"""Attack success, and how sure it is.

Untargeted: of the images that the clean network names rightly, those that the attacked one names wrongly. Targeted: of
the images that the clean network names rightly *and that are not of the target class*, those named as the target. An
image that is wrong from the start, or is of the target class already, proves nothing. The interval is Wilson's,

    (p + z^2 / 2n  ±  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),

which stays inside [0, 1] and is right for few images and rates near 0 or 1.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from jaxtyping import Float
from torch import Tensor

from edgeq.attacks.goal import Goal
from edgeq.errors import InputError


@dataclass(frozen=True)
class Success:
    """How many of the images that count were won by the attacker."""

    wins: int
    total: int

    def __post_init__(self) -> None:
        """Check that the counts can be."""
        if not 0 <= self.wins <= self.total:
            raise InputError(f"expected wins between 0 and the total, got {self.wins} of {self.total}; count again")

    @property
    def rate(self) -> float:
        """The fraction; 0 where no image counts."""
        return self.wins / max(self.total, 1)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return Wilson's interval; (0, 1) where no image counts."""
        return wilson(self.wins, self.total, confidence=confidence)


def wilson(wins: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a fraction."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, spread = wins / total, z * z / total
    half = z * math.sqrt(p * (1 - p) / total + spread / (4 * total))
    low, high = (p + spread / 2 - half) / (1 + spread), (p + spread / 2 + half) / (1 + spread)
    return (0.0 if wins == 0 else low), (1.0 if wins == total else high)


def success(clean: Float[Tensor, "n classes"], attacked: Float[Tensor, "n classes"], goal: Goal) -> Success:
    """Count untargeted success, or targeted success where the goal has targets, from the logits of one victim."""
    counts = clean.argmax(1) == goal.labels
    if goal.targets is not None:
        counts &= goal.labels != goal.targets
    return Success(int((goal.reached(attacked) & counts).sum()), int(counts.sum()))


def untargeted(clean: Float[Tensor, "n classes"], attacked: Float[Tensor, "n classes"], goal: Goal) -> Success:
    """Count untargeted success, whatever the goal was: how many right answers became wrong."""
    return success(clean, attacked, Goal(goal.labels))


def robust(clean: Float[Tensor, "n classes"], attacked: Float[Tensor, "n classes"], goal: Goal) -> Success:
    """Count the images named rightly both clean and under attack, out of all: robust accuracy."""
    right = (clean.argmax(1) == goal.labels) & (attacked.argmax(1) == goal.labels)
    return Success(int(right.sum()), len(right))
