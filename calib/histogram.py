"""A histogram of magnitudes: what calibration methods look at.

Codes are symmetric (-hi...hi) or start at 0 (0...hi), so a step serves x and -x alike and only |x| matters. (Signed
8-bit codes have -128 too; leaving it out makes their step at most 1/127 wider than it need be.) Zeros are counted
apart: zero has an exact code at every step, so zeros never argue for one step or another, and half of a ReLU's values
are zeros.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often magnitudes occur on an edge.

    Attributes:
        counts: Values in each of the equal bins of (0, top].
        top: The largest magnitude, exactly; 0 for a dead edge.
        zeros: How many values are exactly zero; they are not in `counts`.
    """

    counts: Float64[np.ndarray, " bins"]
    top: float
    zeros: float = 0.0

    @property
    def width(self) -> float:
        """The width of a bin."""
        return self.top / len(self.counts)

    @property
    def dead(self) -> bool:
        """Whether the edge never carried anything but zeros."""
        return self.top == 0.0 or not self.counts.any()

    @property
    def power(self) -> float:
        """The sum of squares of all values."""
        return float(self.counts @ np.square(self.centres()))

    def centres(self) -> Float64[np.ndarray, " bins"]:
        """Return the middle of each bin."""
        return (np.arange(len(self.counts)) + 0.5) * self.width

    def coarser(self, bins: int) -> "Histogram":
        """Return it with fewer bins; the present number is a multiple of `bins`, or kept where it is smaller."""
        if len(self.counts) <= bins:
            return self
        return Histogram(self.counts.reshape(bins, -1).sum(1), self.top, self.zeros)

    def quantile(self, fraction: float) -> float:
        """Return the magnitude below which that fraction of the non-zero values lies, interpolated inside its bin."""
        if fraction >= 1.0:
            return self.top
        total = np.cumsum(self.counts)
        k = int(np.searchsorted(total, fraction * total[-1]))
        inside = 1.0 - (total[k] - fraction * total[-1]) / self.counts[k]
        return (k + float(inside)) * self.width

    def above(self, clip: float) -> float:
        """Return the fraction of all values, zeros included, that are larger than `clip`."""
        if self.dead or clip >= self.top:
            return 0.0
        inside = np.clip(clip / self.width - np.arange(len(self.counts)), 0.0, 1.0)
        return float(self.counts @ (1.0 - inside) / (self.counts.sum() + self.zeros))

    def errors(self, clips: Float64[np.ndarray, " n"], hi: int) -> Float64[np.ndarray, " n"]:
        """Return, for each clipping range, the sum of (|x| - s round(min(|x| / s, hi)))^2 with s = clip / hi.

        Each bin counts as its middle. That is exact up to a constant where a bin lies inside one rounding cell, and so
        good while a step spans several bins.
        """
        full = self.counts > 0
        centres, counts = self.centres()[full], self.counts[full]
        steps = np.asarray(clips, dtype=np.float64)[:, None] / hi
        off = np.minimum(np.rint(centres / steps), hi) * steps - centres
        return np.square(off) @ counts
