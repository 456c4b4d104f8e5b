"""What is added up batch by batch for one unit at one width, and decibels.

SQNR = 10 log10(sum y^2 / sum (y_q - y)^2). It is kept within +-100 dB, so that an exact result (100) and noise where
there is no signal (-100) stay numbers.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LIMIT_DB = 100.0


def decibels(signal: float, noise: float) -> float:
    """Return the SQNR of a signal's power to the noise's."""
    if noise <= 0:
        return LIMIT_DB
    if signal <= 0:
        return -LIMIT_DB
    return max(-LIMIT_DB, min(LIMIT_DB, 10 * math.log10(signal / noise)))


def power(x: Float[Tensor, "n c *space"]) -> Float[Tensor, " c"]:
    """Return each channel's sum of squares, in float64."""
    return x.square().sum([0, *range(2, x.dim())], dtype=torch.float64)


def code_counts(u: Float[Tensor, "*dims"], lo: int, hi: int) -> Int64[Tensor, " bins"]:
    """Count the codes lo...hi of values in units of the step; the first and the last bin hold what lies beyond."""
    codes = u.round().clamp(lo - 1, hi + 1).long() - (lo - 1)
    return torch.bincount(codes.flatten(), minlength=hi - lo + 3)


class Tally:
    """The sums of one unit at one width; a plain number or tensor each, all starting at 0."""

    def __init__(self) -> None:
        self.signal: Tensor | float = 0.0  # of the unit's result in real numbers, per channel
        self.noise: Tensor | float = 0.0  # of the same with the whole network at the width
        self.own_noise: Tensor | float = 0.0  # with this unit alone at the width
        self.logits_noise = 0.0  # at the network's end, with this unit alone at the width
        self.lost = self.gained = 0  # images, this unit alone at the width
        self.left_lost = self.left_gained = 0  # images, this unit alone left in real numbers
        self.codes: Tensor | int = 0
        self.float_codes: Tensor | int = 0
