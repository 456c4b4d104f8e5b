import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.attacks.patch import Placement, allowed, cut, draw_places, like, mask, paste, to_bytes
from edgeq.errors import InputError
from tests.attacks.conftest import SIDE, random_images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@given(size=st.integers(1, SIDE), seed=st.integers(0, 1000))
def test_pasting_writes_the_patch_and_leaves_every_other_bit(dtype: torch.dtype, size: int, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    images = random_images(4, seed=seed).to(dtype)
    patch = random_images(4, seed=seed + 1).to(dtype)[:, :, :size, :size]
    places = draw_places(allowed((SIDE, SIDE), size, "anywhere"), 4, gen)
    pasted = paste(images, patch, places)
    hidden = mask(places, size, (SIDE, SIDE)).expand_as(images)
    assert torch.equal(pasted[~hidden], images[~hidden])
    assert torch.equal(cut(pasted, places, size), patch)
    assert int(hidden[:, 0].sum()) == 4 * size * size


def test_a_single_patch_serves_all_images() -> None:
    images = random_images(3)
    patch = random_images(1, seed=5)[:, :, :2, :2]
    places = Placement(torch.tensor([0, 4, 10]), torch.tensor([10, 0, 3]))
    assert torch.equal(paste(images, patch, places), paste(images, patch.repeat(3, 1, 1, 1), places))


def test_regions_allow_what_their_names_say() -> None:
    border = allowed((6, 5), 2, "border")
    assert border.shape == (5, 4)
    assert int((~border).sum()) == 3 * 2
    assert not border[1:-1, 1:-1].any()
    clear = allowed((32, 32), 8, "off-centre")
    assert not clear[11 - 7 : 21, 11 - 7 : 21].any()  # the middle 10 x 10 box is rows and columns 11 to 20
    assert clear[3].all() and clear[21].all() and clear[:, 3].all() and clear[:, 21].all()
    assert allowed((6, 5), 2, (4, 3)).nonzero().tolist() == [[4, 3]]


@pytest.mark.parametrize(("size", "region"), [(13, "anywhere"), (0, "anywhere"), (6, (7, 0)), (10, "off-centre")])
def test_a_patch_that_has_no_place_is_refused(size: int, region) -> None:
    with pytest.raises(InputError, match="expected a"):
        allowed((SIDE, SIDE), size, region)


def test_drawn_places_cover_the_region() -> None:
    places = allowed((6, 6), 3, "border")
    drawn = draw_places(places, 500, torch.Generator().manual_seed(0))
    seen = torch.zeros_like(places)
    seen[drawn.top, drawn.left] = True
    assert torch.equal(seen, places)


def test_patches_are_sent_as_bytes() -> None:
    patch = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sent = to_bytes(patch)
    assert torch.equal((sent * 255).round() / 255, sent)
    (grad,) = torch.autograd.grad(sent.sum(), (patch,))
    torch.testing.assert_close(grad, torch.ones_like(patch))  # 255 / 255 in float32
    assert torch.equal(like(random_images(1), sent.detach()).float() / 255, sent)
