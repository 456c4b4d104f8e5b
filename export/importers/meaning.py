"""What a tensor of a foreign network means while it is read: constants, codes on an edge, or a layer that waits.

Every tensor that the network quantizes becomes an edge of codes q - zero_point. What lies between two quantizers is a
`Pending`: a layer whose real result waits for the grid that it lands on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgeq.errors import InputError

from ..graph import Node

LOWEST = -128  # smallest code of an edge and of a weight


@dataclass(frozen=True)
class Grid:
    """Where a quantizer puts real values: codes lo...hi, worth `scale` each; code = q - zero point."""

    scale: float
    lo: int
    hi: int


@dataclass(frozen=True)
class Codes:
    """A real tensor `code * scale` on an edge of the integer graph."""

    edge: str
    scale: float


@dataclass(frozen=True)
class Weight:
    """Real constants `codes * scale`, the scale along one axis or a single number."""

    codes: np.ndarray
    scale: np.ndarray
    axis: int = 0

    def real(self) -> np.ndarray:
        """Return the real values."""
        if self.scale.size == 1:
            return self.codes * float(self.scale.reshape(-1)[0])
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return self.codes * self.scale.astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product before its quantizer; `weight` is (out, ...), `scale` per channel."""

    source: Codes
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    geometry: dict | None = None  # strides and so on of a convolution

    @property
    def unit(self) -> np.ndarray:
        """Real value of one accumulator, per channel."""
        return self.source.scale * self.scale


@dataclass(frozen=True)
class Sum:
    """An addition of two edges."""

    a: Codes
    b: Codes


@dataclass(frozen=True)
class Mean:
    """An average over windows, or over the whole plane where the kernel is None."""

    source: Codes
    kernel: tuple[int, int] | None
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


@dataclass(frozen=True)
class Joined:
    """Channels side by side, of several grids."""

    parts: tuple[Codes, ...]


@dataclass(frozen=True)
class Pending:
    """A real result that waits for its quantizer, within `low...high`; `after` are operators that move no value."""

    what: Layer | Sum | Mean | Joined | Codes
    name: str
    low: float = -np.inf
    high: float = np.inf
    after: tuple[Callable[[str, str], Node], ...] = ()

    def clipped(self, low: float, high: float) -> "Pending":
        """Return it with a narrower range."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))


def bits_of(weight: np.ndarray, name: str) -> int:
    """Return the smallest width from 2 to 8 that holds the weights of a layer."""
    lo, hi = int(weight.min(initial=0)), int(weight.max(initial=0))
    if lo < LOWEST or hi > 127:
        raise InputError(
            f"expected weights of at most 8 bits with zero point 0 at {name!r}, got codes {lo}..{hi}; quantize to int8"
        )
    return max(2, 1 + max(hi.bit_length(), (-lo - 1).bit_length() if lo else 0))
