"""Quantization as pure functions: rounding, straight-through gradients, scales and their gradients.

For a step s and codes lo...hi, q(x) = round(clamp(x / s, lo, hi)), half to even, and x is worth s * q(x). We divide by
s, as ONNX Runtime does (multiplying by 1/s differs on ties). The straight-through estimator takes round' = 1, so

    dq/dx = 1/s inside (lo, hi), else 0;     d(s q)/ds = q - x/s inside, lo or hi outside   (LSQ, arXiv 1902.08153)

which autograd gives by itself from `quantize(x / s, lo, hi) * s`: the clamp carries the mask, and every operator used
here is twice differentiable.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCALE_FLOOR = 1e-8  # a learned step never reaches zero or turns negative
BLOCK = 1 << 16  # weights that a search works on at a time: they stay in the processor's cache


class _RoundInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.round_()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return grads[0]


def round_ste(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Round half to even; the gradient passes through unchanged."""
    return _RoundInPlace.apply(x.clone())  # type: ignore[return-value]


def quantize(u: Float[Tensor, "*dims"], lo: int | float, hi: int | float) -> Float[Tensor, "*dims"]:
    """Return the codes round(clamp(u, lo, hi)); the gradient is 1 strictly inside (lo, hi) and 0 elsewhere.

    hardtanh keeps its input, not its output, for the backward pass, so rounding the output in place is safe and saves
    one pass over memory, which is what a training step on a CPU spends its time on.
    """
    return _RoundInPlace.apply(F.hardtanh(u, lo, hi))  # type: ignore[return-value]


def scale_gradient(x: Float[Tensor, "*dims"], factor: float) -> Float[Tensor, "*dims"]:
    """Return x itself, with its gradient multiplied by factor."""
    scaled = x * factor
    return scaled + (x - scaled).detach()


def lsq_step(step: Float[Tensor, "*dims"], count: int, hi: int, *, ratio: float = 1.0) -> Float[Tensor, "*dims"]:
    """Return a learned step, kept positive, with LSQ's gradient factor 1 / sqrt(count * hi).

    Args:
        step: The parameter.
        count: How many values share the step (per sample, for activations).
        hi: The largest code.
        ratio: Of this step to the one that LSQ's rule is about, see `Grid`.
    """
    return scale_gradient(step.abs().clamp_min(SCALE_FLOOR), ratio**2 / math.sqrt(max(count, 1) * hi))


def snap(multiplier: Float[Tensor, "*dims"], n: int) -> Float[Tensor, "*dims"]:
    """Return the short dyadic multiplier max(round(M 2^n), 1) / 2^n; the gradient passes straight through."""
    short = (multiplier.detach() * 2.0**n).round().clamp_(1, 2**24 - 1) * 2.0**-n
    return multiplier + (short - multiplier).detach() if multiplier.requires_grad else short


def mse_steps(
    weight: Float[Tensor, "out inputs *kernel"], lo: int, hi: int, *, grid: int = 40
) -> Float[Tensor, " out"]:
    """Return, per row, the step with the least squared error: a search over `grid` fractions of max|w| / hi."""
    rows = weight.detach().flatten(1)
    return torch.cat([_mse_steps(part, lo, hi, grid) for part in rows.split(max(1, BLOCK // rows.shape[1]))])


def _mse_steps(rows: Tensor, lo: int, hi: int, grid: int) -> Tensor:
    top = rows.abs().amax(1).clamp_min(SCALE_FLOOR) / hi
    best, best_error = top, torch.full_like(top, math.inf)
    for k in range(grid):
        step = top * (1.0 - 0.9 * k / grid)
        q = (rows / step[:, None]).round_().clamp_(lo, hi).mul_(step[:, None])
        error = q.sub_(rows).square_().sum(1)
        better = error < best_error
        best, best_error = torch.where(better, step, best), torch.where(better, error, best_error)
    return best
