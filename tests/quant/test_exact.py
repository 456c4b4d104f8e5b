"""Integer convolutions in floating point: exact, also where float32 alone is not."""

import pytest
import torch
import torch.nn.functional as F

from edgeq.quant.exact import _unfolded_conv, exact_conv2d, exact_linear


def _codes(*shape: int, lo: int, hi: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(lo, hi + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("channels", [3, 64, 512])
def test_convolution_equals_the_64_bit_one(channels: int) -> None:
    x, w = _codes(2, channels, 6, 6, lo=0, hi=127), _codes(8, channels, 3, 3, lo=100, hi=127, seed=1)
    got = exact_conv2d(x, w, reach=127, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    want = F.conv2d(x.double(), w.double(), padding=1)
    torch.testing.assert_close(got.double(), want, atol=0, rtol=0)


def test_float32_alone_would_be_wrong_here() -> None:
    x, w = _codes(2, 512, 6, 6, lo=100, hi=127), _codes(8, 512, 3, 3, lo=101, hi=127, seed=1)
    assert not torch.equal(F.conv2d(x, w, padding=1).double(), F.conv2d(x.double(), w.double(), padding=1))


def test_linear_equals_the_64_bit_one() -> None:
    x, w = _codes(4, 5000, lo=0, hi=127), _codes(3, 5000, lo=-127, hi=127, seed=1)
    torch.testing.assert_close(exact_linear(x, w, reach=127).double(), x.double() @ w.double().T, atol=0, rtol=0)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_form_for_cuda_is_the_same_convolution(groups: int) -> None:
    x, w = _codes(2, 8, 9, 7, lo=-128, hi=127), _codes(16, 8 // groups, 3, 3, lo=-7, hi=7, seed=1)
    got = _unfolded_conv(x, w, (2, 1), (1, 0), (1, 2), groups)
    want = F.conv2d(x, w, None, (2, 1), (1, 0), (1, 2), groups)
    torch.testing.assert_close(got, want, atol=0, rtol=0)
