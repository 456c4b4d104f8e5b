import dataclasses
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from edgeq.attacks.eot import EOT, apply, draw_views, pixels
from edgeq.attacks.patch import paste
from edgeq.errors import InputError
from tests.attacks.conftest import SIDE, random_images


def _images(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return random_images(count).to(dtype) / 255


def _views(eot: EOT, count: int, seed: int = 0, size: int = 4):
    return draw_views(eot, count, size=size, image_size=(SIDE, SIDE), gen=torch.Generator().manual_seed(seed))


def test_without_rotation_and_scale_the_patch_is_pasted_pixel_for_pixel() -> None:
    images, patch = _images(5), torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    views = _views(pixels(), 5)
    assert views.places is not None
    assert torch.equal(apply(images, patch, views), paste(images, patch, views.places))


def test_resampling_agrees_with_pasting_where_nothing_is_turned_or_scaled() -> None:
    images, patch = _images(5, torch.float64), torch.rand(1, 3, 4, 4, dtype=torch.float64)
    views = _views(pixels(), 5)
    assert views.places is not None
    centre = torch.stack([views.places.top, views.places.left], 1) + 2.0
    resampled = apply(images, patch, dataclasses.replace(views, places=None, centre=centre))
    torch.testing.assert_close(resampled, paste(images, patch, views.places), atol=1e-12, rtol=0)  # float64 rounding


def test_a_quarter_turn_turns_the_patch() -> None:
    images, patch = _images(1, torch.float64) * 0, torch.rand(1, 3, 4, 4, dtype=torch.float64)
    views = _views(pixels(region=(3, 5)), 1)
    views = dataclasses.replace(
        views, places=None, centre=torch.tensor([[5.0, 7.0]]), angle=torch.tensor([math.pi / 2])
    )
    seen = apply(images, patch, views)[:, :, 3:7, 5:9]
    torch.testing.assert_close(seen, patch.rot90(-1, (2, 3)), atol=1e-6, rtol=0)  # the angle is float32 here


@given(seed=st.integers(0, 1000), rotation=st.floats(0.0, 180.0), low=st.floats(0.3, 1.0), high=st.floats(1.0, 4.0))
@example(seed=0, rotation=0.0, low=1.0, high=1.0)  # pasted pixel for pixel, at the centre that the view names
def test_values_stay_in_range_and_far_pixels_keep_their_bits(
    seed: int, rotation: float, low: float, high: float
) -> None:
    eot = EOT(rotation=rotation, scale=(low, high), brightness=0.3)
    images, patch = _images(4), torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    views = _views(eot, 4, seed)
    seen = apply(images, patch, views)
    assert bool(((seen >= 0) & (seen <= 1)).all())
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    for i in range(4):
        reach = float(views.scale[i]) * 4 * math.sqrt(0.5) * (1 + 1 / 4) + 1e-3  # half diagonal and one patch pixel
        far = (y - views.centre[i, 0]) ** 2 + (x - views.centre[i, 1]) ** 2 > reach**2
        assert torch.equal(seen[i][:, far], images[i][:, far])


def test_a_drawn_patch_lies_inside_the_image() -> None:
    eot = EOT(rotation=45.0, scale=(0.5, 1.5), brightness=0.0)
    views = draw_views(eot, 300, size=8, image_size=(40, 40), gen=torch.Generator().manual_seed(0))
    areas = apply(torch.zeros(300, 1, 40, 40), torch.ones(1, 1, 8, 8), views).sum((1, 2, 3))
    # sampling misjudges the area of a small patch by some per cent; a patch cut by the image's edge loses far more
    torch.testing.assert_close(areas.double(), (views.scale * 8).square(), rtol=0.1, atol=0)


def test_the_same_generator_state_gives_the_same_views() -> None:
    images, patch = _images(4), torch.rand(1, 3, 4, 4)
    assert torch.equal(apply(images, patch, _views(EOT(), 4)), apply(images, patch, _views(EOT(), 4)))
    assert not torch.equal(apply(images, patch, _views(EOT(), 4)), apply(images, patch, _views(EOT(), 4, 1)))


@pytest.mark.parametrize("eot", [EOT(brightness=0.0), EOT(brightness=0.2), pixels()])
@pytest.mark.parametrize("patches", [1, 2])
def test_gradients_reach_patch_and_image(eot: EOT, patches: int) -> None:
    images = _images(2, torch.float64).requires_grad_()
    # inside (0, 1) even when lit by 1.2, where clipping has no gradient by right
    patch = (0.1 + 0.6 * torch.rand(patches, 3, 3, 3, dtype=torch.float64)).requires_grad_()
    views = _views(eot, 2, size=3)
    assert torch.autograd.gradcheck(lambda x, p: apply(x, p, views), (images, patch), fast_mode=True)


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("eot", [EOT(), EOT(brightness=0.0)])
def test_black_and_white_pixels_keep_their_gradient(eot: EOT, level: float) -> None:
    patch = torch.full((1, 3, 8, 8), level, requires_grad=True)
    views = draw_views(eot, 40, size=8, image_size=(SIDE, SIDE), gen=torch.Generator().manual_seed(0))
    seen = apply(random_images(40).float() / 255.0, patch, views)
    assert float(seen.detach().min()) >= 0.0 and float(seen.detach().max()) <= 1.0
    (grad,) = torch.autograd.grad(seen.sum(), patch)
    assert bool((grad > 0).all())


def test_batched_equals_one_by_one() -> None:
    images, patch = _images(4), torch.rand(4, 3, 4, 4)
    views = _views(EOT(), 4)
    whole = apply(images, patch, views)
    for i in range(4):
        one = dataclasses.replace(
            views,
            centre=views.centre[i : i + 1],
            angle=views.angle[i : i + 1],
            scale=views.scale[i : i + 1],
            gain=views.gain[i : i + 1],
        )
        torch.testing.assert_close(apply(images[i : i + 1], patch[i : i + 1], one), whole[i : i + 1])


@pytest.mark.parametrize(
    "wrong", [{"rotation": -1.0}, {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"brightness": 1.0}]
)
def test_wrong_ranges_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        EOT(**wrong)
