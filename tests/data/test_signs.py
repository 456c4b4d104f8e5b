import pytest
import torch

from edgeq.data import Split, load
from edgeq.data.seeds import generator
from edgeq.data.sign_shapes import BLANKS, SIGNS, VARIANTS, templates
from edgeq.data.signs import BLOCK, CLASSES, draw_block


def images_of(split: object) -> torch.Tensor:
    assert isinstance(split, Split)
    return split.images


def test_signs_are_ten_classes_of_32_pixels() -> None:
    data = load("signs:train=200,test=100")
    assert data.classes == CLASSES and len(set(CLASSES)) == 10
    assert images_of(data.train).shape == (200, 3, 32, 32) and len(data.test) == 100
    assert not data.flip  # an arrow to the left is not one to the right


def test_the_same_seed_draws_the_same_images() -> None:
    a, b = (load("signs:train=200,test=100", seed=3) for _ in range(2))
    assert torch.equal(images_of(a.train), images_of(b.train))
    assert torch.equal(a.train.labels, b.train.labels)
    assert torch.equal(images_of(a.test), images_of(b.test))


def test_seeds_and_splits_draw_different_images() -> None:
    a, b = load("signs:train=100,test=100", seed=0), load("signs:train=100,test=100", seed=1)
    flat = torch.cat([images_of(part) for part in (a.train, a.test, b.train, b.test)]).flatten(1)
    assert len(torch.unique(flat, dim=0)) == 400


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    small, large = load("signs:train=130,test=1"), load("signs:train=300,test=1")
    assert torch.equal(images_of(small.train), images_of(large.train)[:130])
    assert torch.equal(small.train.labels, large.train.labels[:130])


def test_classes_are_equally_often_in_every_block() -> None:
    labels = load("signs:train=300,test=100").train.labels
    for block in labels.split(BLOCK):
        assert block.bincount(minlength=10).tolist() == [BLOCK // 10] * 10


def test_the_global_generator_is_neither_used_nor_changed() -> None:
    before = torch.get_rng_state()
    load("signs:train=100,test=100")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [16, 48])
def test_signs_are_drawn_at_other_sizes(size: int) -> None:
    assert images_of(load("signs:train=100,test=1", image_size=size).train).shape[2:] == (size, size)


def test_images_use_the_range_of_bytes_and_do_not_drown() -> None:
    images = images_of(load("signs:train=500,test=1").train).float()
    assert 70 < images.mean() < 140
    assert (images.flatten(1).std(1) > 8).float().mean() > 0.95  # something can be seen in almost all of them


def test_layers_of_a_template_are_disjoint() -> None:
    shapes = templates(SIGNS + BLANKS)
    assert len(shapes) == (len(SIGNS) + len(BLANKS)) * VARIANTS
    assert shapes.min() >= 0 and shapes.sum(1).max() <= 1 + 1e-6  # sums of sixteenths in float32
    assert (shapes[:, :, 0].sum() + shapes[:, :, :, 0].sum()) == 0  # no plate is cut off by its map


def test_no_two_signs_are_drawn_alike() -> None:
    first = templates(SIGNS)[::VARIANTS]
    colours = [sign.colours for sign in SIGNS]
    for i in range(len(SIGNS)):
        for j in range(i):
            assert colours[i] != colours[j] or (first[i] - first[j]).abs().sum() > 20


def test_the_arrows_mirror_each_other() -> None:
    left, right = (templates(SIGNS)[CLASSES.index(name) * VARIANTS] for name in ("turn-left", "turn-right"))
    torch.testing.assert_close(left.flip(2), right, atol=0.26, rtol=0)  # points on an edge may fall on either side


def test_the_label_names_the_sign_that_is_drawn() -> None:
    """With the noise averaged out, images of a class are red, blue or yellow in the middle as their sign is."""
    plates, decoys = templates(SIGNS), templates(BLANKS)
    blocks = [draw_block(generator("test", i), plates, decoys, size=32) for i in range(5)]
    images, labels = torch.cat([b[0] for b in blocks]).float(), torch.cat([b[1] for b in blocks])
    middle = images[:, :, 12:20, 12:20].mean((2, 3))
    for name, high, low in (("no-entry", 0, 2), ("parking", 2, 0), ("turn-left", 2, 0), ("priority", 0, 2)):
        mean = middle[labels == CLASSES.index(name)].mean(0)
        assert mean[high] > mean[low] + 10, name
