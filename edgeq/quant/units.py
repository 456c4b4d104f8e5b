"""The operators of a multi-bit network. Each knows its float form, its training form and its deployed form.

Values travel as `Value(codes, step)`: integer-valued float32 codes and what one code is worth; at 32 bits the codes are
the real values and the step is None. Carrying codes makes quantization nearly free in training: the input step goes
into the (small) weight tensor, the division by the output step into BatchNorm's affine parameters, and what remains
per activation is one clamp and one in-place rounding. The gradients are LSQ's, exactly.

Deployed form (evaluation, and training's last stage): BatchNorm folded, multipliers snapped, integers throughout.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.export.multiplier import add_shift, shift_for
from edgeq.quant.batchnorm import WidthNorm
from edgeq.quant.bits import FLOAT_BITS, Width, activation_range, weight_range
from edgeq.quant.exact import exact_conv2d, exact_linear
from edgeq.quant.fold import Affine, Folded, batchnorm_affine, fold
from edgeq.quant.grid import Grid
from edgeq.quant.quantizer import SCALE_FLOOR, lsq_step, mse_steps, quantize, round_ste, snap

PIXEL_ZERO = 128
PIXEL_STEP = 1.0 / 64.0  # a pixel p is worth (p - 128) / 64


class Value(NamedTuple):
    """What travels along an edge.

    Attributes:
        codes: Integer-valued codes, or real values at 32 bits.
        step: What one code is worth; None at 32 bits.
        reach: Largest |code|.
        grid: The grid that the codes lie on, where a unit rounded them.
    """

    codes: Tensor
    step: Tensor | None
    reach: int = 0
    grid: Grid | None = None

    @property
    def real(self) -> Tensor:
        """The real numbers that the codes stand for."""
        return self.codes if self.step is None else self.codes * self.step


class Output:
    """Where a unit's results land: a grid of its own, or that of the addition it feeds (a *tied* branch).

    A tied branch takes the step of the sum, so the addition needs no multiplier for it.
    """

    def __init__(self, grid: Grid, *, signed: bool) -> None:
        self.grid = grid
        self.signed = signed

    def range(self, bits: int) -> tuple[int, int]:
        """Return the smallest and largest code."""
        return activation_range(self.grid.storage_bits(bits), signed=self.signed)


class AbstractUnit(nn.Module):
    """One operator; `output` is None where codes pass through on their input's grid."""

    def __init__(self, width: Width, output: Output | None) -> None:
        super().__init__()
        self.width = width
        self.output = output

    @property
    def deployed(self) -> bool:
        """Whether the unit runs the deployed arithmetic now."""
        return not self.training or self.width.deployed

    @abstractmethod
    def forward(self, *inputs: Value) -> Value:
        """Run at the active width."""

    def _land(self, u: Tensor, step: Tensor) -> Value:
        """Round u, in units of step, to the output's codes."""
        assert self.output is not None
        lo, hi = self.output.range(self.width.bits)
        if self.training and not self.width.deployed and u.requires_grad:
            self.output.grid.observe(u.detach(), self.width.bits)
        return Value(quantize(u, lo, hi), step, max(hi, -lo), self.output.grid)

    def out_step(self) -> Tensor:
        """Return the step of the output grid at the active width."""
        assert self.output is not None
        return self.output.grid.step(self.width.bits)


