"""What brings several values together: sums, products, concatenation, averages. Integers and short multipliers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.export.multiplier import FLOAT32_EXACT, add_shift, shift_for
from edgeq.quant.bits import Width
from edgeq.quant.quantizer import snap
from edgeq.quant.units import AbstractUnit, Output, Value, activate, pair


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
            return Value(activate(a.codes + b.codes, self.relu), None)
        out = self.out_step()
        if self.deployed:
            ma, mb, _ = self.multipliers(a.step, b.step)
            return self._land(a.codes * ma.to(a.codes.dtype) + b.codes * mb.to(b.codes.dtype), out)
        return self._land(_scaled(a, out, self.output) + _scaled(b, out, self.output), out)


class AvgPoolUnit(AbstractUnit):
    """Average over windows, or over the plane (kernel None): integer sum, short multiplier."""

    def __init__(self, width: Width, output: Output, *, kernel, stride=None, padding=(0, 0)) -> None:
        super().__init__(width, output)
        self.kernel = None if kernel is None else pair(kernel)
        self.stride = pair(stride if stride is not None else (kernel or 1))
        self.padding = pair(padding)

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
            y = F.avg_pool2d(x.codes, kernel, self.stride, self.padding, divisor_override=None if x.step is None else 1)
        if x.step is None:
            return Value(y, None)
        out = self.out_step()
        factor = self.multiplier(x.step, area).to(y.dtype) if self.deployed else x.step / (out * area)
        return self._land(y * factor, out)


class PlaneSumUnit(AbstractUnit):
    """Sums over the plane as logits: the average that a fully convolutional network ends with, left in integers."""

    def forward(self, *inputs: Value) -> Value:
        """Return the averages; their codes are the sums."""
        (x,) = inputs
        if x.step is None:
            return Value(x.codes.mean((2, 3)), None)
        area = x.codes.shape[2] * x.codes.shape[3]
        exact = x.codes.double() if x.reach * area > FLOAT32_EXACT else x.codes
        return Value(exact.sum((2, 3)), x.step / area, x.reach * area)


class MulUnit(AbstractUnit):
    """a * b, element by element, a plane by its channel's factor too; both operands on 8-bit grids at every width."""

    def multiplier(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the short multiplier of the products, from the operands' steps."""
        assert self.output is not None
        exact = a.double() * b.double() / self.out_step().double()
        return snap(exact, shift_for(*self.output.range(self.width.bits))) if self.width.snapped else exact

    def forward(self, *inputs: Value) -> Value:
        """Return the product on the output grid."""
        a, b = inputs
        product = a.codes * b.codes
        if a.step is None or b.step is None:
            return Value(product, None)
        out = self.out_step()
        factor = self.multiplier(a.step, b.step) if self.deployed else a.step * b.step / out
        return self._land(product * factor.to(product.dtype), out)


class ConcatUnit(AbstractUnit):
    """Channels side by side, each operand moved to the output grid first; then ReLU where `relu` is set."""

    def __init__(self, width: Width, output: Output, *, relu: float | None) -> None:
        super().__init__(width, output)
        self.relu = relu

    def multiplier(self, in_step: Tensor) -> Tensor:
        """Return an operand's short multiplier."""
        assert self.output is not None
        exact = in_step.double() / self.out_step().double()
        return snap(exact, shift_for(*self.output.range(self.width.bits))) if self.width.snapped else exact

    def forward(self, *inputs: Value) -> Value:
        """Concatenate."""
        if inputs[0].step is None:
            return Value(activate(torch.cat([x.codes for x in inputs], 1), self.relu), None)
        out = self.out_step()
        moved = []
        for x in inputs:
            assert x.step is not None
            factor = self.multiplier(x.step).to(x.codes.dtype) if self.deployed else x.step / out
            moved.append(x.codes * factor)
        return self._land(torch.cat(moved, 1), out)


def _scaled(x: Value, out_step: Tensor, output: Output | None) -> Tensor:
    """An operand in units of the output step; a tied branch already is, so it costs no pass over memory."""
    assert x.step is not None and output is not None
    return x.codes if x.grid is output.grid else x.codes * (x.step / out_step)
