"""Similarities of descriptors between widths, for every image and pair at once.

All come from one batched product <x_i, x_j> per image, [widths, widths]: its diagonal holds the squared norms.

    dice    = 2 <x, y> / (|x|^2 + |y|^2)      squared denominators, so that a soft mask has dice 1 with itself
    cosine  = <x, y> / sqrt(|x|^2 |y|^2)
    overlap = <x, y> / (|x|^2 + |y|^2 - <x, y>)      intersection over union, for masks of zeros and ones

A descriptor of zeros (a constant map) is similar to nothing, itself included: 0, with gradient 0.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

EPS = 1e-6


def all_pairs(widths: int) -> Int64[Tensor, "pairs 2"]:
    """Return the unordered pairs of different widths, as positions: (0, 1), (0, 2) and so on."""
    return torch.triu_indices(widths, widths, 1).T.contiguous()


def sample_pairs(widths: int, count: int, generator: torch.Generator | None = None) -> Int64[Tensor, "pairs 2"]:
    """Return `count` different unordered pairs drawn at random; all of them where there are no more."""
    pairs = all_pairs(widths)
    return pairs[torch.randperm(len(pairs), generator=generator)[:count].sort().values]


def dice(
    x: Float[Tensor, "widths batch d"], pairs: Int64[Tensor, "pairs 2"], order: Int64[Tensor, " batch"] | None = None
) -> Float[Tensor, "pairs batch"]:
    """Return SoftDice for each pair and image; with `order`, between image n and image order[n] of the other width."""
    cross, a, b = _products(x, pairs, order)
    return (2.0 * cross / (a + b + EPS)).mean(0)


def cosine(
    x: Float[Tensor, "widths batch d"], pairs: Int64[Tensor, "pairs 2"], order: Int64[Tensor, " batch"] | None = None
) -> Float[Tensor, "pairs batch"]:
    """Return the cosine for each pair and image; with `order`, between image n and image order[n]."""
    cross, a, b = _products(x, pairs, order)
    return (cross * torch.rsqrt(a * b + EPS**2)).mean(0)


def overlap(
    x: Float[Tensor, "widths batch d"], pairs: Int64[Tensor, "pairs 2"], order: Int64[Tensor, " batch"] | None = None
) -> Float[Tensor, "pairs batch"]:
    """Return intersection over union of masks for each pair and image; with `order`, of image n and image order[n]."""
    cross, a, b = _products(x, pairs, order)
    return (cross / (a + b - cross + EPS)).mean(0)


def _products(x: Tensor, pairs: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return <x_i, y_j>, |x_i|^2 and |y_j|^2, each [1 or 2, pairs, batch]; 2: both directions of a shuffled pair."""
    i, j = pairs.to(x.device).unbind(1)
    rows = x.transpose(0, 1)
    if order is None:
        gram = rows @ rows.mT
        norms = gram.diagonal(dim1=1, dim2=2).T
        return gram[:, i, j].T[None], norms[i][None], norms[j][None]
    norms = x.square().sum(-1)
    gram = rows @ rows[order].mT
    there, back = torch.cat([i, j]), torch.cat([j, i])
    shape = (2, len(i), -1)
    cross = gram[:, there, back].T
    return cross.reshape(shape), norms[there].reshape(shape), norms[:, order][back].reshape(shape)
