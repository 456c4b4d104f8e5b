"""Cross-layer equalisation: move a channel's scale from one layer to the next, so that all channels fill their range.

Between two layers with nothing but a positively homogeneous function between them (f(x / s) = f(x) / s for s > 0: ReLU,
nothing at all, poolings),

    W2 f(W1 x + b1) = (W2 S) f(S^-1 (W1 x + b1)),   S = diag(s) > 0

so the float network stays the same function for every S (M. Nagel et al., 1906.04721). There, weights have one step a
tensor and S balances the rows of W1 with the columns of W2. Here each row of weights has its own step, so the rows of
W1 need nothing; what suffers is the *activation* between the layers, which has one step for all channels, and the
columns of W2 within a row. So with a_c the largest output of channel c, r_c the largest weight that reads it, as a part
of its row's largest,

    s_c = sqrt(a_c / r_c),   or a_c where each row of W2 reads a single channel (depthwise)

over their geometric mean. With BatchNorm in between, S^-1 goes into its gain and shift (of all widths); the running
statistics, and so the weights of W1, stay.

ReLU6 is not homogeneous: a channel that shrinks is cut later. Such pairs are left alone, and so are those where
somebody else reads the channels: additions and concatenations.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.quant.joins import AddUnit, AvgPoolUnit
from edgeq.quant.network import MultiBitNet, Step
from edgeq.quant.units import DropoutUnit, FlattenUnit, MaxPoolUnit, NarrowUnit, ReluUnit
from edgeq.quant.weighted import ConvUnit, WeightedUnit

from .walk import Images, check_images, check_weights, evaluating, float_source, float_units, parts

HOMOGENEOUS = (AvgPoolUnit, DropoutUnit, FlattenUnit, MaxPoolUnit, NarrowUnit)
LIMIT = 256.0  # no channel is scaled by more: short multipliers and BatchNorm's eps have their range too


@dataclass(frozen=True)
class Equalised:
    """What happened after one layer.

    Attributes:
        first: The layer whose outputs were scaled.
        second: The layer whose inputs were scaled; empty where nothing was done.
        before: Largest over smallest channel range of the edge between them, channels without values left out.
        after: The same afterwards.
        skipped: Why nothing was done.
    """

    first: str
    second: str = ""
    before: float = 0.0
    after: float = 0.0
    skipped: str = ""


def equalise(model: MultiBitNet, images: Images, *, batch_size: int = 256) -> tuple[Equalised, ...]:
    """Equalise the channel ranges of consecutive layers, in place; the float network computes what it did.

    The widths' steps no longer fit afterwards: calibrate all of them (`calibrate(…, passes=("equalise",))` does).
    """
    check_images(model, images, batch_size)
    check_weights(model)
    found = {name: _next_layer(model, name) for name, unit in model.weighted().items() if unit.output is not None}
    seen = _channel_tops(model, images, batch_size)
    results = []
    for first, second in found.items():
        if second not in model.units:
            results.append(Equalised(first, skipped=second))
            continue
        a, b = model.units[first], model.units[second]
        assert isinstance(a, WeightedUnit) and isinstance(b, WeightedUnit)
        scale = channel_scales(seen[first], b)
        _divide_outputs(a, scale)
        _multiply_inputs(b, scale)
        results.append(Equalised(first, second, _spread(seen[first]), _spread(seen[first] / scale)))
    return tuple(results)


def channel_scales(tops: Float[Tensor, " channels"], reader: WeightedUnit) -> Float[Tensor, " channels"]:
    """Return s for channels with these largest values; 1 for channels that are always or everywhere ignored."""
    weight = reader.weight.detach().double().abs()
    rows = weight.flatten(1)
    share = (rows / rows.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).reshape(weight.shape)
    columns = share.amax(tuple(range(2, weight.dim()))) if weight.dim() > 2 else share
    groups = _groups(reader)
    reads = columns.reshape(groups, -1, columns.shape[1]).amax(1).flatten()
    reads = reads.reshape(len(tops), -1).amax(1)
    alive = (tops > 0) & (reads > 0)
    single = columns.shape[1] == 1
    ratio = tops if single else (tops / reads).sqrt()
    ratio = ratio.where(alive, torch.ones_like(ratio))
    mean = ratio[alive].log().mean().exp() if alive.any() else 1.0
    return (ratio / mean).clamp(1 / LIMIT, LIMIT).where(alive, torch.ones_like(ratio))


def _next_layer(model: MultiBitNet, name: str) -> str:
    """Return the one layer that reads a layer's channels, or the reason why there is none."""
    unit = model.units[name]
    assert isinstance(unit, WeightedUnit)
    if unit.relu not in (None, float("inf")):
        return "ReLU6 is not homogeneous"
    readers: dict[str, list[Step]] = {}
    for step in model.steps:
        for source in step.inputs:
            readers.setdefault(source, []).append(step)
    while True:
        found = readers.get(name, [])
        if len(found) != 1:
            return f"{len(found)} operators read it"
        name, unit = found[0].name, model.units[found[0].name]
        if isinstance(unit, WeightedUnit):
            return name
        if isinstance(unit, ReluUnit) and unit.ceiling == float("inf"):
            continue
        if not isinstance(unit, HOMOGENEOUS):
            return "an addition reads it" if isinstance(unit, AddUnit) else f"a {type(unit).__name__} reads it"


def _channel_tops(model: MultiBitNet, images: Images, batch_size: int) -> dict[str, Tensor]:
    tops: dict[str, Tensor] = {}
    with evaluating(model, float_source(model)):
        for part in parts(images, batch_size):
            for name, unit, _, real in float_units(model, part):
                if isinstance(unit, WeightedUnit):
                    top = real.abs().amax([0, *range(2, real.dim())]).double()
                    tops[name] = torch.maximum(tops[name], top) if name in tops else top
    return tops


@torch.no_grad()
def _divide_outputs(unit: WeightedUnit, scale: Tensor) -> None:
    scaled = [unit.weight, unit.bias]
    if unit.norm is not None:
        scaled = [p for norm in unit.norm.norms.values() for p in (norm.weight, norm.bias)]
    for parameter in scaled:
        if isinstance(parameter, Tensor):
            parameter.copy_(parameter / scale.reshape((-1,) + (1,) * (parameter.dim() - 1)))


@torch.no_grad()
def _multiply_inputs(unit: WeightedUnit, scale: Tensor) -> None:
    groups = _groups(unit)
    rows, columns = unit.weight.shape[:2]
    factor = scale.repeat_interleave(groups * columns // len(scale))  # flattened planes: one column a position
    factor = factor.reshape(groups, 1, columns).expand(groups, rows // groups, columns).reshape(rows, columns)
    unit.weight.copy_(unit.weight * factor.reshape((rows, columns) + (1,) * (unit.weight.dim() - 2)))


def _groups(unit: WeightedUnit) -> int:
    return unit.groups if isinstance(unit, ConvUnit) else 1


def _spread(tops: Tensor) -> float:
    alive = tops[tops > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0
