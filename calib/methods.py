"""Calibration methods: from a histogram to the step of codes 0...hi (or -hi...hi).

Each is a pure function and a small frozen class that carries its choices. With s = clip / hi and
q(x) = s round(min(|x| / s, hi)):

    min-max      clip = max |x|: nothing is clipped; best for few values, worst for long tails
    percentile   clip = the q-th percentile of the non-zero |x|
    entropy      the clip with the least KL(P || Q), Q the histogram as the codes show it (TensorRT's rule)
    MSE          the clip with the least sum of (x - q(x))^2

The entropy rule is usually written for 128 levels, where it may cut [0, clip] into 128 equal blocks. A quantizer that
rounds has other cells: code k stands for [(k - 1/2) s, (k + 1/2) s), the first and the last code for half a cell. With
4 levels that moves every boundary by up to half a step, so the cells here are the true ones.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from edgeq.errors import InputError

from .histogram import Histogram

DEAD_CLIP = 1.0  # range of an edge that carried only zeros: BatchNorm's outputs are of this order, should it wake up
BINS_PER_STEP = 2  # a step narrower than this is beyond the histogram's resolution
ENTROPY_BINS = 2048  # as TensorRT: with more, the noise of nearly empty bins outweighs their shape
CANDIDATES = 128
# What Q is taken to have, of all values, in a last cell that only values from above fill. It makes giving up 1e-6 of
# the values (a lonely outlier) nearly free, and a tenth of them prohibitive; with 0 one outlier would keep the range.
SMALLEST_SHARE = 1e-6

# Percent of a Gaussian's magnitudes inside the range of least squared error, by hi (J. Max, "Quantizing for minimum
# distortion", 1960, for uniform levels). 99.9 for all widths is right at 6 bits, but 2 bits need far shorter ranges.
GAUSSIAN_PERCENTILES = {1: 77.8, 2: 90.7, 3: 95.0, 7: 98.69, 15: 99.63, 31: 99.896, 63: 99.968, 127: 99.991}


def minmax(histogram: Histogram, hi: int) -> float:
    """Return max |x| / hi."""
    return histogram.top / hi


def percentile(histogram: Histogram, hi: int, *, q: float) -> float:
    """Return the q-th percentile of the non-zero magnitudes, over hi."""
    return histogram.quantile(q / 100.0) / hi


def mse(histogram: Histogram, hi: int) -> float:
    """Return the step of least squared error: a geometric search over ranges, then two finer ones around the best.

    The whole range is always a candidate, so the error never exceeds min-max's.
    """
    top = histogram.top
    floor = min(max(BINS_PER_STEP * hi * histogram.width, top / 1024), top)
    clips = np.geomspace(floor, top, CANDIDATES)
    for _ in range(2):
        best = int(np.argmin(histogram.errors(clips, hi)))
        clips = np.linspace(clips[max(best - 1, 0)], clips[min(best + 1, len(clips) - 1)], CANDIDATES // 4)
    clips = np.append(clips, top)
    return float(clips[int(np.argmin(histogram.errors(clips, hi)))]) / hi


def entropy(histogram: Histogram, hi: int) -> float:
    """Return the step of least KL divergence between the clipped histogram and its quantized form.

    P is the first i bins, with all that lies above put into the last one. Q takes the first i bins without that, adds
    them up per rounding cell, and spreads each sum evenly over the cell's bins where P is not zero. Clipping thus
    costs (P has a peak at its end that Q lacks) and so does coarseness (Q is flat where P is not).
    """
    coarse = histogram.coarser(ENTROPY_BINS)
    bins = len(coarse.counts)
    first = min(BINS_PER_STEP * hi, bins)
    ends = np.unique(np.rint(np.geomspace(first, bins, 2 * CANDIDATES)).astype(np.int64))
    divergences = [_divergence(coarse.counts, int(end), hi) for end in ends]
    best = len(ends) - 1 - int(np.argmin(divergences[::-1]))  # of equals the widest, which clips least
    return float(ends[best]) * coarse.width / hi


def _divergence(counts: Float64[np.ndarray, " bins"], end: int, hi: int) -> float:
    """Return KL(P || Q) for a range of `end` bins."""
    inside = counts[:end]
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    filled = reference > 0
    cells = _cells(end, hi)[filled]
    share = np.bincount(cells, inside[filled]) / np.maximum(np.bincount(cells), 1)
    p, q = reference[filled] / reference.sum(), np.maximum(share[cells], SMALLEST_SHARE * reference.sum())
    return float(p @ np.log(p / (q / q.sum())))


def _cells(end: int, hi: int) -> Int64[np.ndarray, " end"]:
    """Return the code of each bin's middle when `end` bins are hi steps."""
    return np.rint((np.arange(end) + 0.5) * hi / end).astype(np.int64)


@dataclass(frozen=True)
class AbstractMethod(ABC):
    """How a range is chosen."""

    name: ClassVar[str]

    def step(self, histogram: Histogram, hi: int) -> float:
        """Return the step for codes up to hi; positive and finite, on a dead edge too."""
        return DEAD_CLIP / hi if histogram.dead else self.live_step(histogram, hi)

    @abstractmethod
    def live_step(self, histogram: Histogram, hi: int) -> float:
        """Return the step for an edge that carried something."""


@dataclass(frozen=True)
class MinMax(AbstractMethod):
    """The whole range."""

    name: ClassVar[str] = "minmax"

    def live_step(self, histogram: Histogram, hi: int) -> float:
        """See `minmax`."""
        return minmax(histogram, hi)


@dataclass(frozen=True)
class Percentile(AbstractMethod):
    """A percentile of the non-zero magnitudes.

    Attributes:
        q: In percent; None takes, per width, the share of a Gaussian inside its range of least squared error.
    """

    name: ClassVar[str] = "percentile"
    q: float | None = None

    def __post_init__(self) -> None:
        """Check q."""
        if self.q is not None and not 0.0 < self.q <= 100.0:
            raise InputError(f"expected a percentile above 0 and up to 100, got {self.q}; for example 99.9")

    def live_step(self, histogram: Histogram, hi: int) -> float:
        """See `percentile`."""
        known = max((h for h in GAUSSIAN_PERCENTILES if h <= hi), default=1)
        return percentile(histogram, hi, q=GAUSSIAN_PERCENTILES[known] if self.q is None else self.q)


@dataclass(frozen=True)
class Entropy(AbstractMethod):
    """The least KL divergence."""

    name: ClassVar[str] = "entropy"

    def live_step(self, histogram: Histogram, hi: int) -> float:
        """See `entropy`."""
        return entropy(histogram, hi)


@dataclass(frozen=True)
class MSE(AbstractMethod):
    """The least squared error (the default)."""

    name: ClassVar[str] = "mse"

    def live_step(self, histogram: Histogram, hi: int) -> float:
        """See `mse`."""
        return mse(histogram, hi)


METHODS: tuple[AbstractMethod, ...] = (MinMax(), Percentile(), Entropy(), MSE())


def method(name: str) -> AbstractMethod:
    """Return a method with its default choices by name."""
    for known in METHODS:
        if known.name == name:
            return known
    raise InputError(f"expected a calibration method out of {', '.join(m.name for m in METHODS)}, got {name!r}")
