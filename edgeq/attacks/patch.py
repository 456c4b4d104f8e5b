"""Patches on images: where they may lie, and x_adv = x (1 - M) + P M, exactly.

`paste` writes the patch's pixels over the image's, so every pixel outside keeps its bits and gradients reach the patch
(and, outside it, the image).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from edgeq.errors import InputError
from edgeq.quant.quantizer import round_ste

Region = Literal["anywhere", "border", "off-centre"] | tuple[int, int]
CENTRE = 10 / 32  # side of the middle box that "off-centre" keeps free, of the image's: 10 of 32 pixels (Rao et al.)


@dataclass(frozen=True)
class Placement:
    """The top left pixel of each image's patch."""

    top: Int64[Tensor, " n"]
    left: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.top)

    def at(self, index: Int64[Tensor, " k"]) -> "Placement":
        """Return the places on some images."""
        return Placement(self.top[index], self.left[index])

    def to(self, device: torch.device) -> "Placement":
        """Return the places on a device."""
        return Placement(self.top.to(device), self.left.to(device))


def allowed(image_size: tuple[int, int], size: int, region: Region) -> Bool[Tensor, "rows columns"]:
    """Return which top left pixels a patch of `size` x `size` may have.

    Args:
        image_size: Height and width of the images.
        size: Side of the patch.
        region: "anywhere" inside the image; "border": touching an edge; "off-centre": clear of the middle box; or one
            place (top, left).
    """
    height, width = image_size
    if not 1 <= size <= min(height, width):
        raise InputError(f"expected a patch side from 1 to {min(height, width)}, got {size}; choose a smaller one")
    top = torch.arange(height - size + 1)[:, None]
    left = torch.arange(width - size + 1)[None, :]
    if region == "anywhere":
        places = (top >= 0) & (left >= 0)
    elif region == "border":
        places = (top == 0) | (left == 0) | (top == height - size) | (left == width - size)
    elif region == "off-centre":
        places = _misses(top, size, height) | _misses(left, size, width)
    else:
        places = (top == region[0]) & (left == region[1])
    if not bool(places.any()):
        raise InputError(
            f"expected a place for a {size}x{size} patch in {height}x{width} images, got none for region "
            f"{region!r}; choose a smaller patch or another region"
        )
    return places


def draw_places(places: Bool[Tensor, "rows columns"], count: int, gen: torch.Generator) -> Placement:
    """Return `count` uniform draws from the allowed places."""
    options = places.nonzero()
    drawn = options[torch.randint(len(options), (count,), generator=gen)]
    return Placement(drawn[:, 0], drawn[:, 1])


def paste(
    images: Shaped[Tensor, "n c h w"], patch: Shaped[Tensor, "#n c ph pw"], places: Placement
) -> Shaped[Tensor, "n c h w"]:
    """Return the images with a patch written over each; one patch for all, or one per image."""
    n, channels = images.shape[:2]
    rows = places.top[:, None] + torch.arange(patch.shape[2], device=images.device)
    columns = places.left[:, None] + torch.arange(patch.shape[3], device=images.device)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    index = (image, channel, rows[:, None, :, None], columns[:, None, None, :])
    return images.index_put(index, patch.expand(n, -1, -1, -1))


def cut(images: Shaped[Tensor, "n c h w"], places: Placement, size: int) -> Shaped[Tensor, "n c size size"]:
    """Return the square of each image that a patch there would hide."""
    n, channels = images.shape[:2]
    rows = places.top[:, None] + torch.arange(size, device=images.device)
    columns = places.left[:, None] + torch.arange(size, device=images.device)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def mask(places: Placement, size: int, image_size: tuple[int, int]) -> Bool[Tensor, "n 1 h w"]:
    """Return M: true where the patch hides the image."""
    rows = torch.arange(image_size[0], device=places.top.device) - places.top[:, None]
    columns = torch.arange(image_size[1], device=places.left.device) - places.left[:, None]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return inside[:, None]


def as_float(images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return bytes as floats in [0, 1]; floats as they are."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images


def to_bytes(patch: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Round to multiples of 1/255, straight through: a patch that could not be sent as bytes does not count."""
    return round_ste(patch * 255.0) / 255.0


def like(images: Shaped[Tensor, "n c h w"], patch: Float[Tensor, "m c ph pw"]) -> Shaped[Tensor, "m c ph pw"]:
    """Return a patch in the images' type: bytes for bytes."""
    if images.dtype == torch.uint8:
        return (patch * 255.0).round().clamp(0, 255).to(torch.uint8)
    return patch.to(images.dtype)


def _misses(start: Tensor, size: int, whole: int) -> Tensor:
    box = round(CENTRE * whole)
    first = (whole - box) // 2
    return (start + size <= first) | (start >= first + box)
