"""Expectation over transformation: a patch under random place, scale, rotation and brightness, a batch in one call.

A view puts the patch's centre at c, turned by an angle a and scaled by s. The image's pixel p then shows the patch's
coordinates (in [-1, 1], the patch being k pixels wide)

    u = 2 / (s k) R(-a) (p - c),

bilinearly interpolated, with weight A = 1 inside, falling to 0 over one pixel at the edge, and 0 outside:
x_adv = x (1 - A) + gain P A, clipped to [0, 1]. Outside the patch A is exactly 0, so the image keeps its bits. With
scale 1 and no rotation the patch is pasted pixel for pixel instead.

On CUDA the backward pass of grid_sample adds in no fixed order, so patches then agree between runs only to rounding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edgeq.attacks.patch import Placement, Region, allowed, draw_places, paste
from edgeq.errors import InputError


@dataclass(frozen=True)
class EOT:
    """The random views that a patch must survive.

    Attributes:
        rotation: Largest angle either way, in degrees.
        scale: Smallest and largest factor on the patch's side.
        brightness: The patch is multiplied by 1 - brightness ... 1 + brightness.
        region: Where it may lie, see `edgeq.attacks.patch.allowed`.
    """

    rotation: float = 22.5
    scale: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.1
    region: Region = "anywhere"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.rotation <= 180.0 or not 0.0 <= self.brightness < 1.0:
            raise InputError(
                f"expected rotation in 0..180 and brightness from 0 to below 1, got {self.rotation} and "
                f"{self.brightness}; correct them"
            )
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"expected scale as (smallest, largest) above 0, got {self.scale}; correct it")

    @property
    def exact(self) -> bool:
        """Whether patches keep their pixels: neither turned nor scaled."""
        return self.rotation == 0.0 and self.scale == (1.0, 1.0)


ROUNDING = 1e-6  # how far outside 0 and 1 a blend of values inside may land


def pixels(region: Region = "anywhere") -> EOT:
    """Return the views that only move the patch, pixel for pixel."""
    return EOT(rotation=0.0, scale=(1.0, 1.0), brightness=0.0, region=region)


@dataclass(frozen=True)
class Views:
    """One drawn view per image: `places` where patches keep their pixels, else centre (y, x), angle and scale.

    Attributes:
        places: Top left pixels, or None.
        centre: Centre in pixels from the top left corner.
        angle: In radians.
        scale: Factor on the side.
        gain: Factor on the brightness.
    """

    places: Placement | None
    centre: Float[Tensor, "n 2"]
    angle: Float[Tensor, " n"]
    scale: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]


def draw_views(eot: EOT, count: int, *, size: int, image_size: tuple[int, int], gen: torch.Generator) -> Views:
    """Draw views in which a patch of `size` x `size` lies inside the image; one too large is centred."""
    u = torch.rand(count, 5, generator=gen, dtype=torch.float64)
    places = draw_places(allowed(image_size, size, eot.region), count, gen)
    angle = (2 * u[:, 0] - 1) * math.radians(eot.rotation)
    scale = eot.scale[0] + u[:, 1] * (eot.scale[1] - eot.scale[0])
    gain = 1 + (2 * u[:, 2] - 1) * eot.brightness
    corner = torch.stack([places.top, places.left], 1).double()
    half = (scale * size / 2 * (angle.cos().abs() + angle.sin().abs()))[:, None]  # of the turned patch's bounding box
    room = (torch.tensor(image_size, dtype=torch.float64) - 2 * half).clamp_min(0)
    low = (torch.tensor(image_size, dtype=torch.float64) - room) / 2
    free = eot.region == "anywhere" and not eot.exact  # a place between pixels is as good
    centre = low + u[:, 3:] * room if free else (corner + size / 2).clamp(low, low + room)
    return Views(places if eot.exact else None, centre, angle, scale, gain)


def apply(images: Float[Tensor, "n c h w"], patch: Float[Tensor, "#n c k k"], views: Views) -> Float[Tensor, "n c h w"]:
    """Return the images with the patch as each view shows it; differentiable in both."""
    n = len(images)
    gain = views.gain.to(images)[:, None, None, None]
    lit = _bounded(patch * gain) if bool((views.gain != 1).any()) else patch.expand(n, -1, -1, -1)
    if views.places is not None:
        return paste(images, lit, views.places.to(images.device))
    theta = _theta(views, patch.shape[-1], (images.shape[2], images.shape[3])).to(images)
    grid = F.affine_grid(theta, [n, 1, images.shape[2], images.shape[3]], align_corners=False)
    opaque = torch.cat([lit, torch.ones_like(lit[:, :1])], 1)
    seen = F.grid_sample(opaque, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _bounded(images * (1.0 - seen[:, -1:]) + seen[:, :-1])  # the sampled colours carry A already


def _bounded(x: Tensor) -> Tensor:
    """Return x within 0 and 1. Unlike clamp's, its gradient lives at 0 and 1 too: black may become brighter again."""
    fixed = x.detach().clamp(0.0, 1.0)
    inside = (x.detach() - fixed).abs() <= ROUNDING
    return torch.where(inside, x + (fixed - x.detach()), fixed)


def _theta(views: Views, size: int, image_size: tuple[int, int]) -> Tensor:
    """Return the affine maps from the image's coordinates in [-1, 1] to the patch's."""
    height, width = image_size
    cos, sin = views.angle.cos(), views.angle.sin()
    unit = 2.0 / (views.scale * size)
    dy, dx = height / 2 - views.centre[:, 0], width / 2 - views.centre[:, 1]
    row_x = torch.stack([cos * unit * width / 2, sin * unit * height / 2, unit * (cos * dx + sin * dy)], 1)
    row_y = torch.stack([-sin * unit * width / 2, cos * unit * height / 2, unit * (cos * dy - sin * dx)], 1)
    return torch.stack([row_x, row_y], 1)
