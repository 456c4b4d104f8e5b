"""Walking a network edge by edge: which grids exist, who reads them, and what arrives before it is rounded.

Inside a layer, the value that a grid will round is r = gain * (w . x) + shift, then ReLU; for additions, averages and
concatenations it is the operator in real numbers. `unrounded` gives that, from inputs that are codes or real.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeq.errors import InputError
from edgeq.quant.bits import FLOAT_BITS, activation_range, at_bits
from edgeq.quant.network import IMAGE, MultiBitNet
from edgeq.quant.quantizer import quantize
from edgeq.quant.units import AbstractUnit, NarrowUnit, Value, activate
from edgeq.quant.weighted import WeightedUnit

from .histogram import Histogram
from .observers import Observer

Images = UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]


def parts(images: Images, batch_size: int, *, least: int = 1) -> tuple[Tensor, ...]:
    """Return the images in batches of nearly equal size, none below `least`, so that none weighs too little."""
    return images.tensor_split(max(min(-(-len(images) // batch_size), len(images) // least), 1))


def check_images(model: MultiBitNet, images: Images, batch_size: int) -> None:
    """Refuse images that do not fit the model."""
    if batch_size < 1:
        raise InputError(f"expected a batch size of 1 or more, got {batch_size}; choose another")
    if len(images) == 0 or tuple(images.shape[1:]) != tuple(model.image_shape):
        raise InputError(
            f"expected one image or more of shape {tuple(model.image_shape)}, got {tuple(images.shape)}; "
            "give images as the model was made for (image_shape)"
        )
    if images.is_floating_point() and not torch.isfinite(images).all():
        raise InputError(
            f"expected finite images on edge {IMAGE!r}, got NaN or infinity; give bytes, or floats in [0, 1]"
        )


def check_weights(model: MultiBitNet) -> None:
    """Refuse weights that are not finite, naming the layer."""
    for name, unit in model.weighted().items():
        if not torch.isfinite(unit.weight).all():
            raise InputError(
                f"expected finite weights at {name!r}, got NaN or infinity; go back to an earlier checkpoint"
            )


def check_bits(model: MultiBitNet, bits: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the widths to work on, all quantized ones by default."""
    known = model.quantized_bits()
    wrong = [b for b in bits or () if b not in known]
    if wrong:
        raise InputError(f"expected widths out of the model's {list(known)}, got {wrong}; 32 bits need no calibration")
    return known if bits is None else tuple(dict.fromkeys(bits))


@contextmanager
def evaluating(model: MultiBitNet, bits: int) -> Iterator[None]:
    """Run at a width in evaluation mode without gradients; all modes and the width are put back."""
    modes = {module: module.training for module in model.modules()}
    deployed = model.width.deployed
    try:
        model.eval()
        with at_bits(model, bits), torch.no_grad():
            yield
    finally:
        model.width.deployed = deployed
        for module, training in modes.items():
            module.training = training


def last_uses(model: MultiBitNet) -> list[tuple[str, ...]]:
    """Return, per step, the values that nothing reads afterwards."""
    last = {name: i for i, step in enumerate(model.steps) for name in step.inputs}
    return [tuple(n for n in dict.fromkeys(s.inputs) if last[n] == i) for i, s in enumerate(model.steps)]


def codes_served(model: MultiBitNet, bits: int) -> dict[str, int]:
    """Return, per grid, the largest code of its narrowest reader at a width.

    That is the grid's own largest code, but the copy's where readers of fewer bits have a narrow copy.
    """
    home = homes(model)
    served = {name: model.grid(name).range(bits)[1] for name in model.grids}
    for step in model.steps:
        unit, grid = model.units[step.name], home[step.name]
        if isinstance(unit, NarrowUnit) and grid is not None:
            served[grid] = min(served[grid], activation_range(unit.at[bits].read, signed=unit.signed)[1])
    return served


def homes(model: MultiBitNet) -> dict[str, str | None]:
    """Return, per step, the grid that its codes came from, also through copies and poolings; None for fixed ones.

    Those are the image's, that of an image that the network draws, and those of codewords.
    """
    owner = {id(grid): name for name, grid in model.grids.items()}
    home: dict[str, str | None] = {IMAGE: None}
    for step in model.steps:
        unit = model.units[step.name]
        assert isinstance(unit, AbstractUnit)
        home[step.name] = home[step.inputs[0]] if unit.output is None else owner.get(id(unit.output.grid))
    return home


