"""Histograms of oriented gradients: against scikit-image, the smooth form against the hard one, derivatives."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.feature import hog as skimage_hog
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from edgeq.errors import InputError
from edgeq.perceptual.gradients import normalise
from edgeq.perceptual.hog import cell_size, centred, hard_hog, soft_hog
from edgeq.perceptual.orientation import (
    EPS,
    _parts,
    plain_histograms,
    soft_histograms,
    window_power,
)


def smooth_maps(n: int, h: int, w: int) -> Tensor:
    """Noise with the spectrum of a picture: coarse noise counts more than fine noise."""
    layers = [
        F.interpolate(torch.randn(n, 1, max(h // k, 1), max(w // k, 1)), (h, w), mode="bicubic") * k
        for k in (1, 2, 4, 8)
    ]
    return normalise(torch.stack(layers).sum(0)[:, 0].double())


def reference(maps: Tensor, cell: int, block: int) -> np.ndarray:
    rows = [
        skimage_hog(
            m.numpy(), orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(block, block), block_norm="L2"
        )
        for m in maps
    ]
    return np.stack(rows)


@pytest.mark.parametrize(("h", "w", "cell", "block"), [(32, 32, 8, 2), (16, 16, 4, 2), (19, 27, 4, 3), (12, 12, 6, 1)])
def test_hard_form_is_scikit_images(h: int, w: int, cell: int, block: int) -> None:
    maps = smooth_maps(8, h, w)
    ours = hard_hog(maps, cell=cell, block=block).numpy()
    # the only differences: 1e-4 against 1e-10 under the root of a block's norm, and the form of the angles
    np.testing.assert_allclose(ours, reference(maps, cell, block), atol=1e-3)


def test_smooth_form_stays_near_scikit_images() -> None:
    maps = torch.cat([smooth_maps(40, 32, 32), normalise(torch.randn(40, 32, 32).double())])
    soft, hard = soft_hog(maps), torch.from_numpy(reference(maps, 8, 2))
    assert F.cosine_similarity(soft, hard, dim=1).min() > 0.95
    # and so do the similarities of different maps, which is what is used
    pair = F.cosine_similarity(soft[:-1], soft[1:], dim=1) - F.cosine_similarity(hard[:-1], hard[1:], dim=1)
    assert pair.abs().max() < 0.12
    assert 0.0 < pair.mean() < 0.08  # wider windows make maps a little more alike


def test_the_bins_share_a_pixels_magnitude() -> None:
    angle = torch.linspace(0, 2 * torch.pi, 400, dtype=torch.float64)
    dx, dy = angle.cos()[None, :, None].expand(1, 400, 2), angle.sin()[None, :, None].expand(1, 400, 2)
    h = soft_histograms(dx.contiguous(), dy.contiguous(), bins=9, cell=2)
    np.testing.assert_allclose(h.sum(0).numpy(), (1 + EPS) ** 0.5 - EPS**0.5, rtol=0.012)
    assert (h[:, 0, 1:, 0].argmax(0) == ((angle[2::2] % torch.pi) * 9 / torch.pi).long()).float().mean() > 0.9


@pytest.mark.parametrize(("bins", "power"), [(9, 16), (6, 8), (4, 4), (12, 32)])
def test_window_is_as_wide_as_the_bins(bins: int, power: int) -> None:
    assert window_power(bins) == power


def test_blockwise_histograms_and_their_derivative_are_the_plain_ones() -> None:
    dx, dy = (torch.randn(40, 32, 24, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert len(_parts(dx)) > 1
    fast, plain = (f(dx, dy, bins=9, cell=8) for f in (soft_histograms, plain_histograms))
    torch.testing.assert_close(fast, plain)
    towards = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(h, (dx, dy), towards) for h in (fast, plain)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bins", [3, 9])
def test_derivatives_of_histograms(bins: int) -> None:
    dx, dy = (torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def run(x: Tensor, y: Tensor) -> Tensor:
        return soft_histograms(x, y, bins=bins, cell=2)

    assert gradcheck(run, (dx, dy))
    assert gradgradcheck(run, (dx, dy))


def test_derivatives_of_the_descriptor() -> None:
    maps = torch.randn(2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(soft_hog, (maps,), fast_mode=True)
    assert gradgradcheck(soft_hog, (maps,), fast_mode=True)


def test_a_constant_map_has_a_descriptor_of_zeros_and_no_gradient() -> None:
    maps = torch.full((1, 8, 8), 0.7, requires_grad=True)
    descriptor = soft_hog(normalise(maps))
    assert descriptor.abs().max() == 0
    (grad,) = torch.autograd.grad(descriptor.sum(), maps, create_graph=True)
    assert grad.abs().max() == 0
    (second,) = torch.autograd.grad(grad.sum(), maps)
    assert second.isfinite().all()


@pytest.mark.parametrize(("side", "cell"), [(32, 8), (16, 4), (8, 2), (4, 2), (33, 8)])
def test_cells_are_a_quarter_of_the_map(side: int, cell: int) -> None:
    assert cell_size(side, side) == cell


def test_a_cell_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="hold one cell of 8 x 8 pixels, got 4 x 4"):
        soft_hog(torch.zeros(1, 4, 4), cell=8)


def test_centring_needs_another_image() -> None:
    with pytest.raises(InputError, match="2 or more images"):
        centred(torch.ones(2, 1, 5))
