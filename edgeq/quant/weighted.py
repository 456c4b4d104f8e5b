"""Convolution and linear layers of a multi-bit network: shared float weights, a step per width, BatchNorm, ReLU."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.export.multiplier import FLOAT32_EXACT, shift_for
from edgeq.quant.batchnorm import WidthNorm
from edgeq.quant.bits import FLOAT_BITS, Width, weight_range
from edgeq.quant.correction import SHIFT, WEIGHT, Corrections, per_channel, plus
from edgeq.quant.exact import exact_conv2d, exact_linear
from edgeq.quant.fold import Affine, Folded, Implied, batchnorm_affine, fold, implied
from edgeq.quant.quantizer import SCALE_FLOOR, lsq_step, mse_steps, quantize
from edgeq.quant.units import AbstractUnit, Output, Value, activate

LEAST_CODE = 2 / 3  # of the largest weight, before rounding: the code of 2 bits is then not 0


class WeightedUnit(AbstractUnit):
    """Shared by convolution and linear: weight steps per width, BatchNorm, ReLU, folding."""

    def __init__(
        self,
        width: Width,
        output: Output | None,
        *,
        layer: nn.Conv2d | nn.Linear,
        norm: WidthNorm | None,
        relu: float | None,
        weight_bits: dict[int, int],
        input_bits: dict[int, int],
        full_range: bool,
        learned: bool,
    ) -> None:
        super().__init__(width, output)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.norm = norm
        self.is_affine = False  # one weight a channel, always 8 bits: a BatchNorm alone, what is made of pixels
        self.shows_pixels = False  # the latter
        self.relu = relu  # None: no activation; inf: ReLU; 6: ReLU6
        self.weight_bits = weight_bits  # width of the network -> bits of this layer's weights
        self.input_bits = input_bits  # and of the codes that it reads
        self.full_range = full_range
        self.learned = learned
        rows = layer.weight.shape[0] if output is not None else 1  # logits share one step: argmax on int32 is exact
        self.weight_steps = nn.ParameterDict(
            {str(b): nn.Parameter(torch.ones(rows), requires_grad=learned) for b in weight_bits}
        )
        self.corrections = Corrections(self.weight.detach(), weight_bits)
        self.reset_weight_steps()

    @torch.no_grad()
    def reset_weight_steps(self, bits: int | None = None) -> None:
        """Set learned weight steps to the ones of least squared error, at one width or all."""
        for key, step in self.weight_steps.items():
            if bits is None or int(key) == bits:
                rows = self.weight if step.numel() > 1 or len(self.weight) == 1 else self.weight.flatten()[None]
                step.copy_(mse_steps(rows, *self.weight_range(int(key))))

    def weight_range(self, bits: int) -> tuple[int, int]:
        """Return this layer's smallest and largest weight code when the network runs at `bits`."""
        return weight_range(self.weight_bits[bits], full_range=self.full_range)

    def weight_step(self, bits: int) -> Tensor:
        """Return the weight steps: learned, or max|w| / hi where scales are observed."""
        hi = self.weight_range(bits)[1]
        step = self.weight_steps[str(bits)]
        if self.learned:
            return lsq_step(step, self.weight.numel() // step.numel(), hi)
        rows = self.weight.detach().flatten(1) if step.numel() > 1 else self.weight.detach().flatten()[None]
        return (rows.abs().amax(1) / hi).clamp_min(SCALE_FLOOR)

    @torch.no_grad()
    def bound_weight_steps(self) -> None:
        """Bring learned steps down to where the largest weight has half of the largest code, after an update.

        Above it codes lie idle. Weights decay and steps do not, so at 8 bits, where a step's gradient is small, they
        drift there; and a step that jumps far above turns all codes into zeros, and no gradient brings it back. The
        bound keeps clear of the step at which the largest weight begins to be clipped: there the gradient is `hi` times
        larger than below it, and steps held at that edge are thrown about.
        """
        if not self.learned:
            return
        top = self.weight.flatten(1).abs().amax(1)
        for key, step in self.weight_steps.items():
            if step.grad is not None:
                least = max(self.weight_range(int(key))[1] / 2, LEAST_CODE)
                most = (top if len(step) == len(top) else top.amax(0, keepdim=True)) / least
                step.clamp_(-most, most)

    def weight_at(self, bits: int) -> Tensor:
        """Return the weights before they are rounded at a width: the shared ones, plus what learned rounding adds."""
        return plus(self.weight, self.corrections.get(WEIGHT, bits))

    def affine(self, bits: int) -> Affine:
        """Return gain and shift that follow the weights, from running statistics."""
        if self.norm is not None:
            found = batchnorm_affine(self.norm.at(bits), self.bias)
        else:
            ones = torch.ones(len(self.weight), dtype=torch.float64, device=self.weight.device)
            found = Affine(ones, ones * 0 if self.bias is None else self.bias.double())
        return Affine(found.gain, plus(found.shift, self.corrections.get(SHIFT, bits)))

    def implied(self, in_step: Tensor) -> Implied:
        """Return the steps that the short multipliers give the weights at the active width."""
        bits = self.width.bits
        w_step = self.weight_step(bits)
        if self.output is None:  # logits: their own step is s_in * s_w, so that the multiplier is 1
            return implied(self.affine(bits), steps=(in_step, w_step, in_step.double() * w_step.double()), shift=0)
        return implied(
            self.affine(bits),
            steps=(in_step, w_step, self.out_step()),
            shift=shift_for(*self.output.range(bits)),
            snapped=self.width.snapped,
        )

    def folded(self, in_step: Tensor) -> Folded:
        """Return the layer in the code domain at the active width."""
        bits = self.width.bits
        return fold(self.weight_at(bits), self.implied(in_step), weight_range=self.weight_range(bits))

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return weight . x without bias."""

    @abstractmethod
    def exact_product(self, x: Tensor, weight: Tensor, reach: int) -> Tensor:
        """Return weight . x of integer codes, exactly."""

    def forward(self, *inputs: Value) -> Value:
        """Run at the active width."""
        (x,) = inputs
        if x.step is None:
            return self._float(x)
        return self._deployed(x, x.step) if self.deployed else self._train(x, x.step)

    def _float(self, x: Value) -> Value:
        y = _plus(self.product(x.codes, self.weight), self.bias)
        if self.norm is not None:
            y = self.norm(y, FLOAT_BITS, step=None, batch=not self.deployed)
        return Value(activate(y, self.relu), None)

    def _train(self, x: Value, in_step: Tensor) -> Value:
        bits = self.width.bits
        axes = (-1,) + (1,) * (self.weight.dim() - 1)
        w_step = self.weight_step(bits).reshape(axes)
        codes = quantize(self.weight_at(bits) / w_step, *self.weight_range(bits))
        scale = w_step * in_step
        if not torch.is_autocast_enabled(x.codes.device.type):
            y = _plus(self.product(x.codes, codes * scale), self.bias)
        elif self.norm is not None and self.bias is None and self.output is not None:
            # Codes up to 127 are exact in bf16 and fp16, their products with a step are not. BatchNorm does not see a
            # channel's scale, so it takes the sums of codes as they are; only its statistics need the scale.
            out_step = self.out_step()
            sums = self.product(x.codes, codes)
            y = self.norm(sums, bits, step=out_step, batch=True, scale=scale.detach().flatten())
            return self._land(self._shifted(y, out_step), out_step)
        else:
            y = _plus(self.product(x.codes, codes).float() * scale.reshape((1, -1, *axes[2:])), self.bias)
        if self.output is None:
            return Value(self._shifted(y), None)
        out_step = self.out_step()
        if self.norm is None:
            return self._land(self._shifted(y) / out_step, out_step)
        return self._land(self._shifted(self.norm(y, bits, step=out_step, batch=True), out_step), out_step)

    def _shifted(self, y: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """Add the active width's correction to results in units of `step`."""
        shift = self.corrections.get(SHIFT, self.width.bits)
        return y if shift is None else plus(y, per_channel(shift / step, y))

    def _deployed(self, x: Value, in_step: Tensor) -> Value:
        with torch.autocast(x.codes.device.type, enabled=False):
            folded = self.folded(in_step)
            acc = self.exact_product(x.codes, folded.weight.to(x.codes.dtype), x.reach)
        axes = (1, -1) + (1,) * (acc.dim() - 2)
        # An accumulator that float32 cannot hold saturates anyway (see export/multiplier.py); only a huge bias could
        # cancel one, so then the sum is done in float64. Logits do not saturate: there the sum itself has to fit.
        largest = float(folded.bias.detach().abs().max())
        if self.output is None:
            largest += float(acc.detach().abs().max()) if acc.numel() else 0.0
        if largest > FLOAT32_EXACT:
            acc = acc.double()
        acc = acc + folded.bias.to(acc.dtype).reshape(axes)
        if self.output is None:
            return Value(acc, (in_step.double() * self.weight_step(self.width.bits).double()).to(in_step.dtype))
        lo, hi = self.output.range(self.width.bits)
        u = acc * folded.multiplier.to(acc.dtype).reshape(axes)
        return Value(quantize(u, lo, hi).to(x.codes.dtype), self.out_step(), max(hi, -lo), self.output.grid)


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    high, wide = sizes
    return high, wide


class ConvUnit(WeightedUnit):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, *args, layer: nn.Conv2d, **kwargs) -> None:
        super().__init__(*args, layer=layer, **kwargs)
        assert not isinstance(layer.padding, str)
        self.stride, self.padding, self.dilation = map(_pair, (layer.stride, layer.padding, layer.dilation))
        self.groups = layer.groups

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution without bias."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def exact_product(self, x: Tensor, weight: Tensor, reach: int) -> Tensor:
        """Return the convolution of integer codes, exactly."""
        return exact_conv2d(
            x,
            weight,
            reach=reach,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class LinearUnit(WeightedUnit):
    """Linear, BatchNorm, ReLU; the last one gives the logits."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x W^T."""
        return F.linear(x, weight)

    def exact_product(self, x: Tensor, weight: Tensor, reach: int) -> Tensor:
        """Return x W^T of integer codes, exactly."""
        return exact_linear(x, weight, reach=reach)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * (y.dim() - 2))
