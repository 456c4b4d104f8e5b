"""Bias correction: what a layer gives on average is what the float layer gives on average.

Rounded weights do not average to the float ones, and clipped inputs are smaller than they were; both move a channel's
mean (M. Nagel et al., 1906.04721, section 4.2). Measured on images, layer by layer, each after the layers before it
were corrected:

    c = E[r_float] - E[r_deployed],   r before the activation, per output channel

r_float comes from the float network: W x, normalised by the float BatchNorm's statistics, then with the width's own
gain and shift (the float ones unless the width was trained). r_deployed has the integer weights and the short
multiplier. c is added to the layer's shift at this width (`edgeq.quant.correction`), so it ends in the integer bias,
and up to half a unit of the accumulator the mean error is zero. (At 2 bits such a unit may be a tenth of the range.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.quant.correction import SHIFT
from edgeq.quant.network import MultiBitNet
from edgeq.quant.units import Value
from edgeq.quant.weighted import WeightedUnit

from .walk import (
    Images,
    check_bits,
    check_images,
    check_weights,
    deployed_units,
    evaluating,
    float_source,
    float_units,
    parts,
    product,
    unpacked,
)


def correct_bias(model: MultiBitNet, images: Images, *, bits: int, batch_size: int = 256) -> dict[str, float]:
    """Correct the mean of every layer's output at one width, in place; return the largest |c| per layer."""
    check_bits(model, (bits,))
    check_images(model, images, batch_size)
    check_weights(model)
    targets = float_means(model, images, bits=bits, batch_size=batch_size)
    moved = {}
    with evaluating(model, bits):
        for name, unit, batches in deployed_units(model, images, bits=bits, batch_size=batch_size):
            if isinstance(unit, WeightedUnit):
                unit.corrections.replace(SHIFT, bits, None)
                error = targets[name] - deployed_mean(unit, [x for (x,) in batches])
                unit.corrections.set(SHIFT, bits, error)
                moved[name] = float(error.abs().max())
    return moved


def float_means(model: MultiBitNet, images: Images, *, bits: int, batch_size: int) -> dict[str, Float[Tensor, " out"]]:
    """Return the mean of each float layer's output before its activation, in the gain and shift of a width."""
    source = float_source(model)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with evaluating(model, source):
        for part in parts(images, batch_size):
            for name, unit, inputs, _ in float_units(model, part):
                if isinstance(unit, WeightedUnit):
                    y = product(unit, inputs[0].real, source, round_weights=False)
                    sums[name] = sums.get(name, 0.0) + _total(y)
                    counts[name] = counts.get(name, 0) + y.numel() // y.shape[1]
        return {name: _landed(unit, sums[name] / counts[name], source, bits) for name, unit in model.weighted().items()}


def deployed_mean(unit: WeightedUnit, batches: list[Value]) -> Float[Tensor, " out"]:
    """Return the mean of a layer's deployed output, before its bias, the activation and the result are rounded."""
    step = batches[0].step
    assert step is not None
    folded = unit.folded(step)
    total, count = torch.zeros_like(folded.multiplier), 0
    for x in map(unpacked, batches):
        y = unit.exact_product(x.codes, folded.weight.to(x.codes.dtype), x.reach)
        total, count = total + _total(y), count + y.numel() // y.shape[1]
    out = step.double() * unit.weight_step(unit.width.bits).double() if unit.output is None else unit.out_step()
    return total / count * folded.multiplier * out + unit.affine(unit.width.bits).shift


def _landed(unit: WeightedUnit, mean: Tensor, source: int, bits: int) -> Tensor:
    """Return a mean of W x after the layer's bias and BatchNorm: the float statistics, the width's gain and shift."""
    mean = mean if unit.bias is None else mean + unit.bias.double()
    if unit.norm is None:
        return mean
    float_norm, norm = unit.norm.at(source), unit.norm.at(bits)
    assert float_norm.running_mean is not None and float_norm.running_var is not None
    normalised = (mean - float_norm.running_mean) * torch.rsqrt(float_norm.running_var.double() + float_norm.eps)
    return normalised * norm.weight + norm.bias


def _total(y: Tensor) -> Tensor:
    return y.sum([0, *range(2, y.dim())], dtype=torch.float64)
