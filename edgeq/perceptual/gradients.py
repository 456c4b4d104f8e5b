"""Maps in units of their own gradients, and the two gradient operators.

    x' = x / max|x|                                per map; the maximum is a constant for autograd
    x" = x' / sqrt(mean |central(x')|^2 + FLOOR)   per map: a typical gradient of x" has length 1

Both steps together are invariant to positive scaling, and so is the derivative: it has no component along the map
itself, so a network cannot lower a penalty by making maps small. A map whose gradients are below 1e-5 of its largest
value counts as constant: the gradients of x" stay near 0, and are exactly 0 for an exactly constant map. The first step
keeps the numbers, and their second derivatives, within float32 for maps as faint as input gradients (1e-12).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-10  # (1e-5)^2: float32 convolutions leave relative noise of about 1e-6 in a map that should be constant


def normalise(maps: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
    """Return x": each map in units of its typical gradient; what edges and histograms are made from."""
    top = maps.detach().abs().amax((-2, -1), keepdim=True)
    maps = maps / torch.where(top > 1e-30, top, torch.ones_like(top))
    dx, dy = maps[..., 2:] - maps[..., :-2], maps[..., 2:, :] - maps[..., :-2, :]
    area = maps.shape[-2] * maps.shape[-1]
    energy = dx.square().sum((-2, -1), keepdim=True) + dy.square().sum((-2, -1), keepdim=True)
    return maps * torch.rsqrt(energy / area + FLOOR)


def sobel(maps: Float[Tensor, "*n h w"]) -> tuple[Float[Tensor, "*n h2 w2"], Float[Tensor, "*n h2 w2"]]:
    """Return Sobel's dx and dy where the 3x3 window fits; the frame of the map is not an edge.

    The kernels are separable: a smoothing (1, 2, 1) along one axis and a difference along the other.
    """
    rows = maps[..., 2:, :] + 2.0 * maps[..., 1:-1, :] + maps[..., :-2, :]
    columns = maps[..., 2:] + 2.0 * maps[..., 1:-1] + maps[..., :-2]
    return rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]


def central(maps: Float[Tensor, "*n h w"]) -> tuple[Float[Tensor, "*n h w"], Float[Tensor, "*n h w"]]:
    """Return the differences x[i+1] - x[i-1] along columns and rows; 0 where a neighbour is missing."""
    dx = F.pad(maps[..., 2:] - maps[..., :-2], (1, 1))
    dy = F.pad(maps[..., 2:, :] - maps[..., :-2, :], (0, 0, 1, 1))
    return dx, dy
