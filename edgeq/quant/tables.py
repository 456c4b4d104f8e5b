"""Pointwise functions on codes: with at most 256 codes, any function of one value is a table.

For an input worth s_in a code and an output worth s_out, code q becomes

    table[q] = clamp(round(f(q s_in) / s_out), lo, hi)

in float64, rounded half to even, on the CPU wherever the network runs. Evaluation looks its codes up in the table
that lowering writes down, so both are one function by construction. Gradients are those of f.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from edgeq.quant.bits import Width
from edgeq.quant.quantizer import quantize
from edgeq.quant.units import AbstractUnit, Output, Value

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
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
