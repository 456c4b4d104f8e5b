"""Moves: operators that change where codes lie and never what they are. Code 0 is the only new number they may place.

Each says what shape it gives (without the batch axis) and, on NumPy arrays, what it does: the definition.

    Reshape     other axes over the same codes in NCHW order
    Transpose   axes in another order
    Slice       part of one axis
    Upsample    every pixel f_h x f_w times (nearest neighbour with whole factors)
    Spread      zeros between pixels: a convolution on it is a transposed convolution
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

Shape = tuple[int, ...]
Codes = Int32[np.ndarray, "batch *dims"]


@dataclass(frozen=True)
class Reshape:
    """Codes in the same order under another `shape`."""

    shape: Shape

    def result(self, shape: Shape) -> Shape:
        """Return the shape that it gives."""
        return self.shape

    def apply(self, x: Codes) -> np.ndarray:
        """Return the codes, moved."""
        return x.reshape(len(x), *self.shape)


@dataclass(frozen=True)
class Transpose:
    """Axes in another `order`; 0 is the first axis after the batch."""

    order: tuple[int, ...]

    def result(self, shape: Shape) -> Shape:
        """Return the shape that it gives."""
        return tuple(shape[axis] for axis in self.order)

    def apply(self, x: Codes) -> np.ndarray:
        """Return the codes, moved."""
        return x.transpose(0, *(axis + 1 for axis in self.order))


@dataclass(frozen=True)
class Slice:
    """Positions `start` to `stop`, this one left out, of an `axis`; 0 is the first one after the batch."""

    axis: int
    start: int
    stop: int

    def result(self, shape: Shape) -> Shape:
        """Return the shape that it gives."""
        return (*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :])

    def apply(self, x: Codes) -> np.ndarray:
        """Return the codes, moved."""
        return x[(slice(None),) * (self.axis + 1) + (slice(self.start, self.stop),)]


@dataclass(frozen=True)
class Upsample:
    """Every pixel repeated by `factors` (height, width)."""

    factors: tuple[int, int]

    def result(self, shape: Shape) -> Shape:
        """Return the shape that it gives."""
        return (shape[0], shape[1] * self.factors[0], shape[2] * self.factors[1])

    def apply(self, x: Codes) -> np.ndarray:
        """Return the codes, moved."""
        return x.repeat(self.factors[0], 2).repeat(self.factors[1], 3)


@dataclass(frozen=True)
class Spread:
    """`stride - 1` zeros between pixels, and `extra` (below the stride) rows and columns of zeros after the last."""

    stride: tuple[int, int]
    extra: tuple[int, int] = (0, 0)

    def result(self, shape: Shape) -> Shape:
        """Return the shape that it gives."""
        plane = ((n - 1) * s + 1 + e for n, s, e in zip(shape[1:], self.stride, self.extra, strict=True))
        return (shape[0], *plane)

    def apply(self, x: Codes) -> np.ndarray:
        """Return the codes, moved."""
        y = np.zeros((len(x), *self.result(x.shape[1:])), x.dtype)
        y[:, :, :: self.stride[0], :: self.stride[1]] = x
        return y


Geometry = Reshape | Transpose | Slice | Upsample | Spread
GEOMETRIES: tuple[type, ...] = (Reshape, Transpose, Slice, Upsample, Spread)
