import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from edgeq.purifiers.metrics import PERFECT, Fidelity, perplexity, psnr, ssim


def _pairs(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 20, 17, generator=gen)
    return x, (x + noise * torch.randn(x.shape, generator=gen)).clamp(0, 1)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_psnr_and_ssim_are_those_of_scikit_image(noise: float) -> None:
    x, y = _pairs(noise)
    for i, (a, b) in enumerate(zip(x.double().numpy(), y.double().numpy(), strict=True)):
        assert psnr(x, y)[i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-4)
        wanted = structural_similarity(
            a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(x, y)[i] == pytest.approx(wanted, abs=1e-5)  # float32 against float64


def test_equal_images_are_perfect() -> None:
    x, _ = _pairs(0.0)
    torch.testing.assert_close(psnr(x, x), torch.full((3,), PERFECT))
    torch.testing.assert_close(ssim(x, x), torch.ones(3))


@given(st.integers(1, 50), st.integers(1, 1000))
def test_perplexity_of_equally_used_codes_is_their_number(codes: int, each: int) -> None:
    counts = torch.cat([torch.full((codes,), each), torch.zeros(7, dtype=torch.int64)])
    assert perplexity(counts) == pytest.approx(codes)


def test_running_means_are_those_of_the_whole() -> None:
    x, y = _pairs(0.1)
    whole, parts = Fidelity(), Fidelity(codes=4)
    whole.add(x, y)
    for i in range(3):
        parts.add(x[i : i + 1], y[i : i + 1])
        parts.count(torch.full((1, 2, 2), i))
    for name in ("psnr", "ssim"):
        np.testing.assert_allclose(parts.to_dict()[name], whole.to_dict()[name], rtol=1e-6)  # another order of sums
    assert parts.to_dict()["codes_used"] == 3
