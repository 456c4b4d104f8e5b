"""Convolutions and products of integer-valued tensors that are exact, whatever the device.

float32 holds every integer up to 2^24. If sum|w| * max|x| stays below, every partial sum is exact in any order, so the
plain float32 convolution *is* the integer one. Otherwise the input channels are cut into chunks that satisfy the bound
and summed in float64. On CUDA the vendor's algorithms (Winograd, FFT, TF32) break the argument, so there the
convolution is an unfold and a float32 product with TF32 switched off.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edgeq.export.multiplier import FLOAT32_EXACT


def exact_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o i kh kw"],
    *,
    reach: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Float[Tensor, "n o oh ow"]:
    """Return the convolution of integer codes, exactly; float64 where float32 cannot hold the sums.

    Args:
        x: Input codes.
        weight: Weight codes.
        reach: Largest |code| of x.
        stride: Vertical and horizontal stride.
        padding: Vertical and horizontal zeros on both sides.
        dilation: Vertical and horizontal dilation.
        groups: Channel groups.
    """

    def conv(part: Tensor, kernel: Tensor) -> Tensor:
        if part.is_cuda:
            return _unfolded_conv(part, kernel, stride, padding, dilation, groups)
        return F.conv2d(part, kernel, None, stride, padding, dilation, groups)

    if groups > 1 and weight.shape[1] * weight[0, 0].numel() * 128 * reach > FLOAT32_EXACT:
        return conv(x.double(), weight.double())  # grouped and huge: rare, and not worth cutting
    return _chunked(x, weight, reach, conv) if groups == 1 else conv(x, weight)


def exact_linear(x: Float[Tensor, "n i"], weight: Float[Tensor, "o i"], *, reach: int) -> Float[Tensor, "n o"]:
    """Return x W^T of integer codes, exactly; float64 where float32 cannot hold the sums."""

    def product(part: Tensor, kernel: Tensor) -> Tensor:
        if part.is_cuda:
            with full_float32(part.device):
                return F.linear(part, kernel)
        return F.linear(part, kernel)

    return _chunked(x, weight, reach, product)


def _chunked(x: Tensor, weight: Tensor, reach: int, op: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    magnitude = float(weight.detach().abs().flatten(1).sum(1).max()) * reach
    if magnitude <= FLOAT32_EXACT:
        return op(x, weight)
    # Channel chunks bounded by their own worst row: even cuts, refined until each fits.
    pieces = math.ceil(magnitude / FLOAT32_EXACT)
    while True:
        if pieces > weight.shape[1]:
            return op(x.double(), weight.double())  # one channel alone is too much: a kernel of over 1,000 taps
        parts = weight.chunk(pieces, 1)
        if all(float(p.detach().abs().flatten(1).sum(1).max()) * reach <= FLOAT32_EXACT for p in parts):
            break
        pieces += 1
    inputs = x.split([p.shape[1] for p in parts], 1)
    total = op(inputs[0], parts[0]).double()
    for part, kernel in zip(inputs[1:], parts[1:], strict=True):
        total = total + op(part, kernel)
    return total


def _unfolded_conv(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Tensor:
    out, per_group, kh, kw = weight.shape
    n = x.shape[0]
    oh = (x.shape[2] + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (x.shape[3] + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    columns = F.unfold(x, (kh, kw), dilation, padding, stride).reshape(n, groups, per_group * kh * kw, oh * ow)
    kernels = weight.reshape(groups, out // groups, per_group * kh * kw)
    with full_float32(x.device):
        return (kernels @ columns).reshape(n, out, oh, ow)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices without TF32 inside the block; the caller's setting comes back afterwards."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    setting, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, setting)
    setattr(matmul, setting, exact)
    try:
        yield
    finally:
        setattr(matmul, setting, before)
