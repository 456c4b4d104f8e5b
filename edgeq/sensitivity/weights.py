"""A layer's weights at a width: SQNR in all and per output channel, and a histogram of the float ones."""

from dataclasses import dataclass

import torch

from edgeq.quant.quantizer import SCALE_FLOOR, quantize
from edgeq.quant.weighted import WeightedUnit
from edgeq.sensitivity.sums import decibels

BINS = 64


@dataclass(frozen=True)
class Bins:
    """How often values lie in each of the equal bins of [-top, top]."""

    top: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """One layer's weights: SQNR in decibels, in all and per channel, and the largest |weight| per channel."""

    db: float
    channel_db: tuple[float, ...]
    channel_max: tuple[float, ...]
    bins: Bins


@torch.no_grad()
def weights_of(unit: WeightedUnit, bits: int) -> Weights:
    """Return what rounding does to a layer's weights at a width."""
    rows = unit.weight.detach().flatten(1)
    step = unit.weight_step(bits).detach().reshape(-1, 1)
    before = unit.weight_at(bits).detach().flatten(1)  # learned rounding moves them
    off = quantize(before / step, *unit.weight_range(bits)) * step - rows
    signal, noise = (x.square().sum(1, dtype=torch.float64).tolist() for x in (rows, off))
    reach = rows.abs().amax(1)
    top = max(float(reach.max()), SCALE_FLOOR)
    counts = torch.histc(rows.float(), BINS, -top, top)
    return Weights(
        db=decibels(sum(signal), sum(noise)),
        channel_db=tuple(decibels(s, n) for s, n in zip(signal, noise, strict=True)),
        channel_max=tuple(reach.tolist()),
        bins=Bins(top, tuple(int(count) for count in counts.tolist())),
    )