class InputUnit(AbstractUnit):
    """Images to codes: pixel - 128. Accepts uint8, or floats in [0, 1] (rounded straight-through below 32 bits)."""

    def forward(self, *inputs: Value) -> Value:
        """Return the image's codes, or its real values at 32 bits."""
        image = inputs[0].codes
        if image.dtype == torch.uint8:
            codes = image.float() - PIXEL_ZERO
        else:
            codes = image * 255.0 - PIXEL_ZERO
            if self.width.bits != FLOAT_BITS:
                codes = round_ste(codes.clamp(-128.0, 127.0))
        codes = codes.contiguous(memory_format=torch.channels_last)
        if self.width.bits == FLOAT_BITS:
            return Value(codes * PIXEL_STEP, None)
        return Value(codes, torch.tensor(PIXEL_STEP, device=codes.device), 128)


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
        full_range: bool,
        learned: bool,
    ) -> None:
        super().__init__(width, output)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.norm = norm
        self.relu = relu  # None: no activation; inf: ReLU; 6: ReLU6
        self.weight_bits = weight_bits  # width -> bits of this layer's weights (edge layers differ)
        self.full_range = full_range
        self.learned = learned
        rows = layer.weight.shape[0] if output is not None else 1  # logits share one step: argmax on int32 is exact
        self.weight_steps = nn.ParameterDict(
            {str(b): nn.Parameter(torch.ones(rows), requires_grad=learned) for b in weight_bits}
        )
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

    def affine(self, bits: int) -> Affine:
        """Return gain and shift that follow the weights, from running statistics."""
        if self.norm is not None:
            return batchnorm_affine(self.norm.at(bits), self.bias)
        ones = torch.ones(len(self.weight), dtype=torch.float64, device=self.weight.device)
        return Affine(ones, ones * 0 if self.bias is None else self.bias.double())

    def folded(self, in_step: Tensor) -> Folded:
        """Return the layer in the code domain at the active width."""
        bits = self.width.bits
        if self.output is None:  # logits: their own step is s_in * s_w, so that the multiplier is 1
            steps = (in_step, self.weight_step(bits), in_step.double() * self.weight_step(bits).double())
            return fold(self.weight, self.affine(bits), steps=steps, weight_range=self.weight_range(bits), shift=0)
        return fold(
            self.weight,
            self.affine(bits),
            steps=(in_step, self.weight_step(bits), self.out_step()),
            weight_range=self.weight_range(bits),
            shift=shift_for(*self.output.range(bits)),
            snapped=self.width.snapped,
        )

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
        if self.relu is not None:
            y = F.relu(y) if self.relu == float("inf") else F.hardtanh(y, 0.0, self.relu)
        return Value(y, None)

    def _train(self, x: Value, in_step: Tensor) -> Value:
        bits = self.width.bits
        axes = (-1,) + (1,) * (self.weight.dim() - 1)
        w_step = self.weight_step(bits).reshape(axes)
        codes = quantize(self.weight / w_step, *self.weight_range(bits))
        scale = w_step * in_step
        if not torch.is_autocast_enabled(x.codes.device.type):
            y = _plus(self.product(x.codes, codes * scale), self.bias)
        elif self.norm is not None and self.bias is None and self.output is not None:
            # Codes up to 127 are exact in bf16 and fp16, their products with a step are not. BatchNorm does not see a
            # channel's scale, so it takes the sums of codes as they are; only its statistics need the scale.
            out_step = self.out_step()
            sums = self.product(x.codes, codes)
            y = self.norm(sums, bits, step=out_step, batch=True, scale=scale.detach().flatten())
            return self._land(y, out_step)
        else:
            y = _plus(self.product(x.codes, codes).float() * scale.reshape((1, -1) + axes[2:]), self.bias)
        if self.output is None:
            return Value(y, None)
        out_step = self.out_step()
        if self.norm is None:
            return self._land(y / out_step, out_step)
        return self._land(self.norm(y, bits, step=out_step, batch=True), out_step)

    def _deployed(self, x: Value, in_step: Tensor) -> Value:
        with torch.autocast(x.codes.device.type, enabled=False):
            folded = self.folded(in_step)
            acc = self.exact_product(x.codes, folded.weight.to(x.codes.dtype), x.reach)
        axes = (1, -1) + (1,) * (acc.dim() - 2)
        # An accumulator that float32 cannot hold saturates anyway (see export/multiplier.py); only a huge bias could
        # cancel one, so then the sum is done in float64.
        if float(folded.bias.detach().abs().max()) > 2**24:
            acc = acc.double()
        acc = acc + folded.bias.to(acc.dtype).reshape(axes)
        if self.output is None:
            return Value(acc, (in_step.double() * self.weight_step(self.width.bits).double()).to(in_step.dtype))
        lo, hi = self.output.range(self.width.bits)
        u = acc * folded.multiplier.to(acc.dtype).reshape(axes)
        return Value(quantize(u, lo, hi).to(x.codes.dtype), self.out_step(), max(hi, -lo), self.output.grid)


