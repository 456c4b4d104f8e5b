"""Soft edges: the masks, their degenerate cases and their derivatives."""

import numpy as np
import pytest
import torch
from skimage.filters import sobel_h, sobel_v
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from edgeq.perceptual import edges, gradients
from edgeq.perceptual.edges import TAU_FLOOR, edge_magnitude, edge_threshold, hard_edges, soft_edges
from edgeq.perceptual.gradients import normalise, sobel


def test_sobel_is_scikit_images() -> None:
    image = torch.randn(12, 9, dtype=torch.float64)
    dx, dy = sobel(image)
    np.testing.assert_allclose(dx.numpy() / 4, sobel_v(image.numpy())[1:-1, 1:-1], atol=1e-12)
    np.testing.assert_allclose(dy.numpy() / 4, sobel_h(image.numpy())[1:-1, 1:-1], atol=1e-12)


def test_a_share_of_15_percent_of_the_pixels_is_edges() -> None:
    maps = normalise(torch.randn(20, 32, 32))
    assert hard_edges(maps).mean().item() == pytest.approx(0.15, abs=0.002)
    assert soft_edges(maps).mean().item() == pytest.approx(0.15, abs=0.03)


def test_soft_mask_follows_the_hard_one_away_from_the_threshold() -> None:
    maps = normalise(torch.randn(20, 32, 32))
    magnitude = edge_magnitude(maps)
    clear = ((magnitude - edge_threshold(magnitude)).abs() > 0.05).flatten(-2)
    assert (soft_edges(maps) - hard_edges(maps))[clear].abs().max() < 0.01  # sigmoid(-100 * 0.05) = 0.0067


def test_a_pixel_in_ten_receives_a_gradient() -> None:
    magnitude = edge_magnitude(normalise(torch.randn(20, 32, 32)))
    active = ((magnitude - edge_threshold(magnitude)).abs() < 0.03).float().mean().item()
    assert 0.1 < active < 0.2


def test_a_sparse_map_marks_its_spots_only() -> None:
    maps = torch.zeros(1, 32, 32)
    maps[0, 10, 10] = maps[0, 20, 5] = 1.0
    maps = normalise(maps)
    assert edge_threshold(edge_magnitude(maps)).item() == pytest.approx(TAU_FLOOR)
    assert hard_edges(maps).sum() == 16  # the eight neighbours of each spot; Sobel is 0 in the middle
    assert soft_edges(maps).sum().item() == pytest.approx(16, abs=0.2)  # each a sigmoid(-k TAU_FLOOR) short of 1


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-12, 1e20])
def test_a_constant_map_has_no_edges_and_no_gradient(value: float) -> None:
    maps = torch.full((1, 8, 8), value, requires_grad=True)
    mask = soft_edges(normalise(maps))
    assert mask.abs().max() == 0
    assert hard_edges(normalise(maps)).sum() == 0
    (grad,) = torch.autograd.grad(mask.sum(), maps, create_graph=True)
    assert grad.abs().max() == 0
    (second,) = torch.autograd.grad(grad.sum(), maps)
    assert second.isfinite().all()


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_scale_does_not_matter(scale: float) -> None:
    maps = torch.randn(4, 16, 16)
    torch.testing.assert_close(soft_edges(normalise(maps * scale)), soft_edges(normalise(maps)), atol=1e-3, rtol=0)


def test_the_derivative_has_no_component_along_the_map() -> None:
    maps = torch.randn(4, 12, 12, dtype=torch.float64, requires_grad=True)
    mask = soft_edges(normalise(maps))
    (grad,) = torch.autograd.grad((mask * torch.randn_like(mask)).sum(), maps)
    along = (grad * maps).sum((-2, -1)) / (grad.norm(dim=(-2, -1)) * maps.norm(dim=(-2, -1)))
    assert along.abs().max() < 1e-8  # not 0: FLOOR


def test_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
    # tau and the largest magnitude are constants for autograd, so the numerical derivative must not move them either
    tau = edge_threshold(edge_magnitude(normalise(maps)))
    top = maps.detach().abs().amax((-2, -1), keepdim=True)
    monkeypatch.setattr(edges, "edge_threshold", lambda *_: tau)

    def mask(x: Tensor) -> Tensor:
        return soft_edges(gradients.normalise(x / top), sharpness=10.0)

    assert gradcheck(mask, (maps,))
    assert gradgradcheck(mask, (maps,))
