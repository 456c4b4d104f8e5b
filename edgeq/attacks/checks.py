"""Reasons to distrust a robustness number, found automatically; each check returns plain-language warnings, often none.

After auto-attack's `checks.py` (Croce, Hein, arXiv 2003.01690) and Carlini et al., arXiv 1902.06705, section 3 and 5:
gradients that vanish, a black box that beats the white box, and success that does not grow with the attacker's budget
are signs of a weak attack, not of a strong defence.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeq.attacks.base import PatchResult
from edgeq.attacks.goal import Victim
from edgeq.attacks.success import Success

FEW = 0.05  # of the gradients may vanish: some images saturate a ReLU network by themselves
MANY = 0.25  # of a patch's pixels without a gradient: clipping, not chance
STILL = 0.02  # of the images
CHANCE = 0.025  # one-sided
ENOUGH = 0.95  # at this rate success has little room to grow


def check_gradients(result: PatchResult, *, name: str = "attack") -> list[str]:
    """Warn when gradients are zero or not finite: of whole images, or of many of a patch's pixels."""
    if result.flat > FEW:
        return [
            f"{name}: {100 * result.flat:.0f} % of the gradients with respect to the image are zero or not finite; the "
            "success rate says little: look for rounding without a straight-through gradient, saturated units or a "
            "saturated softmax, and attack the margin instead of the cross-entropy"
        ]
    if result.dead > MANY:
        return [
            f"{name}: {100 * result.dead:.0f} % of the gradients with respect to the patch's pixels are zero; such "
            "pixels never change: look for clipping at black and white, and for places that the network does not see"
        ]
    return []


def check_climb(result: PatchResult, *, name: str = "attack") -> list[str]:
    """Warn when the loss ends no higher than it began."""
    if len(result.trace) < 2:
        return []
    first, last = result.trace[0], max(result.trace[len(result.trace) // 2 :])
    if last > first:
        return []
    return [
        f"{name}: the loss went from {first:.4g} to at most {last:.4g} in the second half of {len(result.trace)} "
        "steps; it does not climb: try a smaller step, and check the sign of the loss"
    ]


def check_blackbox(white: Success, black: Success, *, name: str = "attack") -> list[str]:
    """Warn when a black-box attack (or a transferred patch) beats the white-box one beyond chance."""
    if black.interval()[0] <= white.rate:
        return []
    return [
        f"{name}: the black-box attack reaches {100 * black.rate:.1f} % ({black.wins} of {black.total}), the white-box "
        f"one only {100 * white.rate:.1f} % ({white.wins} of {white.total}); gradients are masked, or the white-box "
        "attack has too few steps or restarts"
    ]


def check_settled(result: PatchResult, *, name: str = "attack") -> list[str]:
    """Warn when the last of many starts still won images: more of them would win more."""
    if result.late <= STILL:
        return []
    return [
        f"{name}: {100 * result.late:.0f} % of the images were won by the last quarter of the starts alone; more "
        "starts would win more: raise the effort, and read this success as a lower bound"
    ]


def check_paired(white: Bool[Tensor, " n"], other: Bool[Tensor, " n"], *, name: str = "attack") -> list[str]:
    """Warn when patches made otherwise fool more images than the white-box ones beyond chance (a sign test).

    Args:
        white: Which images the white-box attack fools.
        other: Which images the other attack fools; the same images.
        name: Which attacks.
    """
    more, fewer = int((other & ~white).sum()), int((white & ~other).sum())
    tail = sum(math.comb(more + fewer, k) for k in range(more, more + fewer + 1)) / 2 ** (more + fewer)
    if more <= fewer or tail > CHANCE:
        return []
    return [
        f"{name}: it fools {int(other.sum())} of {len(white)} images, the white-box attack only {int(white.sum())}; "
        "gradients are masked, or the white-box attack has too few steps or starts"
    ]


def check_growth(rates: Mapping[int, Success], *, budget: str, name: str = "attack") -> list[str]:
    """Warn when success does not grow with the budget: pixels of the patch's side, steps, or restarts.

    Args:
        rates: Success by budget.
        budget: What the budget is, for the message: "patch side" or "steps".
        name: Which attack.
    """
    found: list[str] = []
    ordered = sorted(rates.items())
    for (small, before), (large, after) in pairwise(ordered):
        if after.interval()[1] < before.rate:
            found.append(
                f"{name}: success falls from {100 * before.rate:.1f} % to {100 * after.rate:.1f} % when the {budget} "
                f"grows from {small} to {large}; the larger attack includes the smaller one, so it has not converged"
            )
    if len(ordered) > 1 and not found:
        (small, before), (large, after) = ordered[0], ordered[-1]
        if after.rate <= before.rate < ENOUGH:
            found.append(
                f"{name}: success does not grow ({100 * before.rate:.1f} % to {100 * after.rate:.1f} %) when the "
                f"{budget} grows from {small} to {large}; the attack is stuck, or its gradients are masked"
            )
    return found


@torch.no_grad()
def check_victim(victim: Victim, images: Float[Tensor, "n c h w"], *, name: str = "victim") -> list[str]:
    """Warn when the same images get different answers, when they are probabilities, or when they are not finite."""
    first, second = victim(images), victim(images)
    found: list[str] = []
    if not bool(first.isfinite().all()):
        found.append(f"{name}: some logits are not finite; every loss of such an image is meaningless")
    if not torch.equal(first, second):
        found.append(
            f"{name}: two calls with the same images differ; it is randomised: average gradients and answers over its "
            "randomness (EOT) before reporting a rate"
        )
    if bool((first >= 0).all()) and bool(((first.sum(-1) - 1).abs() < 1e-3).all()):
        found.append(f"{name}: the answers look like probabilities; attack the logits, whose gradients do not fade")
    return found
