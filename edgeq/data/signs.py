"""`signs`: road signs drawn by arithmetic, so that everything runs with no download.

Ten classes of 32×32 photographs-to-be. The flat drawings of `sign_shapes` are tilted, scaled, coloured, lit and put
before a cluttered background with blank plates as decoys; then come shadows, something in the way, blur and noise:

    coverage = template(projective map of the pixel)              at twice the resolution, then averaged
    image    = background · (1 - Σ coverage) + Σ coverage · colour
    image    = noise + blur(light · occluded(image))

Several pairs (30 and 80, left and right, crossing and parking) differ by the pictogram alone. The strengths below
were tuned until a float ResNet-8 ends between 95 and 99 %: a set that everybody solves hides what quantization costs.

Images are drawn in blocks of BLOCK. A block is a function of (seed, split, its number), so a smaller set is the
beginning of a larger one, and every block holds each class equally often.
"""

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from edgeq.data.seeds import generator
from edgeq.data.sign_shapes import BLANKS, EXTENT, SIGNS, VARIANTS, templates
from edgeq.data.splits import Dataset, Split

CLASSES = tuple(sign.name for sign in SIGNS)
BLOCK = 100  # small enough for the caches: 1.6 times faster than 500
IMAGE_SIZE = 32

RADIUS = (0.4, 0.9)  # of the sign, in half images: 13 to 29 pixels across
OFF_CENTRE = 0.12
TURN = math.radians(14)
SHEAR = 0.18
PERSPECTIVE = 0.14
OCCLUDED = 0.55  # share of the images with something in the way
BLUR = 1.0  # largest standard deviation, in pixels of a 32-pixel image
NOISE = 0.09
EXPOSURE = (0.4, 1.35)
DECOYS = 2

PALETTE = {
    "red": (0.74, 0.09, 0.11),
    "white": (0.93, 0.93, 0.91),
    "blue": (0.08, 0.25, 0.66),
    "yellow": (0.94, 0.74, 0.10),
    "black": (0.07, 0.07, 0.08),
}

Images = Float[Tensor, "n 3 h w"]
Column = Float[Tensor, " n"]


def signs(train: int = 6000, test: int = 2000, *, seed: int = 0, image_size: int | None = None) -> Dataset:
    """Draw the data set; the same arguments give the same images."""
    size = image_size or IMAGE_SIZE
    parts = {name: _draw_split(count, seed, name, size) for name, count in (("train", train), ("test", test))}
    return Dataset("signs", CLASSES, train=parts["train"], test=parts["test"], flip=False)


def _draw_split(count: int, seed: int, split: str, size: int) -> Split:
    plates, decoys = templates(SIGNS), templates(BLANKS)
    blocks = [
        draw_block(generator("signs", seed, split, block), plates, decoys, size=size)
        for block in range(math.ceil(count / BLOCK))
    ]
    images, labels = (torch.cat(parts)[:count].contiguous() for parts in zip(*blocks, strict=True))
    return Split(images, labels)


def draw_block(
    gen: torch.Generator,
    plates: Float[Tensor, "signs 3 t t"],
    decoys: Float[Tensor, "blanks 3 t t"],
    *,
    size: int,
) -> tuple[UInt8[Tensor, "n 3 size size"], Int64[Tensor, " n"]]:
    """Draw BLOCK images and their labels."""
    labels = torch.randperm(BLOCK, generator=gen) % len(SIGNS)
    image = _background(gen, size)
    for _ in range(DECOYS):
        image = _put_decoy(gen, image, decoys)
    image = _put_sign(gen, image, plates, labels)
    image = _occlude(gen, image)
    image = _light(gen, image)
    image = _blur(gen, image)
    image = image + _uniform(gen, 0.01, NOISE)[:, None, None, None] * torch.randn(image.shape, generator=gen)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _uniform(gen: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape or (BLOCK,), generator=gen) * (high - low) + low


def _coin(gen: torch.Generator, probability: float) -> Column:
    return (torch.rand(BLOCK, generator=gen) < probability).float()


def _axis(size: int) -> Float[Tensor, " size"]:
    return (torch.arange(size) + 0.5) * (2 / size) - 1


