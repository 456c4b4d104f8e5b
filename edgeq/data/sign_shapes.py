"""Draw the road signs once, flat and facing the viewer, as coverage maps.

A sign is three disjoint layers (fill, border, pictogram), each a map of how much of a pixel it covers. Colours are
chosen later, per image. Shapes are signed distance fields, negative inside: the union of two shapes is the minimum of
their fields, the intersection the maximum, "thicker by r" is `field - r`. A field is thresholded on a grid
SUPERSAMPLE times finer than the map and averaged, which gives smooth edges.

Coordinates: x to the right, y downwards, a sign reaches from -1 to 1, the map a little further (EXTENT).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

TEMPLATE_SIZE = 48
SUPERSAMPLE = 4
EXTENT = 1.15
VARIANTS = 4  # drawings of each sign, with other line widths and pictogram sizes

Field = Float[Tensor, "h w"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Plane:
    """The coordinates of every point of the drawing."""

    x: Field
    y: Field

    def scaled(self, factor: float) -> "Plane":
        """Return a plane in which the same formulas draw `factor` times larger."""
        return Plane(self.x / factor, self.y / factor)

    def mirrored(self) -> "Plane":
        """Return a plane in which left and right are exchanged."""
        return Plane(-self.x, self.y)


def disc(p: Plane, radius: float, centre: Point = (0.0, 0.0)) -> Field:
    """Return the field of a disc."""
    return torch.hypot(p.x - centre[0], p.y - centre[1]) - radius


def box(p: Plane, half_width: float, half_height: float, centre: Point = (0.0, 0.0)) -> Field:
    """Return the field of an upright rectangle."""
    return torch.maximum((p.x - centre[0]).abs() - half_width, (p.y - centre[1]).abs() - half_height)


def polygon(p: Plane, sides: int, inradius: float, turn: float, *, roundness: float = 0.04) -> Field:
    """Return the field of a regular polygon, one of whose sides faces the direction `turn` (radians, 0 is right).

    The smooth maximum of the half-planes rounds the corners, as they are on real plates.
    """
    angles = [turn + 2 * math.pi * k / sides for k in range(sides)]
    planes = torch.stack([p.x * math.cos(a) + p.y * math.sin(a) for a in angles])
    return roundness * torch.logsumexp(planes / roundness, dim=0) - inradius


def stroke(p: Plane, start: Point, end: Point, width: float) -> Field:
    """Return the field of a line of `width` (half of it on each side) with round ends."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    t = (((p.x - ax) * dx + (p.y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(p.x - ax - t * dx, p.y - ay - t * dy) - width / 2


def ring(p: Plane, centre: Point, radii: Point, width: float) -> Field:
    """Return the field of an elliptic line (the distance is approximate, which only varies the line's width)."""
    rx, ry = radii
    q = torch.hypot((p.x - centre[0]) / rx, (p.y - centre[1]) / ry)
    return ((q - 1) * min(rx, ry)).abs() - width / 2


def union(*fields: Field) -> Field:
    """Return the field of everything inside at least one shape."""
    return torch.stack(fields).amin(0)


def without(shape: Field, hole: Field) -> Field:
    """Return the field of `shape` with `hole` cut out."""
    return torch.maximum(shape, -hole)


def digit(p: Plane, character: str, centre_x: float, width: float) -> Field:
    """Return the field of 0, 3 or 8, one unit high."""
    high, low = (centre_x, -0.25), (centre_x, 0.25)
    if character == "0":
        return ring(p, (centre_x, 0.0), (0.27, 0.5), width)
    loops = union(ring(p, high, (0.25, 0.25), width), ring(p, low, (0.25, 0.27), width))
    if character == "8":
        return loops
    left_middle = box(p, 0.3, 0.28, (centre_x - 0.3, 0.0))  # a 3 is an 8 that is open to the left
    return without(loops, left_middle)


def letter(p: Plane, character: str, centre_x: float, width: float) -> Field:
    """Return the field of S, T, O or P, one unit high."""
    left, right = centre_x - 0.2, centre_x + 0.2
    if character == "T":
        return union(
            stroke(p, (left - 0.04, -0.5), (right + 0.04, -0.5), width),
            stroke(p, (centre_x, -0.5), (centre_x, 0.5), width),
        )
    if character == "O":
        return ring(p, (centre_x, 0.0), (0.23, 0.5), width)
    if character == "P":
        bowl = without(ring(p, (left, -0.22), (0.42, 0.28), width), box(p, 1.0, 1.0, (left - 1, 0.0)))
        return union(bowl, stroke(p, (left, -0.5), (left, 0.5), width))
    upper = without(ring(p, (centre_x, -0.25), (0.22, 0.25), width), box(p, 0.5, 0.25, (centre_x + 0.5, -0.05)))
    lower = without(ring(p, (centre_x, 0.25), (0.22, 0.25), width), box(p, 0.5, 0.25, (centre_x - 0.5, 0.05)))
    return union(upper, lower)


def stop_word(p: Plane, width: float) -> Field:
    """Return the field of the word STOP."""
    q = p.scaled(0.62)
    return union(*(letter(q, c, (i - 1.5) * 0.66, width) for i, c in enumerate("STOP")))


def speed(p: Plane, tens: str, width: float) -> Field:
    """Return the field of a speed limit of `tens` and a zero."""
    q = p.scaled(0.78)
    return union(digit(q, tens, -0.37, width * 1.2), digit(q, "0", 0.37, width * 1.2))


def bent_arrow(p: Plane, width: float) -> Field:
    """Return the field of an arrow that comes from below and turns left."""
    path = union(
        stroke(p, (0.3, 0.55), (0.3, -0.15), width * 1.2), stroke(p, (0.3, -0.15), (-0.25, -0.15), width * 1.2)
    )
    head = polygon(Plane(p.x + 0.32, p.y + 0.15), 3, 0.18, 0.0)
    return union(path, head)


