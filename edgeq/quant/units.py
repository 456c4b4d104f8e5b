"""The operators of a multi-bit network. Each knows its float form, its training form and its deployed form.

Values travel as `Value(codes, step)`: integer-valued float32 codes and what one code is worth; at 32 bits the codes are
the real values and the step is None. Carrying codes makes quantization nearly free in training: the input step goes
into the (small) weight tensor, the division by the output step into BatchNorm's affine parameters, and what remains
per activation is one clamp and one in-place rounding. The gradients are LSQ's, exactly.

Deployed form (evaluation, and training's last stage): BatchNorm folded, multipliers snapped, integers throughout.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.quant.bits import FLOAT_BITS, Width, activation_range
from edgeq.quant.grid import Grid
from edgeq.quant.quantizer import quantize, round_ste

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

    def __init__(self, grid: Grid, *, signed: bool, owner: bool) -> None:
        self.grid = grid
        self.signed = signed
        self.owner = owner  # a tied branch does not say what its addition's range is

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
        if self.output.owner and self.training and not self.width.deployed and u.requires_grad:
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
                # Beyond the bounds but within the rounding, so that black and white pixels keep their gradient.
                codes = round_ste(codes.clamp(-128.49, 127.49))
        codes = codes.contiguous(memory_format=torch.channels_last)
        if self.width.bits == FLOAT_BITS:
            return Value(codes * PIXEL_STEP, None)
        return Value(codes, torch.tensor(PIXEL_STEP, device=codes.device), 128)


class Narrowing(NamedTuple):
    """What a narrow copy does at one width of the network: bits and largest code of the edge, bits of the copy."""

    stored: int
    top: int
    read: int


class NarrowUnit(AbstractUnit):
    """An edge as its narrower readers want it, with the same clipping range: round(code * hi_read / hi_stored)."""

    def __init__(self, width: Width, *, signed: bool, at: Mapping[int, Narrowing]) -> None:
        super().__init__(width, None)
        self.signed = signed
        self.at = dict(at)  # width -> what is done there

    @property
    def idle(self) -> bool:
        """Whether the readers take the edge as it is stored, at the active width."""
        bits = self.width.bits
        return bits == FLOAT_BITS or self.at[bits].read >= self.at[bits].stored

    def ratio(self) -> tuple[int, int, int]:
        """Return (lo, hi) of the copy and the edge's largest code, at the active width."""
        narrowing = self.at[self.width.bits]
        return *activation_range(narrowing.read, signed=self.signed), narrowing.top

    def forward(self, *inputs: Value) -> Value:
        """Return the narrow copy, or the edge itself."""
        (x,) = inputs
        if x.step is None or self.idle:
            return x
        lo, hi, top = self.ratio()
        # Deployed: one correctly rounded division of integers (the ratios have no ties). Training: one pass less.
        u = x.codes * hi / top if self.deployed else x.codes * (hi / top)
        return Value(quantize(u, lo, hi), x.step * (top / hi), max(hi, -lo))


class ReluUnit(AbstractUnit):
    """A ReLU that no layer could absorb: codes below 0 become 0."""

    def __init__(self, width: Width, *, ceiling: float) -> None:
        super().__init__(width, None)
        self.ceiling = ceiling

    def top(self, step: Tensor) -> float:
        """Return the ceiling as a code: infinity, or the one nearest to it."""
        return self.ceiling if math.isinf(self.ceiling) else float(round(self.ceiling / float(step.detach())))

    def forward(self, *inputs: Value) -> Value:
        """Clamp at 0 and, for ReLU6, at the code nearest to 6."""
        (x,) = inputs
        if x.step is None:
            return Value(activate(x.codes, self.ceiling), None)
        return Value(activate(x.codes, self.top(x.step)), x.step, x.reach, x.grid)


class MaxPoolUnit(AbstractUnit):
    """Maximum over windows: codes stay on their grid."""

    def __init__(self, width: Width, *, pool: nn.MaxPool2d) -> None:
        super().__init__(width, None)
        self.kernel, self.stride, self.padding = pair(pool.kernel_size), pair(pool.stride), pair(pool.padding)
        self.ceil_mode = pool.ceil_mode

    def forward(self, *inputs: Value) -> Value:
        """Pool."""
        (x,) = inputs
        y = F.max_pool2d(x.codes, self.kernel, self.stride, self.padding, ceil_mode=self.ceil_mode)
        return Value(y, x.step, x.reach, x.grid)


class FlattenUnit(AbstractUnit):
    """All axes but the batch in one, in NCHW order."""

    def forward(self, *inputs: Value) -> Value:
        """Flatten."""
        (x,) = inputs
        return Value(x.codes.flatten(1), x.step, x.reach, x.grid)


class DropoutUnit(AbstractUnit):
    """Dropout while training with batch statistics; nothing otherwise. `whole`: all of a sample (stochastic depth)."""

    def __init__(self, width: Width, *, p: float, whole: bool = False) -> None:
        super().__init__(width, None)
        self.p = p
        self.whole = whole

    def forward(self, *inputs: Value) -> Value:
        """Drop values."""
        (x,) = inputs
        if self.whole and not self.deployed:
            kept = F.dropout(x.codes.new_ones((len(x.codes),) + (1,) * (x.codes.dim() - 1)), self.p)
            return Value(x.codes * kept, x.step, x.reach, x.grid)
        return Value(F.dropout(x.codes, self.p, not self.deployed), x.step, x.reach, x.grid)


def activate(y: Tensor, relu: float | None) -> Tensor:
    """ReLU, ReLU6 or nothing, on real numbers."""
    if relu is None:
        return y
    return F.relu(y) if relu == float("inf") else F.hardtanh(y, 0.0, relu)


def pair(value) -> tuple[int, int]:
    """One number or two, as two."""
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