class ConvUnit(WeightedUnit):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, *args, layer: nn.Conv2d, **kwargs) -> None:
        super().__init__(*args, layer=layer, **kwargs)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        assert not isinstance(layer.padding, str)
        self.padding = layer.padding

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution without bias."""
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def exact_product(self, x: Tensor, weight: Tensor, reach: int) -> Tensor:
        """Return the convolution of integer codes, exactly."""
        return exact_conv2d(
            x,
            weight,
            reach=reach,
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
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


class AddUnit(AbstractUnit):
    """a + b, then ReLU where `relu` is set; both operands on 8-bit grids at every width."""

    def __init__(self, width: Width, output: Output, *, relu: float | None) -> None:
        super().__init__(width, output)
        self.relu = relu

    def multipliers(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the operands' short multipliers and their common shift, from their steps."""
        out = self.out_step().double()
        ra, rb = a.double() / out, b.double() / out
        n = add_shift(float(ra.detach()), float(rb.detach()))
        return (snap(ra, n), snap(rb, n), n) if self.width.snapped else (ra, rb, n)

    def forward(self, *inputs: Value) -> Value:
        """Return the sum on the output grid."""
        a, b = inputs
        if a.step is None or b.step is None:
            y = a.codes + b.codes
            if self.relu is not None:
                y = F.relu(y) if self.relu == float("inf") else F.hardtanh(y, 0.0, self.relu)
            return Value(y, None)
        out = self.out_step()
        if self.deployed:
            ma, mb, _ = self.multipliers(a.step, b.step)
            return self._land(a.codes * ma.to(a.codes.dtype) + b.codes * mb.to(b.codes.dtype), out)
        return self._land(_scaled(a, out, self.output) + _scaled(b, out, self.output), out)


class NarrowUnit(AbstractUnit):
    """A wide (8-bit) edge as b-bit codes with the same clipping range: round(code * hi_b / hi_8)."""

    def __init__(self, width: Width, *, signed: bool) -> None:
        super().__init__(width, None)
        self.signed = signed

    def ratio(self) -> tuple[int, int, int]:
        """Return (lo_b, hi_b, hi_8) at the active width."""
        lo, hi = activation_range(self.width.bits, signed=self.signed)
        return lo, hi, activation_range(8, signed=self.signed)[1]

    def forward(self, *inputs: Value) -> Value:
        """Return the narrow copy; the edge itself at 8 and 32 bits."""
        (x,) = inputs
        if x.step is None or self.width.bits == 8:
            return x
        lo, hi, wide = self.ratio()
        if self.deployed:  # one correctly rounded division of integers; the ratios have no ties
            u = x.codes * hi / wide
        else:
            u = x.codes * (hi / wide)
        return Value(quantize(u, lo, hi), x.step * (wide / hi), max(hi, -lo))


class ReluUnit(AbstractUnit):
    """A ReLU that no layer could absorb: codes below 0 become 0."""

    def __init__(self, width: Width, *, ceiling: float) -> None:
        super().__init__(width, None)
        self.ceiling = ceiling

    def forward(self, *inputs: Value) -> Value:
        """Clamp at 0 (a ceiling other than infinity applies at 32 bits alone; grids clip the rest)."""
        (x,) = inputs
        if x.step is None and self.ceiling != float("inf"):
            return Value(F.hardtanh(x.codes, 0.0, self.ceiling), None)
        return Value(F.relu(x.codes), x.step, x.reach, x.grid)


