"""Histograms of oriented gradients (Dalal & Triggs 2005), hard for reports and smooth for losses.

Central differences of normalised maps (gradients.py) go into histograms of unsigned orientation, cell by cell
(orientation.py); then overlapping blocks of `block` x `block` cells are divided by their L2 norm. The cells are `cell`
pixels wide, by default a quarter of the map's shorter side and at least 2: 8 pixels at 32 x 32, 4 at 16 x 16. Rows and
columns that fill no cell are left out.

Smooth and hard differ in the bins only: the hard form gives a pixel's whole magnitude to one bin, the smooth one
spreads it with a window cos^32 (9 bins) of half width 12 degrees; linear interpolation between bins has 10.

Two maps of independent noise have histograms of cosine 0.8 to 0.9 (hard; 0.92 smooth), because histograms are nowhere
negative. `centred` removes what all images of a batch have in common.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edgeq.errors import InputError
from edgeq.perceptual.gradients import central
from edgeq.perceptual.orientation import hard_histograms, soft_histograms

BLOCK_EPS = 1e-4  # squared too: a block with less than 1 % of a typical gradient has no orientation to speak of


def cell_size(h: int, w: int, cell: int | None = None) -> int:
    """Return the cell's width in pixels: `cell`, or a quarter of the shorter side and at least 2."""
    size = max(2, min(h, w) // 4) if cell is None else cell
    if size > min(h, w):
        raise InputError(f"expected maps that hold one cell of {size} x {size} pixels, got {h} x {w}; use earlier taps")
    return size


def soft_hog(
    maps: Float[Tensor, "*n h w"], *, bins: int = 9, cell: int | None = None, block: int = 2
) -> Float[Tensor, "*n d"]:
    """Return the smooth descriptor of each normalised map.

    One row of numbers per map, in the order block row, block column, cell row, cell column, bin.
    """
    return _hog(maps, soft_histograms, bins=bins, cell=cell, block=block)


@torch.no_grad()
def hard_hog(
    maps: Float[Tensor, "*n h w"], *, bins: int = 9, cell: int | None = None, block: int = 2
) -> Float[Tensor, "*n d"]:
    """Return the descriptor of each normalised map with hard bins: scikit-image's `hog(…, block_norm="L2")`."""
    return _hog(maps, hard_histograms, bins=bins, cell=cell, block=block)


def centred(descriptors: Float[Tensor, "widths batch d"]) -> Float[Tensor, "widths batch d"]:
    """Subtract each width's mean descriptor over the batch: what is left tells an image from the others.

    Subtracting a constant per histogram would not do: the frame, ReLU and sparse maps prefer some orientations in every
    image, which leaves a cosine of 0.16 between noise maps and of 0.7 between their ReLUs.
    """
    if descriptors.shape[1] < 2:
        raise InputError("expected a batch of 2 or more images, got 1; without others there is no mean to subtract")
    return descriptors - descriptors.mean(1, keepdim=True)


def _hog(maps: Tensor, histograms: Callable[..., Tensor], *, bins: int, cell: int | None, block: int) -> Tensor:
    lead, (h, w) = maps.shape[:-2], maps.shape[-2:]
    size = cell_size(h, w, cell)
    dx, dy = (d[:, : h - h % size, : w - w % size] for d in central(maps.reshape(-1, h, w)))
    return _blocks(histograms(dx, dy, bins=bins, cell=size), block).reshape(*lead, -1)


def _blocks(cells: Tensor, block: int) -> Tensor:
    """[bins, n, rows, columns] -> [n, block rows, block columns, cell rows, cell columns, bins], L2-normalised."""
    side = min(block, cells.shape[-2], cells.shape[-1])
    rows, columns = cells.shape[-2] - side + 1, cells.shape[-1] - side + 1
    energy = F.avg_pool2d(cells.square().sum(0), side, stride=1) * float(side * side)
    scale = torch.rsqrt(energy + BLOCK_EPS)
    shifts = [(i, j) for i in range(side) for j in range(side)]
    blocks = torch.stack([cells[..., i : i + rows, j : j + columns] * scale for i, j in shifts])
    return blocks.unflatten(0, (side, side)).permute(3, 4, 5, 0, 1, 2)
