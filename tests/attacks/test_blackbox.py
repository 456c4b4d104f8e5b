"""PatchAttack: answers alone, colours and textures."""

import pytest
import torch
from torch import Tensor

from edgeq.attacks.goal import Goal
from edgeq.attacks.patch import mask
from edgeq.attacks.patchattack import PatchAttack
from edgeq.attacks.textures import build_textures, cluster, gram
from edgeq.attacks.victim import surrogate
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from tests.attacks.conftest import SIDE, Region, random_images

BLACK = torch.zeros(3, 3, SIDE, SIDE, dtype=torch.uint8)
ZEROS = torch.zeros(3, dtype=torch.int64)


def test_one_colour_over_the_region_flips_it_and_elsewhere_nothing_does() -> None:
    goal = Goal(ZEROS)
    over = PatchAttack(size=5, queries=400).run(Region(), BLACK, goal)
    assert bool((over.score >= 1).all())
    assert bool((over.patch.amax((2, 3)) == over.patch.amin((2, 3))).all())
    assert over.places is not None
    assert bool(mask(over.places, 5, (SIDE, SIDE))[:, 0, 3:5, 7:9].all())
    away = PatchAttack(size=4, queries=100, region=(8, 0)).run(Region(), BLACK, goal)
    assert not bool((away.score >= 1).any())
    assert away.queries.tolist() == [100, 100, 100]


def test_questions_are_counted_up_to_the_first_success() -> None:
    asked = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal asked
        asked += len(images)
        return Region()(images)

    result = PatchAttack(size=5, queries=400, proposals=1).run(counting, BLACK, Goal(ZEROS))
    assert int(result.queries.sum()) == asked  # one proposal a round: nothing is asked after the success
    assert int(result.queries.max()) < 400


@pytest.mark.parametrize("textured", [False, True])
def test_the_same_seed_gives_the_same_patches_whatever_the_batch(net: MultiBitNet, textured: bool) -> None:
    images, goal = random_images(5), Goal.towards(torch.tensor([0, 1, 2, 3, 0]), 1)
    book = build_textures(random_images(40, seed=9), torch.arange(40) % 4, side=6, per_class=3, crops=20)
    runs = [
        PatchAttack(size=4, queries=60, batch_size=b, textures=book if textured else None).run(
            surrogate(net, 2), images, goal
        )
        for b in (10, 500)
    ]
    assert torch.equal(runs[0].patch, runs[1].patch)
    assert torch.equal(runs[0].queries, runs[1].queries)
    assert torch.equal((runs[0].patch * 255).round() / 255, runs[0].patch)


def test_a_targeted_attack_cuts_patches_out_of_textures_of_the_target() -> None:
    images = torch.zeros(8, 3, SIDE, SIDE, dtype=torch.uint8)
    images[4:, 0] = 255  # class 1 is red
    book = build_textures(images, torch.arange(8) // 4, side=6, per_class=2, crops=10)
    result = PatchAttack(size=5, queries=300, textures=book).run(Region(), BLACK, Goal.towards(ZEROS, 1))
    assert bool((result.score >= 1).all())
    assert bool((result.patch[:, 0] == 1).all()) and bool((result.patch[:, 1:] == 0).all())


def test_textures_that_differ_fall_into_clusters_of_their_own() -> None:
    gen = torch.Generator().manual_seed(0)
    flat = torch.rand(20, 3, 1, 1, generator=gen) * 0.05 + torch.zeros(20, 3, 8, 8)
    bright = flat + 0.9
    noisy = torch.rand(20, 3, 8, 8, generator=gen)
    features = gram(torch.cat([flat, bright, noisy]))
    medoids = cluster(features, 3, gen)
    assert sorted((medoids // 20).tolist()) == [0, 1, 2]


def test_equal_crops_make_one_cluster() -> None:
    assert cluster(torch.ones(10, 4), 3, torch.Generator().manual_seed(0)).tolist() == [0]


def test_a_dictionary_without_the_target_or_too_small_is_refused() -> None:
    book = build_textures(random_images(4), torch.zeros(4).long(), side=6, per_class=2, crops=5)
    with pytest.raises(InputError, match="textures of class 1"):
        PatchAttack(size=4, queries=20, textures=book).run(Region(), BLACK, Goal.towards(ZEROS, 1))
    with pytest.raises(InputError, match="at least 8 pixels"):
        PatchAttack(size=8, textures=book)
    with pytest.raises(InputError, match="queries >= proposals"):
        PatchAttack(queries=5, proposals=10)
