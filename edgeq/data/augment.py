"""Augmentation of whole batches, with no loop over images.

For every image of a batch FIELDS uniform numbers are drawn in advance, whatever is switched on. What happens to an
image depends on its own row alone, so a batch can be cut into slices for several processes, and each image is
augmented as it would be in one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from edgeq.errors import InputError

FILL = 128  # mid-grey, the zero of the networks' input
FIELDS = 8  # crop y, crop x, flip, cutout y, cutout x, and for files: area, aspect, (spare)

Draws = Float[Tensor, "n 8"]


@dataclass(frozen=True)
class Augment:
    """What training does to its images.

    Attributes:
        crop: Pad by this many mid-grey pixels on each side and cut the old size out at a random place. For images
            decoded from files any positive number means a random part of the whole image, resized, instead.
        flip: Exchange left and right in half of the images; `Dataset.flip` says whether that keeps the class.
        cutout: Side of a mid-grey square around a random pixel; it may reach over the edge. 0 is none.
    """

    crop: int = 4
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.crop < 0 or self.cutout < 0:
            raise InputError(f"expected crop and cutout of 0 or more, got {self.crop} and {self.cutout}; 0 is off")


def draw(count: int, gen: torch.Generator) -> Draws:
    """Draw the numbers that decide the augmentation of `count` images."""
    return torch.rand(count, FIELDS, generator=gen)


def augment_batch(
    images: UInt8[Tensor, "n 3 h w"], draws: Draws, augment: Augment, *, shift: bool = True
) -> UInt8[Tensor, "n 3 h w"]:
    """Apply `augment`; integers only, so every device gives the same bytes.

    Args:
        images: The batch.
        draws: One row of `draw` per image.
        augment: What to do.
        shift: Whether to cut out a random place; False for files, whose random part was chosen while decoding.
    """
    if shift and augment.crop:
        images = _shift(images, draws, augment.crop)
    if augment.flip:
        flipped = (draws[:, 2] < 0.5).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    if augment.cutout:
        images = _cutout(images, draws, augment.cutout)
    return images


def _steps(uniform: Float[Tensor, " n"], count: int, device: torch.device) -> Tensor:
    """Map [0, 1) to 0 … count-1."""
    return (uniform * count).long().clamp(max=count - 1).to(device)


def _shift(images: UInt8[Tensor, "n 3 h w"], draws: Draws, pad: int) -> UInt8[Tensor, "n 3 h w"]:
    height, width = images.shape[2:]
    windows = functional.pad(images, (pad, pad, pad, pad), value=FILL).unfold(2, height, 1).unfold(3, width, 1)
    top, left = (_steps(draws[:, k], 2 * pad + 1, images.device) for k in (0, 1))
    every = torch.arange(len(images), device=images.device)
    return windows[every, :, top, left]  # a view of all places, from which each image takes one


def _cutout(images: UInt8[Tensor, "n 3 h w"], draws: Draws, side: int) -> UInt8[Tensor, "n 3 h w"]:
    hidden = []
    for axis, size in enumerate(images.shape[2:]):
        first = _steps(draws[:, 3 + axis], size, images.device)[:, None] - side // 2
        place = torch.arange(size, device=images.device)
        hidden.append((place >= first) & (place < first + side))
    return images.masked_fill((hidden[0][:, :, None] & hidden[1][:, None, :])[:, None], FILL)
