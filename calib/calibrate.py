"""Give every grid of a multi-bit network its step, from images.

**What is looked at.** The network's float values (32 bits, weights and activations unrounded), one histogram per edge
for all widths; or with `sequential` each width's own values, every edge after the ones before it were rounded.

**Wide edges.** An edge that feeds additions or poolings keeps 8-bit codes at every width, while b-bit layers read a
narrow copy with the *same clipping range*. The range must suit the copy: with b bits the levels are few and a long
range wastes them, whereas 8-bit codes are fine in any range. So the method chooses the range for the b-bit levels,
clip = s_b hi_b, and the stored codes get the step clip / hi_8. Wide edges without narrow readers, and all edges at
8 bits, are chosen for the codes they store.

**Tied branches.** A layer that feeds one addition has that addition's grid; there is nothing to set.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from edgeq.errors import InputError
from edgeq.quant.bits import FLOAT_BITS
from edgeq.quant.network import MultiBitNet
from edgeq.quant.quantizer import mse_steps

from .batchnorm import copy_norms, has_own_norms, measure, reestimate
from .histogram import Histogram
from .methods import MSE, AbstractMethod
from .passes import PassReport, check_passes, run_passes
from .sequential import calibrate_in_order, float_moments
from .walk import Images, check_bits, check_images, check_weights, codes_served, float_histograms

DEFAULT_METHOD = MSE()
WEIGHT_STEPS = ("mse", "minmax", "mse-tensor", "minmax-tensor")


@dataclass(frozen=True)
class EdgeReport:
    """What calibration decided for one edge at one width.

    Attributes:
        name: The edge.
        bits: The width.
        step: What one stored code is worth.
        clip: The largest value that a code stands for.
        top: The largest magnitude seen.
        levels: The largest code of the narrowest reader, for which the range was chosen.
        clipped: Fraction of all values beyond the range.
        noise: Squared rounding and clipping error over squared values, at those levels; 0 for a dead edge.
    """

    name: str
    bits: int
    step: float
    clip: float
    top: float
    levels: int
    clipped: float
    noise: float


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did.

    Attributes:
        method: The method's name and choices.
        images: Number of images.
        sequential: Whether each edge saw the rounding before it.
        weights: How weight steps were chosen; "observed" where they follow max |w| by themselves.
        batchnorm: Widths whose running statistics were measured again.
        edges: One entry per edge and width.
        passes: What each pass did to each width.
    """

    method: str
    images: int
    sequential: bool
    weights: str
    batchnorm: tuple[int, ...]
    edges: tuple[EdgeReport, ...]
    passes: tuple[PassReport, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for a JSON file."""
        return asdict(self)


def calibrate(
    model: MultiBitNet,
    images: Images,
    *,
    method: AbstractMethod = DEFAULT_METHOD,
    bits: tuple[int, ...] | None = None,
    batch_size: int = 256,
    weights: str = "mse",
    bn: bool = True,
    sequential: bool = False,
    passes: tuple[str, ...] = (),
) -> CalibrationReport:
    """Set activation steps, weight steps and BatchNorm's running statistics from images; the weights stay.

    A width's corrections from earlier passes are dropped first.

    Args:
        model: A multi-bit network.
        images: Bytes, or floats in [0, 1]; some hundred are enough.
        method: How a range is chosen; see `edgeq.calib.METHODS`.
        bits: The widths; all quantized ones by default.
        batch_size: Images per forward pass.
        weights: "mse" (least squared error) or "minmax", per output channel; "mse-tensor" or "minmax-tensor": one step
            for all channels of a layer. Observed scales follow max |w| always.
        bn: Measure the widths' running statistics again: what rounding changed of those of 32 bits, on the same images
            (`reestimate`). Skipped with shared BatchNorm, which belongs to 32 bits too.
        sequential: Look at each edge after the ones before it were rounded, with the width's own BatchNorm: for
            networks that were trained at several widths. One pass per width instead of one for all.
        passes: Any of "equalise", "rounding" and "bias" (`edgeq.calib.PASSES`), always run in this order. "equalise"
            changes the weights, but not the float network.

    Returns:
        What was decided, edge by edge.
    """
    widths = check_bits(model, bits)
    check_images(model, images, batch_size)
    check_weights(model)
    if weights not in WEIGHT_STEPS:
        raise InputError(f"expected weights out of {list(WEIGHT_STEPS)}, got {weights!r}; choose one of them")
    chosen = check_passes(model, passes, widths)
    again = bn and has_own_norms(model)
    edges: list[EdgeReport] = []

    def plain() -> None:
        edges[:] = _set_steps(model, images, widths, method, (sequential, again, batch_size, weights))

    def normalise(width: int) -> None:
        if again:
            reestimate(model, images, bits=width, batch_size=batch_size, source=_sound(model))

    done: tuple[PassReport, ...] = ()
    if chosen:
        done = run_passes(
            model,
            images,
            passes=chosen,
            widths=widths,
            calibrate=plain,
            normalise=normalise,
            batch_size=batch_size,
        )
    else:
        plain()
    learned = all(unit.learned for unit in model.weighted().values())
    return CalibrationReport(
        method=str(method),
        images=len(images),
        sequential=sequential,
        weights=weights if learned else "observed",
        batchnorm=widths if again else (),
        edges=tuple(edges),
        passes=done,
    )


def _set_steps(
    model: MultiBitNet,
    images: Images,
    widths: tuple[int, ...],
    method: AbstractMethod,
    how: tuple[bool, bool, int, str],
) -> list[EdgeReport]:
    """Set all steps and the running statistics; `how` is (sequential, batchnorm again, batch size, weights)."""
    sequential, again, batch_size, weights = how
    seen = {} if sequential else float_histograms(model, images, batch_size=batch_size)
    source, beside = _sound(model), None
    if again and source is not None:
        if sequential:  # layers read what running statistics make of those before
            beside = float_moments(model, images, batch_size=batch_size)
        else:
            beside = measure(model, images, bits=source, batch_size=batch_size)
    edges: list[EdgeReport] = []
    for width in widths:
        served = codes_served(model, width)

        def choose(name: str, histogram: Histogram, *, width: int = width, served: dict[str, int] = served) -> float:
            edge = _decide(model, name, histogram, method=method, bits=width, levels=served[name])
            edges.append(edge)
            return edge.step

        for unit in model.weighted().values():
            unit.corrections.clear(width)
        set_weight_steps(model, width, weights=weights)
        if sequential:
            calibrate_in_order(
                model, images, bits=width, choose=choose, batchnorm=again, beside=beside, batch_size=batch_size
            )
            continue
        for name, histogram in seen.items():
            model.grid(name).set_step(width, choose(name, histogram))
        if again:
            reestimate(model, images, bits=width, batch_size=batch_size, source=source, beside=beside)
    return edges


def _sound(model: MultiBitNet) -> int | None:
    """Return the width whose running statistics are taken as they are."""
    return FLOAT_BITS if FLOAT_BITS in model.bits else None


def init_width(
    model: MultiBitNet,
    bits: int,
    images: Images,
    *,
    method: AbstractMethod = DEFAULT_METHOD,
    source: int | None = None,
    batch_size: int = 256,
) -> CalibrationReport:
    """Start a width that training has not visited yet.

    Its BatchNorm begins as a copy of another width's (initialisation, no more; the backbone's weights are shared
    anyway), its steps come from calibration, its running statistics from the images.

    Args:
        model: A multi-bit network.
        bits: The new width.
        images: Held-out images.
        method: How ranges are chosen.
        source: Width whose BatchNorm to copy; 32 by default, or the next higher one in a model without 32.
        batch_size: Images per forward pass.
    """
    check_bits(model, (bits,))
    check_images(model, images, batch_size)
    check_weights(model)
    higher = [b for b in model.bits if b > bits]
    if source is None:
        source = FLOAT_BITS if FLOAT_BITS in model.bits else min(higher, default=bits)
    if source not in model.bits:
        raise InputError(f"expected a source out of the model's widths {list(model.bits)}, got {source}")
    if has_own_norms(model) and source != bits:
        copy_norms(model, source=source, target=bits)
    # Without another width there are no statistics to read ranges with: layer by layer, each after the ones before it.
    alone = source == bits
    report = calibrate(model, images, method=method, bits=(bits,), batch_size=batch_size, sequential=alone, bn=alone)
    if alone or not has_own_norms(model):
        return report
    # In training the running averages of the source lag behind the weights, so these are the images' own.
    reestimate(model, images, bits=bits, batch_size=batch_size)
    return replace(report, batchnorm=(bits,))


@torch.no_grad()
def set_weight_steps(model: MultiBitNet, bits: int, *, weights: str) -> None:
    """Set learned weight steps of a width as one of `WEIGHT_STEPS` says."""
    rule, _, tensor = weights.partition("-")
    for unit in model.weighted().values():
        step, (lo, hi) = unit.weight_steps[str(bits)], unit.weight_range(bits)
        rows = unit.weight.detach().reshape(1 if tensor else step.numel(), -1)
        if unit.learned:
            top = (rows.abs().amax(1) / hi).clamp_min(torch.finfo(step.dtype).tiny)
            step.copy_(mse_steps(rows, lo, hi) if rule == "mse" else top)  # one step for all is broadcast


def _decide(
    model: MultiBitNet, name: str, histogram: Histogram, *, method: AbstractMethod, bits: int, levels: int
) -> EdgeReport:
    """Choose the range for the narrowest reader, and the stored codes' step from it."""
    hi = model.grid(name).range(bits)[1]
    chosen = method.step(histogram, levels)
    step = chosen if levels == hi else chosen * levels / hi
    clip = step * hi
    power = histogram.power
    return EdgeReport(
        name=name,
        bits=bits,
        step=step,
        clip=clip,
        top=histogram.top,
        levels=levels,
        clipped=histogram.above(clip),
        noise=float(histogram.errors(np.array([clip]), levels)[0]) / power if power > 0 else 0.0,
    )
