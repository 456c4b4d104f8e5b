"""Edge maps: the Sobel magnitude, its threshold, and the soft mask that stands for the hard one in a loss.

For a normalised map (gradients.py), whose typical central difference is 1:

    A = (sqrt(|sobel / 4|^2 + EPS) - sqrt(EPS)) / PEAK     smooth at 0, 0 for a constant map
    tau = max(quantile_q(A), TAU_FLOOR)                    per map, a constant for autograd
    S = sigmoid(k (A - tau)) - sigmoid(-k tau)             0 where A = 0

Sobel's kernel is four smoothed central differences. PEAK brings strong edges, some four times the typical gradient, to
1, the range that k = 100 needs: 10 to 16 % of a noise map's pixels then lie within 3 / k of the threshold and receive a
gradient. The floor of tau matters: more than 85 % of a sparse map (after ReLU, at 2 bits) is exactly constant, its
quantile is 0, and `A >= 0` would mark every pixel as an edge and make any two such maps alike.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.perceptual.gradients import sobel

EPS = 1e-4  # (1 % of a typical gradient)^2
PEAK = 4.0
TAU_FLOOR = 0.05  # 20 % of a typical gradient


def edge_magnitude(maps: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h2 w2"]:
    """Return A of normalised maps, on the (h-2) x (w-2) pixels that have all their neighbours."""
    dx, dy = sobel(maps)
    squared = (dx.square() + dy.square()) / 16.0
    return ((squared + EPS).sqrt() - EPS**0.5) / PEAK


def edge_threshold(magnitude: Float[Tensor, "*n h w"], q: float = 0.85) -> Float[Tensor, "*n 1 1"]:
    """Return tau per map: the smallest value that a share q of the pixels does not exceed, and at least TAU_FLOOR."""
    flat = magnitude.detach().flatten(-2)
    rank = min(max(int(q * flat.shape[-1] + 0.5), 1), flat.shape[-1])
    return flat.kthvalue(rank, dim=-1).values.clamp_min(TAU_FLOOR)[..., None, None]


def soft_edges(maps: Float[Tensor, "*n h w"], *, q: float = 0.85, sharpness: float = 100.0) -> Float[Tensor, "*n d"]:
    """Return the soft edge mask S of each normalised map, one row of pixels per map, each in [0, 1)."""
    magnitude = edge_magnitude(maps)
    tau = edge_threshold(magnitude, q)
    return ((sharpness * (magnitude - tau)).sigmoid() - (-sharpness * tau).sigmoid()).flatten(-2)


@torch.no_grad()
def hard_edges(maps: Float[Tensor, "*n h w"], *, q: float = 0.85) -> Float[Tensor, "*n d"]:
    """Return the mask A > tau as zeros and ones; the strict inequality leaves ties at tau out."""
    magnitude = edge_magnitude(maps)
    return (magnitude > edge_threshold(magnitude, q)).to(maps.dtype).flatten(-2)
