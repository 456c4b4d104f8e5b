import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.data import Augment
from edgeq.data.augment import FILL, augment_batch, draw
from edgeq.errors import InputError


def batch(count: int = 40, size: int = 8) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), generator=gen, dtype=torch.uint8)


def draws(count: int = 40, seed: int = 0) -> torch.Tensor:
    return draw(count, torch.Generator().manual_seed(seed))


def test_nothing_switched_on_changes_nothing() -> None:
    assert torch.equal(augment_batch(batch(), draws(), Augment(crop=0)), batch())


def test_every_crop_is_a_shifted_copy_on_mid_grey_and_all_shifts_occur() -> None:
    images, pad = batch(count=400), 1
    out = augment_batch(images, draws(400), Augment(crop=pad))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=FILL)
    seen = set()
    for before, after in zip(padded, out, strict=True):
        places = [(y, x) for y in range(3) for x in range(3) if torch.equal(before[:, y : y + 8, x : x + 8], after)]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_flip_exchanges_left_and_right_in_about_half() -> None:
    images = batch(count=400)
    out = augment_batch(images, draws(400), Augment(crop=0, flip=True))
    flipped = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) ^ flipped).all()
    assert 150 < flipped.sum() < 250


def test_cutout_hides_one_square_at_most() -> None:
    images = batch().clamp(max=100)
    out = augment_batch(images, draws(), Augment(crop=0, cutout=3))
    hidden = (out == FILL).all(1)
    assert torch.equal(out[~hidden[:, None].expand_as(out)], images[~hidden[:, None].expand_as(out)])
    areas = hidden.flatten(1).sum(1)
    assert areas.max() == 9 and areas.min() >= 4  # a corner keeps a part of the square


@given(start=st.integers(0, 39), stop=st.integers(1, 40), crop=st.integers(0, 4), cutout=st.integers(0, 9))
def test_an_image_is_augmented_alike_in_any_slice(start: int, stop: int, crop: int, cutout: int) -> None:
    augment = Augment(crop=crop, flip=True, cutout=cutout)
    whole = augment_batch(batch(), draws(), augment)
    cut = augment_batch(batch()[start:stop], draws()[start:stop], augment)
    assert torch.equal(cut, whole[start:stop])


def test_the_input_is_not_written_to() -> None:
    images = batch()
    augment_batch(images, draws(), Augment(flip=True, cutout=4))
    assert torch.equal(images, batch())


@pytest.mark.parametrize(("crop", "cutout"), [(-1, 0), (0, -2)])
def test_negative_sizes_are_refused(crop: int, cutout: int) -> None:
    with pytest.raises(InputError, match="0 is off"):
        Augment(crop=crop, cutout=cutout)