class MaxPoolUnit(AbstractUnit):
    """Maximum over windows: codes stay on their grid."""

    def __init__(self, width: Width, *, pool: nn.MaxPool2d) -> None:
        super().__init__(width, None)
        self.kernel, self.stride, self.padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)

    def forward(self, *inputs: Value) -> Value:
        """Pool."""
        (x,) = inputs
        return Value(F.max_pool2d(x.codes, self.kernel, self.stride, self.padding), x.step, x.reach, x.grid)


class AvgPoolUnit(AbstractUnit):
    """Average over windows, or over the plane (kernel None): integer sum, short multiplier."""

    def __init__(self, width: Width, output: Output, *, kernel, stride=None, padding=(0, 0)) -> None:
        super().__init__(width, output)
        self.kernel = None if kernel is None else _pair(kernel)
        self.stride = _pair(stride if stride is not None else (kernel or 1))
        self.padding = _pair(padding)

    def multiplier(self, in_step: Tensor, area: int) -> Tensor:
        """Return the short multiplier of the sum."""
        assert self.output is not None
        exact = in_step.double() / (area * self.out_step().double())
        return snap(exact, shift_for(*self.output.range(self.width.bits))) if self.width.snapped else exact

    def forward(self, *inputs: Value) -> Value:
        """Pool."""
        (x,) = inputs
        kernel = self.kernel or (x.codes.shape[2], x.codes.shape[3])
        area = kernel[0] * kernel[1]
        if self.kernel is None:
            y = x.codes.mean((2, 3), keepdim=True) if x.step is None else x.codes.sum((2, 3), keepdim=True)
        else:
            y = F.avg_pool2d(
                x.codes, kernel, self.stride, self.padding, divisor_override=None if x.step is None else 1
            )
        if x.step is None:
            return Value(y, None)
        out = self.out_step()
        factor = self.multiplier(x.step, area).to(y.dtype) if self.deployed else x.step / (out * area)
        return self._land(y * factor, out)


class ConcatUnit(AbstractUnit):
    """Channels side by side, each operand moved to the output grid first."""

    def multiplier(self, in_step: Tensor) -> Tensor:
        """Return an operand's short multiplier."""
        assert self.output is not None
        exact = in_step.double() / self.out_step().double()
        return snap(exact, shift_for(*self.output.range(self.width.bits))) if self.width.snapped else exact

    def forward(self, *inputs: Value) -> Value:
        """Concatenate."""
        if inputs[0].step is None:
            return Value(torch.cat([x.codes for x in inputs], 1), None)
        out = self.out_step()
        moved = []
        for x in inputs:
            assert x.step is not None
            factor = self.multiplier(x.step).to(x.codes.dtype) if self.deployed else x.step / out
            moved.append(x.codes * factor)
        return self._land(torch.cat(moved, 1), out)


class FlattenUnit(AbstractUnit):
    """All axes but the batch in one, in NCHW order."""

    def forward(self, *inputs: Value) -> Value:
        """Flatten."""
        (x,) = inputs
        return Value(x.codes.flatten(1), x.step, x.reach, x.grid)


class DropoutUnit(AbstractUnit):
    """Dropout while training with batch statistics; nothing otherwise."""

    def __init__(self, width: Width, *, p: float) -> None:
        super().__init__(width, None)
        self.p = p

    def forward(self, *inputs: Value) -> Value:
        """Drop values."""
        (x,) = inputs
        return Value(F.dropout(x.codes, self.p, not self.deployed), x.step, x.reach, x.grid)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * (y.dim() - 2))


def _scaled(x: Value, out_step: Tensor, output: Output | None) -> Tensor:
    """An operand in units of the output step; a tied branch already is, so it costs no pass over memory."""
    assert x.step is not None and output is not None
    return x.codes if x.grid is output.grid else x.codes * (x.step / out_step)


def _pair(value) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