def _background(gen: torch.Generator, size: int) -> Images:
    """Paint smooth clutter (foliage, road), a horizon with a lighter sky, and two upright bars (poles, houses)."""
    coarse = _uniform(gen, -0.1, 0.1, BLOCK, 3, 5, 5) + _uniform(gen, -0.2, 0.2, BLOCK, 1, 5, 5)
    fine = _uniform(gen, -0.16, 0.16, BLOCK, 1, 11, 11)
    image = functional.interpolate(coarse, (size, size), mode="bilinear")
    image = image + functional.interpolate(fine, (size, size), mode="bilinear")
    image = image + _uniform(gen, 0.15, 0.65, BLOCK, 1, 1, 1) + _uniform(gen, -0.08, 0.08, BLOCK, 3, 1, 1)
    horizon = ((_uniform(gen, -1.2, 0.6)[:, None] - _axis(size)) * size / 4).sigmoid()
    sky = _uniform(gen, 0.0, 0.45, BLOCK, 1) + torch.tensor([-0.08, 0.0, 0.1])
    image = image + sky[:, :, None, None] * horizon[:, None, :, None]
    for _ in range(2):
        centre, half = _uniform(gen, -1.1, 1.1), _uniform(gen, 0.02, 0.3)
        inside = ((half[:, None] - (_axis(size) - centre[:, None]).abs()) * size / 2).clamp(0, 1)
        tone = _uniform(gen, -0.3, 0.3, BLOCK, 1) + _uniform(gen, -0.1, 0.1, BLOCK, 3)
        image = image + tone[:, :, None, None] * inside[:, None, None, :]
    return image.clamp(0.02, 0.98)


def _plate_map(gen: torch.Generator, centre: tuple[Column, Column], radius: Column) -> Float[Tensor, "n 8"]:
    """Draw the projective map from image to template coordinates: q = (A (p - centre)) / (1 + g · (p - centre))."""
    turn, shear = _uniform(gen, -TURN, TURN), _uniform(gen, -SHEAR, SHEAR)
    squeeze = 1 + _uniform(gen, 0.0, 0.35) * _coin(gen, 0.5)  # a plate seen from the side is narrow
    scale = 1 / (radius * EXTENT)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    gx, gy = _uniform(gen, -PERSPECTIVE, PERSPECTIVE), _uniform(gen, -PERSPECTIVE, PERSPECTIVE)
    return torch.stack([cos * squeeze, sin + shear * cos, -sin * squeeze, cos, gx, gy, *centre], dim=1)


def _cover(shapes: Float[Tensor, "n 3 t t"], plate_map: Float[Tensor, "n 8"], size: int) -> Images:
    """Return how much of each pixel is fill, border and pictogram."""
    a, b, c, d, gx, gy, cx, cy = (column[:, None, None] for column in plate_map.unbind(1))
    x, y = _axis(size)[None, None, :] - cx, _axis(size)[None, :, None] - cy
    depth = 1 + gx * x + gy * y
    grid = torch.empty(len(shapes), size, size, 2)
    torch.div(a * x + b * y, depth, out=grid[..., 0])
    torch.div(c * x + d * y, depth, out=grid[..., 1])
    return functional.grid_sample(shapes, grid, align_corners=False)


def _paint(gen: torch.Generator, kinds: Int64[Tensor, " n"], *, decoy: bool) -> Float[Tensor, "n 3 3"]:
    """Return the colours (layer, channel) of each plate: its own, with paint, age and dirt."""
    table = torch.tensor([[PALETTE[name] for name in sign.colours] for sign in (BLANKS if decoy else SIGNS)])
    colours = table[kinds]
    fade = _uniform(gen, 0.0, 0.3)[:, None, None]
    colours = colours * (1 - fade) + 0.5 * fade
    return colours * _uniform(gen, 0.85, 1.1, BLOCK, 3, 1) + _uniform(gen, -0.05, 0.05, BLOCK, 3, 3)


def _compose(image: Images, cover: Images, colours: Float[Tensor, "n 3 3"]) -> Images:
    out = image * (1 - cover.sum(1, keepdim=True))
    for layer in range(3):  # three fused multiply-adds; a matrix product could sum in another order elsewhere
        out = out + cover[:, layer, None] * colours[:, layer, :, None, None]
    return out


def _put_decoy(gen: torch.Generator, image: Images, shapes: Float[Tensor, "blanks 3 t t"]) -> Images:
    """Put a blank plate near the edge of half of the images."""
    kinds = torch.randint(len(BLANKS), (BLOCK,), generator=gen)
    direction, distance = _uniform(gen, 0.0, 2 * math.pi), _uniform(gen, 0.75, 1.15) + 9 * _coin(gen, 0.5)
    centre = (direction.cos() * distance, direction.sin() * distance)
    plate_map = _plate_map(gen, centre, _uniform(gen, 0.25, 0.6))
    cover = _cover(shapes[kinds * VARIANTS], plate_map, image.shape[-1])
    return _compose(image, cover, _paint(gen, kinds, decoy=True))