def walker(p: Plane, width: float) -> Field:
    """Return the field of a person who walks."""
    return union(
        disc(p, 0.12, (0.02, -0.4)),
        stroke(p, (0.02, -0.2), (0.0, 0.12), width * 1.2),
        stroke(p, (0.0, 0.12), (-0.2, 0.5), width * 0.8),
        stroke(p, (0.0, 0.12), (0.2, 0.5), width * 0.8),
        stroke(p, (0.02, -0.2), (-0.22, 0.06), width * 0.65),
        stroke(p, (0.02, -0.2), (0.22, 0.06), width * 0.65),
    )


def crossing(p: Plane, width: float) -> Field:
    """Return the field of a person inside a triangle, cut out of it."""
    triangle = polygon(Plane(p.x, p.y - 0.14), 3, 0.45, math.pi / 2)
    return without(triangle, walker(Plane(p.x, p.y - 0.1).scaled(0.75), width * 1.2))


def capital_p(p: Plane, width: float) -> Field:
    """Return the field of a large letter P."""
    return letter(Plane(p.x + 0.05, p.y).scaled(1.15), "P", 0.0, width)


def nothing(p: Plane, width: float) -> Field:
    """Return the field of an empty pictogram."""
    return torch.ones_like(p.x)


def octagon(p: Plane) -> Field:
    """Return the outline of a stop sign."""
    return polygon(p, 8, 0.92, 0.0)


def round_plate(p: Plane) -> Field:
    """Return a round outline."""
    return disc(p, 0.95)


def square(p: Plane) -> Field:
    """Return a square outline."""
    return polygon(p, 4, 0.85, 0.0)


def diamond(p: Plane) -> Field:
    """Return a square that stands on its corner."""
    return polygon(p, 4, 0.75, math.pi / 4)


def triangle_up(p: Plane) -> Field:
    """Return a triangle that points upwards."""
    return polygon(Plane(p.x, p.y - 0.3), 3, 0.58, math.pi / 2)


def triangle_down(p: Plane) -> Field:
    """Return a triangle that points downwards."""
    return polygon(Plane(p.x, p.y + 0.3), 3, 0.58, -math.pi / 2)


@dataclass(frozen=True)
class Sign:
    """One kind of sign: its outline, the width of its border, its pictogram and the colours of the three."""

    name: str
    outline: Callable[[Plane], Field]
    border: float
    pictogram: Callable[[Plane, float], Field]
    colours: tuple[str, str, str]  # fill, border, pictogram


SIGNS = (
    Sign("stop", octagon, 0.09, stop_word, ("red", "white", "white")),
    Sign("yield", triangle_down, 0.24, nothing, ("white", "red", "white")),
    Sign("no-entry", round_plate, 0.06, lambda p, w: box(p, 0.66, 0.6 * w + 0.06), ("red", "white", "white")),
    Sign("speed-30", round_plate, 0.2, lambda p, w: speed(p, "3", 0.9 * w), ("white", "red", "black")),
    Sign("speed-80", round_plate, 0.2, lambda p, w: speed(p, "8", 0.9 * w), ("white", "red", "black")),
    Sign("turn-left", round_plate, 0.07, bent_arrow, ("blue", "white", "white")),
    Sign("turn-right", round_plate, 0.07, lambda p, w: bent_arrow(p.mirrored(), w), ("blue", "white", "white")),
    Sign("priority", diamond, 0.2, nothing, ("yellow", "white", "white")),
    Sign("crossing", square, 0.07, crossing, ("blue", "white", "white")),
    Sign("parking", square, 0.07, capital_p, ("blue", "white", "white")),
)
# Plates without a pictogram, for the background: the colours and outlines of the signs do not decide alone.
BLANKS = (
    Sign("", triangle_up, 0.24, nothing, ("white", "red", "white")),
    Sign("", round_plate, 0.2, nothing, ("white", "red", "white")),
    Sign("", round_plate, 0.07, nothing, ("blue", "white", "white")),
    Sign("", square, 0.1, nothing, ("yellow", "black", "black")),
    Sign("", square, 0.07, nothing, ("blue", "white", "white")),
    Sign("", octagon, 0.1, nothing, ("red", "white", "white")),
    Sign("", square, 0.05, lambda p, w: box(p, 0.5, w), ("white", "black", "black")),
)


def templates(signs: tuple[Sign, ...]) -> Float[Tensor, "count 3 t t"]:
    """Return the coverage of fill, border and pictogram of every sign, VARIANTS drawings of each in a row."""
    step = 2 * EXTENT / (TEMPLATE_SIZE * SUPERSAMPLE)
    axis = (torch.arange(TEMPLATE_SIZE * SUPERSAMPLE) + 0.5) * step - EXTENT
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    plane = Plane(x, y)
    return torch.stack([_template(sign, plane, v / max(1, VARIANTS - 1)) for sign in signs for v in range(VARIANTS)])


def _template(sign: Sign, plane: Plane, variant: float) -> Float[Tensor, "3 t t"]:
    outline = sign.outline(plane) < 0
    inner = sign.outline(plane) + sign.border * (0.8 + 0.4 * variant) < 0
    drawn = sign.pictogram(plane.scaled(1.06 - 0.14 * variant), 0.16 + 0.07 * variant) < 0
    drawn = drawn & inner
    layers = torch.stack([inner & ~drawn, outline & ~inner, drawn]).float()
    return torch.nn.functional.avg_pool2d(layers, SUPERSAMPLE)
