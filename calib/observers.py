"""What calibration sees of an edge: torchao's HistogramObserver, fed with magnitudes.

torchao collects: streaming batches, a range that grows, counts that move to wider bins. Three things lie beside it.

* It gets |x| without the zeros, and a range that starts at 0 (see `edgeq.calib.histogram`).
* `torch.histc` counts in float32 and stops at 2^24 per bin without a word (one batch of 256 ImageNet activations holds
  more), so batches arrive in pieces of at most 2^24 values and the sums are kept in float64.
* Its own search for a range is not used: it knows one method, assumes as many levels as the dtype has (256, whatever
  `quant_min` and `quant_max` say), gives each level a full cell, and stops at the first step that does not help. At 2
  to 5 bits that is another quantizer than ours. `edgeq.calib.methods` has the arithmetic instead. Min-max is the same
  number, bit for bit, as torchao's `MinMaxObserver` gives.

A value that moved to a wider bin is known to 1/16 of its old bin only; the largest magnitude stays exact. torchao is
imported when the first observer is made, since that takes longer than all the rest of `edgeq.calib`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.errors import InputError

from .histogram import Histogram

# a step at 8 bits spans 64 bins with min-max, and still 2 where the best range is 1/32 of the largest value
BINS = 8192
PIECE = 2**24  # float32 counts every integer up to here
TINY = 1e-30  # below this, the bin arithmetic of histc overflows float32; such an edge is dead


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's word to torchao on a deprecated registration from the user, who can do nothing about it."""
    logger, mute = logging.getLogger("torch.utils._pytree"), logging.Filter("torchao")
    logger.addFilter(mute)
    try:
        yield
    finally:
        logger.removeFilter(mute)


class Observer:
    """Collects the histogram of one edge over batches.

    Args:
        edge: The edge's name, for messages.
        device: Where the values will be.
        bins: Number of bins.
    """

    def __init__(self, edge: str, *, device: str | torch.device = "cpu", bins: int = BINS) -> None:
        with _quiet():
            from torchao.quantization.pt2e.observer import HistogramObserver

        # histc has no deterministic form on a GPU, and refuses where determinism was asked for
        self.device = torch.device("cpu" if torch.are_deterministic_algorithms_enabled() else device)
        self.edge = edge
        self.zeros = 0
        self.inner = HistogramObserver(bins=bins, factory_kwargs={"dtype": torch.float64, "device": self.device})
        self.inner.min_val.zero_()
        self.inner.max_val.zero_()

    @torch.no_grad()
    def add(self, values: Float[Tensor, "*dims"]) -> None:
        """Count a batch of values.

        Raises:
            InputError: A value is NaN or infinite.
        """
        if values.dim() == 4:  # in the order of memory of a channels_last tensor, so that flattening copies nothing
            values = values.permute(0, 2, 3, 1)
        magnitudes = values.detach().to(self.device).abs().flatten()
        top = float(magnitudes.amax()) if len(magnitudes) else 0.0
        if not np.isfinite(top):
            raise InputError(
                f"expected finite values on edge {self.edge!r}, got NaN or infinity; "
                "check the weights, BatchNorm's running statistics and the images"
            )
        self.zeros += int(torch.count_nonzero(magnitudes == 0))  # of booleans: four times as fast
        if top < TINY:
            self.zeros += int(torch.count_nonzero(magnitudes))
            return
        for piece in magnitudes.split(PIECE):
            self.inner(piece)

    def histogram(self) -> Histogram:
        """Return what was counted so far."""
        counts = self.inner.histogram.cpu().numpy().copy()
        top = float(self.inner.max_val)
        if top > 0.0:
            counts[0] = max(counts[0] - self.zeros, 0.0)  # the first bin only ever widens, so all zeros are in it
        return Histogram(counts, top, float(self.zeros))