def unrounded(unit: AbstractUnit, inputs: tuple[Value, ...], bits: int, *, round_weights: bool) -> Tensor:
    """Return a unit's result in real numbers, before its grid rounds it.

    Args:
        unit: The operator.
        inputs: What it reads, on grids or real.
        bits: The width whose BatchNorm (running statistics) and weight steps are used.
        round_weights: Whether the weights are those of that width, or the float ones.
    """
    reals = [Value(value.real, None) for value in inputs]
    if not isinstance(unit, WeightedUnit):
        return unit(*reals).codes
    y = product(unit, reals[0].codes, bits, round_weights=round_weights)
    affine = unit.affine(bits)
    shape = (1, -1) + (1,) * (y.dim() - 2)
    return activate(y * affine.gain.to(y.dtype).reshape(shape) + affine.shift.to(y.dtype).reshape(shape), unit.relu)


def product(unit: WeightedUnit, x: Tensor, bits: int, *, round_weights: bool) -> Tensor:
    """Return w . x in real numbers, without the bias, with float weights or those of a width."""
    weight = unit.weight
    if round_weights:
        weight = unit.weight_at(bits)
        step = unit.weight_step(bits).reshape((-1,) + (1,) * (weight.dim() - 1))
        weight = quantize(weight / step, *unit.weight_range(bits)) * step
    return unit.product(x, weight)


def float_histograms(model: MultiBitNet, images: Images, *, batch_size: int) -> dict[str, Histogram]:
    """Return what each grid would have to round if nothing else were rounded.

    Weights are the float ones, BatchNorm that of 32 bits (of the highest width in a model without 32 bits).
    """
    device = next(model.parameters()).device
    observers = {name: Observer(name, device=device) for name in model.grids}
    with evaluating(model, float_source(model)):
        for part in parts(images, batch_size):
            for name, _, _, real in float_units(model, part):
                if name in observers:
                    observers[name].add(real)
    return {name: observer.histogram() for name, observer in observers.items()}


def float_source(model: MultiBitNet) -> int:
    """Return the width whose BatchNorm belongs to the float weights."""
    return FLOAT_BITS if FLOAT_BITS in model.bits else model.bits[0]


def float_units(model: MultiBitNet, part: Tensor) -> Iterator[tuple[str, AbstractUnit, tuple[Value, ...], Tensor]]:
    """Run a batch without rounding anything; yield each unit's name, itself, what it read and its real result.

    To be used inside `evaluating(model, float_source(model))`.
    """
    source = float_source(model)
    values = {IMAGE: Value(part.to(next(model.parameters()).device), None)}
    for step, dead in zip(model.steps, last_uses(model), strict=True):
        unit = model.units[step.name]
        assert isinstance(unit, AbstractUnit)
        inputs = tuple(values[name] for name in step.inputs)
        real = unit(*inputs).real if IMAGE in step.inputs else unrounded(unit, inputs, source, round_weights=False)
        yield step.name, unit, inputs, real
        values[step.name] = Value(real, None)
        for name in dead:
            del values[name]


def deployed_units(
    model: MultiBitNet, images: Images, *, bits: int, batch_size: int
) -> Iterator[tuple[str, AbstractUnit, list[tuple[Value, ...]]]]:
    """Run all images through one unit at a time, as deployed; yield each unit with what it reads, before it runs.

    So a layer that is changed where it is yielded is seen, as it became, by all layers after it. Codes wait as int8
    (see `unpacked`). To be used inside `evaluating(model, bits)`.
    """
    device = next(model.parameters()).device
    values = {IMAGE: [Value(part.to(device), None) for part in parts(images, batch_size)]}
    for step, dead in zip(model.steps, last_uses(model), strict=True):
        unit = model.units[step.name]
        assert isinstance(unit, AbstractUnit)
        assert model.width.bits == bits
        batches = list(zip(*(values[name] for name in step.inputs), strict=True))
        yield step.name, unit, batches
        values[step.name] = [packed(unit(*map(unpacked, inputs))) for inputs in batches]
        for name in dead:
            del values[name]


def packed(value: Value | Tensor) -> Value:
    """Return codes as int8; real numbers as they are."""
    if isinstance(value, Tensor):
        return Value(value, None)
    small = value.step is not None and 0 < value.reach <= 128 and value.codes.dtype == torch.float32
    return value._replace(codes=value.codes.to(torch.int8)) if small else value


def unpacked(value: Value) -> Value:
    """Undo `packed`."""
    return value._replace(codes=value.codes.float()) if value.codes.dtype == torch.int8 else value
