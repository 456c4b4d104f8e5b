"""Pointwise functions on codes: with at most 256 codes, any function of one value is a table.

For an input worth s_in a code and an output worth s_out, code q becomes

    table[q] = clamp(round(f(q s_in) / s_out), lo, hi)

in float64, rounded half to even, on the CPU wherever the network runs. Evaluation looks its codes up in the table
that lowering writes down, so both are one function by construction. Gradients are those of f.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn

from edgeq.quant.bits import Width
from edgeq.quant.quantizer import quantize, round_ste
from edgeq.quant.units import AbstractUnit, Output, Value

EDGE = 1.001  # FSQ's tanh reaches a little beyond the outermost levels, so that they are not limits


def rounded_to_levels(x: Float[Tensor, "*dims"], count: int) -> Float[Tensor, "*dims"]:
    """Return FSQ's rounding (arXiv 2309.15505) to so many levels in -1...1; the gradient is that before rounding."""
    return round_ste(bounded(x, count)) / (count // 2)


def bounded(x: Float[Tensor, "*dims"], count: int) -> Float[Tensor, "*dims"]:
    """Return what FSQ rounds: numbers between the first and the last of so many whole ones around 0."""
    reach, offset = (count - 1) * EDGE / 2, 0.0 if count % 2 else 0.5
    return torch.tanh(x + math.atanh(offset / reach)) * reach - offset


class Levels(nn.Module):
    """FSQ's rounding of every number to the same `count` of levels, 3 or more."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        """Round."""
        return rounded_to_levels(x, self.count)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "levels": rounded_to_levels,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}
NEVER_NEGATIVE = ("sigmoid", "hardsigmoid", "softplus")


@dataclass(frozen=True)
class Pointwise:
    """A function of one value: its name in `FUNCTIONS` and the arguments after the value."""

    name: str
    args: tuple[int | float | str, ...] = ()

    def __call__(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        """Return f(x)."""
        return FUNCTIONS[self.name](x, *self.args)

    @property
    def signed(self) -> bool:
        """Whether some value is negative."""
        return self.name not in NEVER_NEGATIVE

    @property
    def step(self) -> float | None:
        """What all values are whole multiples of, if there is such a number."""
        return 1 / (int(self.args[0]) // 2) if self.name == "levels" else None


class TableUnit(AbstractUnit):
    """f(x) on a grid of its own, read from a table."""

    def __init__(self, width: Width, output: Output, *, function: Pointwise) -> None:
        super().__init__(width, output)
        self.function = function

    @torch.no_grad()
    def table(self, in_step: Float[Tensor, ""], reach: int) -> Float64[Tensor, " codes"]:
        """Return the output codes of the input codes -reach...reach, in that order."""
        assert self.output is not None
        lo, hi = self.output.range(self.width.bits)
        codes = torch.arange(-reach, reach + 1, dtype=torch.float64)
        values = self.function(codes * in_step.detach().cpu().double())
        return (values / self.out_step().detach().cpu().double()).clamp_(lo, hi).round_()

    def forward(self, *inputs: Value) -> Value:
        """Look up; f itself at 32 bits and while training."""
        (x,) = inputs
        if x.step is None:
            return Value(self.function(x.codes), None)
        out = self.out_step()
        if not self.deployed:
            return self._land(self.function(x.real) / out, out)
        assert self.output is not None
        lo, hi = self.output.range(self.width.bits)
        table = self.table(x.step, x.reach).to(x.codes.device, x.codes.dtype)
        codes = table[x.codes.detach().long() + x.reach]
        if torch.is_grad_enabled() and (x.codes.requires_grad or out.requires_grad):
            smooth = quantize(self.function(x.real) / out, lo, hi)
            codes = smooth + (codes - smooth).detach()
        return Value(codes, out, max(hi, -lo), self.output.grid)
