"""Learned rounding: which of its two neighbours each weight becomes, so that the layer's output changes least.

Rounding each weight to the nearest code minimises the error of the weights, not that of the layer. With z the weights
of an output channel in units of its step, q their codes and x what the layer reads, the layer's squared error is

    E[((q - z) . x)^2] = (q - z)^T H (q - z),   H = E[x x^T]

a quadratic form, whose matrix the calibration images give once and for all (one per group of channels). AdaRound
(M. Nagel et al., 2004.10568) writes q = floor(z) + h(v), h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1), and descends on

    error / (mean diag H)  +  lambda sum(1 - |2 h - 1|^beta)

with beta falling from 20 to 2, so that each h first moves freely and then takes a side. What differs here: the whole
quadratic form instead of samples of it, so nothing is random and a step costs one product with H; the activation
behind the layer is not looked at; x is what the deployed layer reads, after the layers before it were rounded; and
after the descent single codes are flipped while that helps, from the learned codes and from the nearest ones, and each
channel keeps the best, so that none is worse than nearest.

The decision belongs to one width: it is stored as an offset a of the shared weights (`edgeq.quant.correction`) such
that w + a lies in the middle of the chosen code's cell. The step is the one that the short multiplier implies
(`edgeq.quant.fold`), so what is exported are these very codes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edgeq.errors import InputError
from edgeq.quant.correction import WEIGHT
from edgeq.quant.network import MultiBitNet
from edgeq.quant.units import Value
from edgeq.quant.weighted import ConvUnit, WeightedUnit

from .walk import Images, check_bits, check_images, check_weights, deployed_units, evaluating, unpacked

LARGEST = 8192  # weights per output channel: H holds their number squared
PATCHES = 65536  # places of all images that H is made of; more of them hardly change it
STRETCH, BETA_FROM, BETA_TO = 0.1, 20.0, 2.0  # AdaRound's: h saturates, and the regulariser is annealed
WARM_UP = 0.2  # of the steps run without regulariser, as in AdaRound
REGULARISER, RATE = 0.02, 0.05  # of errors in units of a weight's own; the descent is smooth, so steps are long
SWEEPS = 4  # through all weights of a channel, flipping what helps


@dataclass(frozen=True)
class Rounded:
    """What learned rounding did to one layer.

    Attributes:
        name: The layer.
        nearest: Squared error of its output over its squared output, rounded to nearest.
        learned: The same as learned.
        flipped: Fraction of weights not rounded to nearest.
        skipped: Why nothing was done, or empty.
    """

    name: str
    nearest: float = 0.0
    learned: float = 0.0
    flipped: float = 0.0
    skipped: str = ""


def learn_rounding(
    model: MultiBitNet,
    images: Images,
    *,
    bits: int,
    steps: int = 200,
    centred: bool = False,
    batch_size: int = 256,
) -> tuple[Rounded, ...]:
    """Decide the rounding of every weight at one width, in place; the shared weights and other widths stay.

    Args:
        model: A calibrated multi-bit network.
        images: Bytes, or floats in [0, 1].
        bits: The width.
        steps: Steps of the descent, per layer.
        centred: Leave the mean error to the bias correction, which follows.
        batch_size: Images per forward pass.
    """
    check_bits(model, (bits,))
    check_images(model, images, batch_size)
    check_weights(model)
    if steps < 0:
        raise InputError(f"expected 0 steps or more, got {steps}; some hundred are enough")
    before = {name: unit.corrections.get(WEIGHT, bits) for name, unit in model.weighted().items()}
    results = []
    try:
        with evaluating(model, bits):
            for name, unit, batches in deployed_units(model, images, bits=bits, batch_size=batch_size):
                if isinstance(unit, WeightedUnit):
                    results.append(_round_layer(name, unit, [x for (x,) in batches], steps=steps, centred=centred))
    except BaseException:
        for name, unit in model.weighted().items():
            unit.corrections.replace(WEIGHT, bits, before[name])
        raise
    return tuple(results)


def _round_layer(name: str, unit: WeightedUnit, batches: list[Value], *, steps: int, centred: bool) -> Rounded:
    bits = unit.width.bits
    unit.corrections.replace(WEIGHT, bits, None)
    if unit.weight[0].numel() > LARGEST:
        return Rounded(name, skipped=f"more than {LARGEST} weights per output")
    assert batches[0].step is not None
    onto = unit.implied(batches[0].step)
    axes = (-1,) + (1,) * (unit.weight.dim() - 1)
    step = onto.step.reshape(axes)
    z = torch.where(onto.alive.reshape(axes), unit.weight.double() / step, 0.0)
    moments = input_moments(unit, batches, centred=centred)
    rows = z.float().reshape(len(moments), -1, moments.shape[-1])  # all groups at once: a depthwise layer has many
    nearest = rows.round().clamp(*unit.weight_range(bits))
    chosen = choose_codes(rows, moments, unit.weight_range(bits), steps=steps)
    offset = chosen.reshape(z.shape).double() * step - unit.weight
    unit.corrections.set(WEIGHT, bits, offset.where(onto.alive.reshape(axes), torch.zeros_like(offset)))
    before, after, power = (float(_errors(delta, moments).sum()) for delta in (nearest - rows, chosen - rows, rows))
    power = max(power, torch.finfo(torch.float32).tiny)
    return Rounded(name, before / power, after / power, float((chosen != nearest).double().mean()))


def choose_codes(
    z: Float[Tensor, "*groups out inputs"],
    h: Float[Tensor, "*groups inputs inputs"],
    codes: tuple[int, int],
    *,
    steps: int = 200,
) -> Float[Tensor, "*groups out inputs"]:
    """Return, per row, codes next to z of small error (q - z) H (q - z)^T; never worse than the nearest codes.

    Args:
        z: Weights in units of their step.
        h: Second moments of the inputs, of each group.
        codes: Smallest and largest code.
        steps: Steps of the descent.
    """
    lo, hi = codes
    base = z.floor().clamp(lo, hi - 1)
    nearest = z.round().clamp(lo, hi)
    starts = [nearest, _descend(z, base, h, steps)] if steps else [nearest]
    ends = [*starts, *(_flip(z, base, h, start) for start in starts)]
    errors = torch.stack([_errors(q - z, h) for q in ends])
    return torch.stack(ends).take_along_dim(errors.argmin(0)[None, ..., None], 0)[0]


def input_moments(unit: WeightedUnit, batches: list[Value], *, centred: bool) -> Float[Tensor, "groups inputs inputs"]:
    """Return the second moments of what each output of a layer reads, per group; without the mean if `centred`."""
    groups = unit.groups if isinstance(unit, ConvUnit) else 1
    size = unit.weight[0].numel()
    h = torch.zeros(groups, size, size, device=unit.weight.device)
    mean = torch.zeros(groups, size, device=unit.weight.device)
    images = sum(len(x.codes) for x in batches)
    count = 0
    for x in map(unpacked, batches):
        for image in x.codes.split(16):
            patches = _patches(unit, image, groups, size, -(-PATCHES // images))
            h += patches @ patches.mT
            mean += patches.sum(2)
            count += patches.shape[2]
    h, mean = h / count, mean / count
    return h - mean[:, :, None] * mean[:, None, :] if centred else h


def _patches(unit: WeightedUnit, x: Tensor, groups: int, size: int, places: int) -> Tensor:
    """Return what the outputs read as (groups, inputs, patches), evenly spread `places` or fewer of an image."""
    if not isinstance(unit, ConvUnit):
        return x.T[None]
    columns = F.unfold(x.contiguous(), unit.weight.shape[2:], unit.dilation, unit.padding, unit.stride)  # type: ignore[arg-type]
    total = columns.shape[2]
    if total > places:
        columns = columns[:, :, torch.linspace(0, total - 1, places, device=x.device).long()]
    return columns.reshape(len(x), groups, size, -1).permute(1, 2, 0, 3).reshape(groups, size, -1)


def _errors(delta: Tensor, h: Tensor) -> Tensor:
    """Return delta H delta^T per row."""
    return ((delta @ h) * delta).sum(-1)


def _descend(z: Tensor, base: Tensor, h: Tensor, steps: int) -> Tensor:
    """Return codes from AdaRound's descent, its gradient written out."""
    norm = h.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(h.dtype).tiny)[..., None, None]
    start = ((z - base).clamp(0.01, 0.99) + STRETCH) / (1 + 2 * STRETCH)
    v = torch.logit(start).clone().requires_grad_()
    adam = torch.optim.Adam([v], lr=RATE)
    for k in range(steps):
        sigma = v.detach().sigmoid()
        soft = (1 + 2 * STRETCH) * sigma - STRETCH
        inside = (soft > 0) & (soft < 1)
        soft = soft.clamp(0, 1)
        slope = 2 * ((base + soft - z) @ h) / norm
        progress = (k / steps - WARM_UP) / (1 - WARM_UP)
        if progress >= 0:
            beta = BETA_TO + (BETA_FROM - BETA_TO) * (1 - progress)
            side = 2 * soft - 1
            slope = slope - REGULARISER * 2 * beta * side.abs().pow(beta - 1) * side.sign()
        v.grad = slope * (1 + 2 * STRETCH) * sigma * (1 - sigma) * inside
        adam.step()
    return base + (v.detach() >= 0)


def _flip(z: Tensor, base: Tensor, h: Tensor, start: Tensor) -> Tensor:
    """Return codes after flipping one weight at a time to its other neighbour where that lowers the row's error."""
    up = start - base
    slope = (start - z) @ h
    for _ in range(SWEEPS):
        any_moved = False
        for j in range(z.shape[-1]):
            move = 1 - 2 * up[..., j]
            move = move * (2 * move * slope[..., j] + h[..., j, j, None] < 0)
            if bool(move.any()):
                any_moved = True
                up[..., j] += move
                slope += move[..., None] * h[..., None, j, :]
        if not any_moved:
            break
    return base + up
