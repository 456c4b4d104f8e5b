"""Calibrate a width edge by edge, each one seeing what the edges before it became.

At 2 to 4 bits the rounding of one edge moves the values of the next. So all calibration images go through one operator
at a time: its BatchNorm is measured on what its inputs really are (optionally, beside what they are at 32 bits, see
`reestimate`), its unrounded results are counted, its grid gets its step, and only then are the results rounded, as the
deployed network does it, and handed on. Codes wait as int8, so a live edge costs one byte per value and image.

A layer tied to an addition has no grid of its own, and the addition's step is not known when the layer runs. Its
results wait in real numbers and are rounded once the addition has its step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from edgeq.quant.bits import activation_range
from edgeq.quant.grid import Grid
from edgeq.quant.joins import AddUnit
from edgeq.quant.network import IMAGE, MultiBitNet
from edgeq.quant.quantizer import quantize
from edgeq.quant.units import AbstractUnit, Value
from edgeq.quant.weighted import WeightedUnit

from .batchnorm import Moments, settle
from .histogram import Histogram
from .observers import Observer
from .walk import (
    Images,
    evaluating,
    float_source,
    float_units,
    last_uses,
    packed,
    parts,
    product,
    unpacked,
    unrounded,
)

Choose = Callable[[str, Histogram], float]


@torch.no_grad()
def float_moments(model: MultiBitNet, images: Images, *, batch_size: int) -> dict[str, Moments]:
    """Return what enters each BatchNorm if nothing is rounded; running statistics normalise the layers before."""
    moments: dict[str, Moments] = {}
    with evaluating(model, float_source(model)):
        for part in parts(images, batch_size):
            for name, unit, inputs, _ in float_units(model, part):
                if isinstance(unit, WeightedUnit) and unit.norm is not None:
                    y = _entering(unit, inputs[0], float_source(model), round_weights=False)
                    moments.setdefault(name, Moments()).add(y)
    return moments


def calibrate_in_order(
    model: MultiBitNet,
    images: Images,
    *,
    bits: int,
    choose: Choose,
    batchnorm: bool,
    beside: dict[str, Moments] | None = None,
    batch_size: int,
) -> dict[str, Histogram]:
    """Set all activation steps of a width, and with `batchnorm` its running statistics.

    Args:
        model: A multi-bit network.
        images: Calibration images.
        bits: The width.
        choose: Returns a grid's step.
        batchnorm: Measure the running statistics.
        beside: `float_moments` of these images: take what rounding changed of the 32-bit statistics instead.
        batch_size: Images at a time.

    Returns:
        What each grid saw.
    """
    device = next(model.parameters()).device
    histograms: dict[str, Histogram] = {}
    with evaluating(model, bits):
        values = {IMAGE: [Value(part.to(device), None) for part in parts(images, batch_size)]}
        for step, dead in zip(model.steps, last_uses(model), strict=True):
            unit = model.units[step.name]
            assert isinstance(unit, AbstractUnit)
            batches = list(zip(*(values[name] for name in step.inputs), strict=True))
            if batchnorm and isinstance(unit, WeightedUnit) and unit.norm is not None:
                moments = _measure(unit, batches, bits, step.name)
                known = None if beside is None else (float_source(model), beside[step.name])
                settle(unit.norm, bits, moments, known)
            if unit.output is not None and step.name in model.grids:
                observer = Observer(step.name, device=device)
                for inputs in batches:
                    observer.add(_unrounded(unit, inputs, bits))
                histograms[step.name] = observer.histogram()
                unit.output.grid.set_step(bits, choose(step.name, histograms[step.name]))
            waits = unit.output is not None and step.name not in model.grids and unit.output.grid.fixed is None
            run = _unrounded if waits else _deployed
            values[step.name] = [packed(run(unit, inputs, bits)) for inputs in batches]
            for name in dead:
                del values[name]
    return histograms


def _measure(unit: WeightedUnit, batches: list[tuple[Value, ...]], bits: int, name: str) -> Moments:
    """Return what enters one layer's BatchNorm, from its true inputs."""
    moments = Moments()
    for (x,) in batches:
        moments.add(_entering(unit, unpacked(x), bits, round_weights=True))
    moments.check(name)
    return moments


def _entering(unit: WeightedUnit, x: Value, bits: int, *, round_weights: bool) -> Tensor:
    y = product(unit, x.real, bits, round_weights=round_weights)
    return y if unit.bias is None else y + unit.bias.reshape((1, -1) + (1,) * (y.dim() - 2))


def _unrounded(unit: AbstractUnit, inputs: tuple[Value, ...], bits: int) -> Tensor:
    return unrounded(unit, tuple(map(unpacked, inputs)), bits, round_weights=True)


def _deployed(unit: AbstractUnit, inputs: tuple[Value, ...], bits: int) -> Value:
    """Run the unit as deployed; an addition first rounds what waited for its step."""
    values = tuple(map(unpacked, inputs))
    if isinstance(unit, AddUnit) and unit.output is not None:
        values = tuple(_rounded(v, unit.output.grid, bits) if v.step is None else v for v in values)
    return unit(*values)


def _rounded(value: Value, grid: Grid, bits: int) -> Value:
    """Return a tied branch on the addition's grid, which is always an 8-bit one."""
    step = grid.step(bits)
    lo, hi = activation_range(8, signed=True)
    return Value(quantize(value.codes / step, lo, hi), step, max(hi, -lo), grid)
