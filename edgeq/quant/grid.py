"""Grids: which codes an activation edge carries at each width, and what one step is worth.

An edge is stored with the bits of its widest reader: additions, poolings and 8-bit layers want 8, so what feeds them is
*wide* at every width. Layers of fewer bits behind it read a *narrow* copy, code_b = round(code_8 * hi_b / hi_8), which
has the same clipping range. So residual paths keep their precision while every multiplication runs on b-bit operands.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from edgeq.quant.bits import activation_range
from edgeq.quant.quantizer import SCALE_FLOOR, lsq_step

OBSERVER_MOMENTUM = 0.01  # the running maximum of observer scales, as in PyTorch's moving-average observers


class Codes(NamedTuple):
    """The bits of an edge at one width of the network: as it is stored, and of its narrowest reader."""

    stored: int
    narrowest: int


class Grid(nn.Module):
    """The steps of one activation edge, one per width: learned, observed as a running maximum, or one fixed for all."""

    def __init__(
        self,
        codes: Mapping[int, Codes],
        *,
        signed: bool,
        learned: bool,
        count: int,
        ceiling: float | None = None,
        fixed: float | None = None,
    ) -> None:
        super().__init__()
        self.count = count  # values per sample that share the step
        self.signed = signed
        self.codes = dict(codes)  # width -> bits
        self.learned = learned
        self.ceiling = ceiling
        self.fixed = fixed
        free = () if fixed is not None else codes
        self.steps = nn.ParameterDict({str(b): nn.Parameter(torch.tensor(0.05), requires_grad=learned) for b in free})

    def storage_bits(self, bits: int) -> int:
        """Return the width of the stored codes."""
        return self.codes[bits].stored

    def range(self, bits: int) -> tuple[int, int]:
        """Return the smallest and largest stored code."""
        return activation_range(self.storage_bits(bits), signed=self.signed)

    def step(self, bits: int) -> Float[Tensor, ""]:
        """Return what one stored code is worth."""
        if self.fixed is not None:
            return torch.tensor(self.fixed)
        hi = self.range(bits)[1]
        raw = self.steps[str(bits)]
        step = self._learned(raw, bits, hi) if self.learned else raw.clamp_min(SCALE_FLOOR)
        if self.ceiling is None:
            return step
        return step + (step.clamp_max(self.ceiling / hi) - step).detach()  # a step above the ceiling finds its way back

    def _learned(self, raw: Tensor, bits: int, hi: int) -> Tensor:
        """Return the step with LSQ's gradient size *for the codes that layers multiply*.

        Where those are the narrow copy, their step is S = s / r with r = hi_b / hi. LSQ moves S by g = 1 / sqrt(N hi_b)
        times dL/dS = r dL/ds, so s = r S moves by r^2 g dL/ds. (With the stored codes' own g, 2-bit ranges would move
        hundreds of times faster than LSQ means.)
        """
        narrow = activation_range(self.codes[bits].narrowest, signed=self.signed)[1]
        return lsq_step(raw, self.count, narrow, ratio=narrow / hi)

    @torch.no_grad()
    def set_step(self, bits: int, step: float) -> None:
        """Set the step, as calibration does."""
        self.steps[str(bits)].fill_(max(float(step), SCALE_FLOOR))

    @torch.no_grad()
    def observe(self, codes: Float[Tensor, "n c *space"], bits: int) -> None:
        """Move an observed step towards the batch's maximum; `codes` are unrounded, in units of the current step."""
        if not self.learned and self.fixed is None:
            step = self.steps[str(bits)]
            seen = codes.abs().amax() if self.signed else codes.amax()
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(seen, dist.ReduceOp.MAX)
            target = seen * step / self.range(bits)[1]
            step.lerp_(target.clamp_min(SCALE_FLOOR), OBSERVER_MOMENTUM)