def _put_sign(
    gen: torch.Generator, image: Images, shapes: Float[Tensor, "signs 3 t t"], labels: Int64[Tensor, " n"]
) -> Images:
    """Put the sign that the label names near the middle, on its pole."""
    variants = torch.randint(VARIANTS, (BLOCK,), generator=gen)
    centre = (_uniform(gen, -OFF_CENTRE, OFF_CENTRE), _uniform(gen, -OFF_CENTRE, OFF_CENTRE))
    image = _put_pole(gen, image, centre)
    plate_map = _plate_map(gen, centre, _uniform(gen, *RADIUS))
    cover = _cover(shapes[labels * VARIANTS + variants], plate_map, 2 * image.shape[-1])
    cover = (cover[..., 0::2] + cover[..., 1::2]) / 2  # two samples per pixel and axis keep thin strokes
    cover = (cover[..., 0::2, :] + cover[..., 1::2, :]) / 2
    return _compose(image, cover, _paint(gen, labels, decoy=False))


def _put_pole(gen: torch.Generator, image: Images, centre: tuple[Column, Column]) -> Images:
    axis = _axis(image.shape[-1])
    x, y = axis[None, None, :] - centre[0][:, None, None], axis[None, :, None] - centre[1][:, None, None]
    half, lean = _uniform(gen, 0.03, 0.08)[:, None, None], _uniform(gen, -0.1, 0.1)[:, None, None]
    cover = ((half - (x - lean * y).abs()) * image.shape[-1] / 2 + 0.5).clamp(0, 1) * (y > 0)
    grey = _uniform(gen, 0.25, 0.75, BLOCK, 1, 1, 1)
    return image + cover[:, None] * (grey - image)


def _occlude(gen: torch.Generator, image: Images) -> Images:
    """Hide a part of some signs behind a blob (leaves, a sticker) or a bar (a branch, another pole)."""
    axis = _axis(image.shape[-1])
    direction = _uniform(gen, 0.0, 2 * math.pi)
    cos, sin = direction.cos()[:, None, None], direction.sin()[:, None, None]
    across = axis[None, None, :] * cos + axis[None, :, None] * sin
    along = axis[None, :, None] * cos - axis[None, None, :] * sin
    across = across - _uniform(gen, 0.1, 0.75)[:, None, None]
    along = along - _uniform(gen, -0.3, 0.3)[:, None, None]
    is_bar = _coin(gen, 0.5)[:, None, None]
    half = _uniform(gen, 0.08, 0.3)[:, None, None] * (1 - 0.6 * is_bar)
    distance = torch.hypot(across, along * (1 - is_bar))
    cover = ((half - distance) * image.shape[-1] / 2 + 0.5).clamp(0, 1) * _coin(gen, OCCLUDED)[:, None, None]
    colour = _uniform(gen, 0.05, 0.6, BLOCK, 1, 1, 1) + _uniform(gen, -0.15, 0.15, BLOCK, 3, 1, 1)
    return image + cover[:, None] * (colour - image)


def _light(gen: torch.Generator, image: Images) -> Images:
    """Apply haze, exposure, a gradient, the edge of a shadow and a colour cast."""
    axis = _axis(image.shape[-1])
    direction = _uniform(gen, 0.0, 2 * math.pi)
    ramp = direction.cos()[:, None, None] * axis[None, None, :] + direction.sin()[:, None, None] * axis[None, :, None]
    gradient = 1 + _uniform(gen, -0.35, 0.35)[:, None, None] * ramp
    edge = ((ramp - _uniform(gen, -0.5, 0.5)[:, None, None]) * image.shape[-1] / 4).sigmoid()
    shadow = 1 - _uniform(gen, 0.2, 0.6)[:, None, None] * edge * _coin(gen, 0.3)[:, None, None]
    exposure = torch.exp(_uniform(gen, math.log(EXPOSURE[0]), math.log(EXPOSURE[1])))[:, None, None]
    cast = _uniform(gen, 0.8, 1.2, BLOCK, 3, 1, 1)
    haze = _uniform(gen, 0.0, 0.35)[:, None, None, None]
    return (image * (1 - haze) + 0.75 * haze) * cast * (gradient * shadow * exposure)[:, None]


def _blur(gen: torch.Generator, image: Images) -> Images:
    """Blur with a Gaussian of five taps, wider in one direction than in the other (motion)."""
    factor = image.shape[-1] / IMAGE_SIZE
    for dim in (2, 3):
        sigma = (_uniform(gen, 0.05, BLUR) * factor).clamp(max=2.0)[:, None]
        taps = torch.exp(-((torch.arange(-2, 3) / sigma) ** 2) / 2)
        taps = taps / taps.sum(1, keepdim=True)
        padded = functional.pad(image, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="replicate")
        shifted = [padded.narrow(dim, k, image.shape[dim]) * taps[:, k, None, None, None] for k in range(5)]
        image = shifted[0] + shifted[1] + shifted[2] + shifted[3] + shifted[4]
    return image
