"""What an attacker wants of each image, and how far a victim's answer is from it.

A *victim* is any function from float images in [0, 1] to logits: `(n, classes)`, or `(members, n, classes)` for an
ensemble, over whose members every loss is a mean. All losses rise with the attacker's success:

    margin          untargeted  max_{j != y} z_j - z_y          targeted  z_t - max_{j != t} z_j
    cross-entropy   untargeted  -log p_y                        targeted  log p_t
    logits (LAVAN)  untargeted  max_{j != y} z_j - z_y          targeted  z_t - z_y
    dlr             untargeted  the margin / (z_1 - z_3)        targeted  (z_t - z_y) / (z_1 - (z_3 + z_4) / 2)

with z_1, z_3 and z_4 the largest, third and fourth logit (Croce and Hein, arXiv 2003.01690): dlr does not change with
the scale of the logits. With two classes nothing is left of that, and it is the margin.

In an ensemble a margin m counts as -softplus(-m), so that a member which is fooled already stops pulling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from edgeq.errors import InputError

TINY = 1e-12
Victim = Callable[[Tensor], Tensor]
Loss = Literal["margin", "cross-entropy", "logits", "dlr"]


@dataclass(frozen=True)
class Goal:
    """The true classes and, for a targeted attack, the classes to be named instead.

    Attributes:
        labels: True classes.
        targets: Wanted classes; None is untargeted: any wrong class will do.
    """

    labels: Int64[Tensor, " n"]
    targets: Int64[Tensor, " n"] | None = None

    @staticmethod
    def towards(labels: Int64[Tensor, " n"], target: int) -> "Goal":
        """Return the goal that every image be named `target`."""
        return Goal(labels, torch.full_like(labels, target))

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Int64[Tensor, " k"]) -> "Goal":
        """Return the goal of some images."""
        return Goal(self.labels[index], None if self.targets is None else self.targets[index])

    def repeat(self, times: int) -> "Goal":
        """Return the goal of each image `times` times in a row."""
        repeated = None if self.targets is None else self.targets.repeat_interleave(times)
        return Goal(self.labels.repeat_interleave(times), repeated)

    def to(self, device: torch.device) -> "Goal":
        """Return the goal on a device."""
        return Goal(self.labels.to(device), None if self.targets is None else self.targets.to(device))

    def loss(self, logits: Float[Tensor, "*members n classes"], kind: Loss) -> Float[Tensor, " n"]:
        """Return how well the attack does on each image; see the module docstring."""
        if kind == "cross-entropy":
            wanted = self.labels if self.targets is None else self.targets
            logs = _pick(F.log_softmax(logits, -1), wanted)
            return _over_members(-logs if self.targets is None else logs)
        if kind == "dlr" and logits.shape[-1] > 2:
            return _over_members(self._ratio(logits))
        if kind == "logits" and self.targets is not None:
            margins = _pick(logits, self.targets) - _pick(logits, self.labels)
        else:
            margins = self.margins(logits)
        return margins if logits.dim() == 2 else _over_members(-F.softplus(-margins))

    def _ratio(self, logits: Float[Tensor, "*members n classes"]) -> Float[Tensor, "*members n"]:
        first, _, third, *rest = logits.topk(min(4, logits.shape[-1]), -1).values.unbind(-1)
        if self.targets is None:
            return self.margins(logits) / (first - third).clamp_min(TINY)
        gain = _pick(logits, self.targets) - _pick(logits, self.labels)
        return gain / (first - (third + (rest or [third])[0]) / 2).clamp_min(TINY)

    def margins(self, logits: Float[Tensor, "*members n classes"]) -> Float[Tensor, "*members n"]:
        """Return the margin of each member and image; positive where the goal is reached."""
        index = self.labels if self.targets is None else self.targets
        index = index.expand(logits.shape[:-1])[..., None]
        own, other = logits.gather(-1, index)[..., 0], logits.scatter(-1, index, -torch.inf).amax(-1)
        return other - own if self.targets is None else own - other

    def reached(self, logits: Float[Tensor, "*members n classes"]) -> Bool[Tensor, "*members n"]:
        """Return where the named class is a wrong one (untargeted) or the target."""
        named = logits.argmax(-1)  # not the sign of the margin: integer logits tie, and argmax is what the device runs
        return named != self.labels if self.targets is None else named == self.targets

    def rank(self, logits: Float[Tensor, "*members n classes"]) -> Float64[Tensor, " n"]:
        """Return the order in which a worst case is kept: first the number of fooled members, then the mean margin."""
        margin = _over_members(self.margins(logits).double())
        return self.reached(logits).double().reshape(-1, len(self)).sum(0) + 0.5 + 0.5 * margin / (1 + margin.abs())


def check_goal(goal: Goal, images: Tensor) -> None:
    """Say what does not fit."""
    if images.ndim != 4 or len(images) != len(goal) or len(goal) == 0:
        raise InputError(
            f"expected images of shape (n, channels, h, w), one per label, got {tuple(images.shape)} for {len(goal)} "
            "labels; pair them"
        )
    if goal.targets is not None and len(goal.targets) != len(goal):
        raise InputError(f"expected one target per label, got {len(goal.targets)} for {len(goal)}; pair them")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"expected uint8 images or floats in [0, 1], got {images.dtype}; convert them")
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError("expected float images in [0, 1], got values outside (or NaN); divide bytes by 255")


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index.expand(values.shape[:-1])[..., None])[..., 0]


def _over_members(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(0, -2).mean(0)
