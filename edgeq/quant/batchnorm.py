"""One BatchNorm per bit-width (the default), or one for all of them (an option and a control arm).

Below 8 bits every shared backbone that works normalises each width by its own statistics; that alone may make the
widths' features differ, so the shared form must be there to compare with.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SHARED = "shared"


class WidthNorm(nn.Module):
    """BatchNorm statistics and parameters for every width of a layer."""

    def __init__(self, source: nn.BatchNorm2d | nn.BatchNorm1d, bits: tuple[int, ...], *, shared: bool) -> None:
        super().__init__()
        kind = nn.BatchNorm2d if isinstance(source, nn.BatchNorm2d) else nn.BatchNorm1d
        self.shared = shared
        self.norms = nn.ModuleDict()
        for key in (SHARED,) if shared else tuple(map(str, bits)):
            norm = kind(source.num_features, eps=source.eps, momentum=source.momentum)
            norm.load_state_dict(source.state_dict())
            self.norms[key] = norm

    def at(self, bits: int) -> nn.BatchNorm2d | nn.BatchNorm1d:
        """Return the BatchNorm of one width."""
        norm = self.norms[SHARED if self.shared else str(bits)]
        assert isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d))
        return norm

    def forward(
        self,
        x: Float[Tensor, "n c *space"],
        bits: int,
        *,
        step: Float[Tensor, ""] | None,
        batch: bool,
        scale: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, "n c *space"]:
        """Normalise, the result in units of `step` (which costs nothing: it goes into the affine parameters).

        Args:
            x: What the layer gave.
            bits: The width.
            step: The output step; None for real numbers.
            batch: Use the batch's statistics and move the running ones, instead of using the running ones.
            scale: What one unit of x is worth, per channel, where x is not in real numbers. Normalising undoes any
                scale (up to eps), so only the running statistics are converted.
        """
        norm = self.at(bits)
        weight, bias = norm.weight, norm.bias
        if step is not None:
            weight, bias = weight / step, bias / step
        momentum = 0.1 if norm.momentum is None else norm.momentum
        if batch and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        if batch and dist.is_initialized() and dist.get_world_size() > 1:
            x = x if scale is None else x.float() * scale.reshape((1, -1) + (1,) * (x.dim() - 2))
            return _synchronised(x, norm, weight, bias, momentum)
        if batch:
            return _with_batch(x, norm, weight, bias, (scale, momentum))
        return F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, False, momentum, norm.eps)


def _with_batch(
    x: Tensor,
    norm: nn.BatchNorm2d | nn.BatchNorm1d,
    weight: Tensor,
    bias: Tensor,
    scale_momentum: tuple[Tensor | None, float],
) -> Tensor:
    """BatchNorm by the batch's statistics, x in units of `scale` per channel; the running ones stay in real numbers.

    PyTorch keeps the running tensors that it was given for the backward pass. With shared BatchNorm the next width
    moves them before that, so each width works on a copy.
    """
    scale, momentum = scale_momentum
    assert norm.running_mean is not None and norm.running_var is not None
    if scale is None:
        scale = torch.ones_like(norm.running_mean)
    mean, variance = norm.running_mean / scale, norm.running_var / scale.square()
    y = F.batch_norm(x, mean, variance, weight, bias, True, momentum, norm.eps)
    with torch.no_grad():
        norm.running_mean.copy_(mean * scale)
        norm.running_var.copy_(variance * scale.square())
    return y


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _synchronised(
    x: Tensor, norm: nn.BatchNorm2d | nn.BatchNorm1d, weight: Tensor, bias: Tensor, momentum: float
) -> Tensor:
    """BatchNorm over all processes, on any device: W processes see the statistics that one would see."""
    assert norm.running_mean is not None and norm.running_var is not None
    axes = [0, *range(2, x.dim())]
    shape = (1, -1) + (1,) * (x.dim() - 2)
    world = dist.get_world_size()
    count = x.numel() // x.shape[1] * world
    mean = _SumOverProcesses.apply(x.mean(axes)) / world
    variance = _SumOverProcesses.apply((x - mean.reshape(shape)).square().mean(axes)) / world
    with torch.no_grad():
        norm.running_mean.lerp_(mean.detach(), momentum)
        norm.running_var.lerp_(variance.detach() * (count / max(count - 1, 1)), momentum)
    scale = weight * torch.rsqrt(variance + norm.eps)
    return (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape)
