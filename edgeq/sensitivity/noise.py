"""What each layer's weights alone, and the codes that it reads alone, do to the logits at each number of bits.

Everything else stays in real numbers, as in `mixture.py`. Weights get the steps of least squared error, codes the range
that calibration by least squared error would give that edge. Where each width has its own BatchNorm, calibration
measures it again behind the rounding; so here the layer's sums get back the mean and the variance, per channel and
batch, that they have without rounding. What is left is noise, as a share of the logits' power:

    noise = sum (y - y_float)^2 / sum y_float^2

The noises of different layers add up (nearly: they are small and do not know of each other), which is what the search
for bits of layers is built on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import torch
from jaxtyping import UInt8
from torch import Tensor

from edgeq.calib.methods import MSE
from edgeq.calib.walk import check_images, check_weights, evaluating, float_histograms, homes
from edgeq.errors import InputError
from edgeq.export.pack import packed_size
from edgeq.quant.bits import activation_range, weight_range
from edgeq.quant.network import MultiBitNet
from edgeq.quant.quantizer import SCALE_FLOOR, mse_steps, quantize
from edgeq.quant.units import Value, activate
from edgeq.quant.weighted import WeightedUnit
from edgeq.sensitivity.mixture import Mixture, reference_bits
from edgeq.sensitivity.sums import power

PIXELS = 100 * 32 * 32


@dataclass
class LayerNoise:
    """One layer: what it costs and what rounding it does to the logits.

    Attributes:
        name: Of the unit.
        weights: How many.
        macs: Multiplications for one image.
        end: Whether it is the first or the last layer, which keeps 8 bits by default.
        is_affine: A stand-alone BatchNorm or what the network makes of pixels, which has 8 bits always.
        pixels: It reads the image, or what the network makes of its pixels, which have 8 bits always.
        weight_noise: Per number of bits, of its weights alone.
        code_noise: Per number of bits, of the codes that it reads alone.
    """

    name: str
    weights: int
    macs: int
    end: bool
    is_affine: bool
    pixels: bool
    weight_noise: dict[int, float] = field(default_factory=dict)
    code_noise: dict[int, float] = field(default_factory=dict)

    def weight_bytes(self, bits: int) -> int:
        """Return the bytes of the packed weights."""
        return packed_size(self.weights, bits)


@torch.no_grad()
def layer_noises(
    net: MultiBitNet,
    images: UInt8[Tensor, "n c h w"],
    *,
    bits: tuple[int, ...],
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LayerNoise, ...]:
    """Measure every layer at every number of bits; the network is left as it was.

    Args:
        net: A multi-bit network, trained or calibrated; its widths below 32 are not looked at.
        images: Some hundred, best those for calibration.
        bits: Numbers of bits from 2 to 8.
        batch_size: Images at a time.
        progress: Called with the finished steps and how many there are.

    Raises:
        InputError: No images or others than the network's, wrong bits, or weights that are not finite.
    """
    wrong = [b for b in bits if not 2 <= b <= 8]
    if wrong or not bits:
        raise InputError(f"expected numbers of bits from 2 to 8 for single layers, got {list(bits)}; for example 8 4 2")
    size = batch_size or max(2, min(100, PIXELS // (net.image_shape[1] * net.image_shape[2])))
    check_images(net, images, size)
    check_weights(net)
    histograms, home = float_histograms(net, images, batch_size=size), homes(net)
    work = _Work(net, bits)
    method = MSE()
    for name in work.layers:
        source = home[work.inputs[name]]
        if source is not None:
            for b, signed in product(bits, (False, True)):
                levels = activation_range(b, signed=signed)[1]
                work.steps[name, b, signed] = method.step(histograms[source], levels)
    parts = images.tensor_split(max(-(-len(images) // size), 1))
    for index, part in enumerate(parts):
        with evaluating(net, reference_bits(net)):
            work.batch(part.to(next(net.parameters()).device))
        progress(index + 1, len(parts))
    return work.result()


class _Work:
    """The sums of all layers."""

    def __init__(self, net: MultiBitNet, bits: tuple[int, ...]) -> None:
        self.net, self.bits, self.mixture = net, bits, Mixture(net, reference_bits(net))
        self.layers = net.weighted()
        self.inputs = {step.name: step.inputs[0] for step in net.steps}
        self.last = net.steps[-1].name
        self.steps: dict[tuple[str, int, bool], float] = {}
        self.power = 0.0
        self.macs: dict[str, int] = {}
        self.noise: dict[tuple[str, str, int], float] = {}
        self.rounded = {(name, b): rounded_weight(unit, b) for name, unit in self.layers.items() for b in bits}

    def batch(self, image: Tensor) -> None:
        """Take a batch."""
        plain = self.mixture.whole(image, frozenset())
        logits = plain[self.last].real
        self.power += float(power(logits).sum())
        for name, unit in self.layers.items():
            x = plain[self.inputs[name]].real
            sums = unit.product(x, unit.weight)
            self.macs[name] = sums[0].numel() * unit.weight[0].numel()
            for b in self.bits:
                self._add(plain, ("weights", name, b), unit.product(x, self.rounded[name, b]), sums)
                signed = bool((x < 0).any())
                if (name, b, signed) in self.steps:
                    step, (lo, hi) = self.steps[name, b, signed], activation_range(b, signed=signed)
                    self._add(
                        plain, ("codes", name, b), unit.product(quantize(x / step, lo, hi) * step, unit.weight), sums
                    )

    def _add(self, plain: dict[str, Value], key: tuple[str, str, int], sums: Tensor, expected: Tensor) -> None:
        unit = self.layers[key[1]]
        if unit.norm is not None and not unit.norm.shared:
            sums = _matched(sums, expected)
        affine, shape = unit.affine(self.mixture.reference), (1, -1) + (1,) * (sums.dim() - 2)
        y = activate(
            sums * affine.gain.to(sums.dtype).reshape(shape) + affine.shift.to(sums.dtype).reshape(shape), unit.relu
        )
        after = self.mixture.following(plain, key[1], Value(y, None))
        off = after[self.last].real - plain[self.last].real
        self.noise[key] = self.noise.get(key, 0.0) + float(power(off).sum())

    def result(self) -> tuple[LayerNoise, ...]:
        """Return what was measured."""
        home = homes(self.net)
        chosen = [name for name, unit in self.layers.items() if not unit.is_affine]
        image = {None, *(name for name, unit in self.layers.items() if unit.shows_pixels)}
        found = []
        for name, unit in self.layers.items():
            pixels = home[self.inputs[name]] in image
            end = name in (chosen[0], chosen[-1])
            layer = LayerNoise(name, unit.weight.numel(), self.macs[name], end, unit.is_affine, pixels)
            for b in self.bits:
                layer.weight_noise[b] = self.noise["weights", name, b] / max(self.power, 1e-300)
                layer.code_noise[b] = 0.0 if pixels else self.noise["codes", name, b] / max(self.power, 1e-300)
            found.append(layer)
        return tuple(found)


def rounded_weight(unit: WeightedUnit, bits: int) -> Tensor:
    """Return a layer's weights rounded to some bits, with steps as a fresh calibration chooses them."""
    lo, hi = weight_range(bits, full_range=unit.full_range)
    channels = unit.output is not None  # logits share one step
    rows = unit.weight.detach().flatten(1) if channels else unit.weight.detach().reshape(1, -1)
    step = mse_steps(rows, lo, hi) if unit.learned else (rows.abs().amax(1) / hi).clamp_min(SCALE_FLOOR)
    step = step.reshape((-1,) + (1,) * (unit.weight.dim() - 1))
    return quantize(unit.weight.detach() / step, lo, hi) * step


def _matched(sums: Tensor, expected: Tensor) -> Tensor:
    """Return sums with the mean and the variance, per channel, of those that were expected."""
    axes = [0, *range(2, sums.dim())]
    if sums.numel() // sums.shape[1] < 2:
        return sums
    var, mean = torch.var_mean(sums, axes, keepdim=True)
    want, middle = torch.var_mean(expected, axes, keepdim=True)
    gain = (want / var.clamp_min(torch.finfo(var.dtype).tiny)).sqrt().where(var > 0, torch.ones_like(var))
    return (sums - mean) * gain + middle
