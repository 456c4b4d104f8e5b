"""The recipe of patches: pool, online, mixed; warm-up; what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeq.defenses import Patches, RandomWidth
from edgeq.defenses.patches import FOLDER, Patcher
from edgeq.errors import InputError

from .conftest import batch, setting, tiny

POOL = Patches(sizes=(3,), pool_steps=2, pool_images=12)
KEY = (0, 1, 2, 0)


def test_no_patches_during_the_warm_up() -> None:
    assert Patches(warmup=0.2).begin(10) == 2
    assert Patches(warmup=0.7).begin(10) == 7
    assert Patches(warmup=0.0).begin(10) == 1  # the pool needs a network
    assert Patches(warmup=0.0, source="run").begin(10) == 0
    assert Patches(warmup=0.0, online=1.0).begin(10) == 0
    with pytest.raises(InputError, match="at least 2 epochs"):
        Patches().check_epochs(1)
    patcher = Patcher(tiny(), Patches(online=1.0, sizes=(3,), warmup=0.5))
    patcher.prepare(setting(Path(), epoch=0, epochs=4))
    assert len(patcher.on(*batch(), (32, 8), KEY)) == 0


def test_a_pool_is_made_once_and_found_again_when_the_network_has_moved(tmp_path: Path) -> None:
    net = tiny()
    first = Patcher(net, POOL)
    first.prepare(setting(tmp_path))
    expected = first.on(*batch(), net.bits, KEY)
    with torch.no_grad():
        net.units["a"].weight.add_(0.1)  # type: ignore[union-attr, operator]
    again = Patcher(net, POOL)
    again.prepare(setting(tmp_path, epoch=2))
    assert torch.equal(again.on(*batch(), net.bits, KEY), expected)
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_mixed_patches_are_first_those_of_the_step_and_then_the_pools(tmp_path: Path) -> None:
    net = tiny()
    mixed = Patcher(net, replace(POOL, online=0.5, rho=1.0))
    mixed.prepare(setting(tmp_path))
    images, labels = batch()
    found = mixed.on(images, labels, net.bits, KEY)
    assert len(found) == 8 and ((found != images).flatten(1).sum(1) <= 3 * 9 * 4).all()
    pixels = (found != images).any(1).flatten(1).sum(1)
    assert (pixels[:4] <= 9).all()  # per-image patches are pasted pixel for pixel, the pool's are scaled and turned


def test_another_runs_pool_must_be_of_the_same_kind_of_data(made_run: Path, tmp_path: Path) -> None:
    from edgeq.runs import RunInfo, load_run

    info, _ = load_run(made_run)
    net = tiny()
    patcher = Patcher(net, replace(POOL, source=str(made_run)))
    patcher.check(info)
    other = RunInfo(info.model, info.data, info.quant, ("a", "b"), info.image_shape, {})
    with pytest.raises(InputError, match="2 classes"):
        patcher.check(other)
    with pytest.raises(InputError, match="nowhere"):
        Patcher(net, replace(POOL, source="nowhere")).check(info)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rho": 0.0},
        {"rho": 1.5},
        {"online": -0.1},
        {"warmup": 1.0},
        {"lambda_adv": -1.0},
        {"sizes": ()},
        {"sizes": (0,)},
        {"online_steps": 0},
        {"online_scouts": -1},
        {"pool_steps": 0},
    ],
)
def test_choices_are_checked(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        Patches(**wrong)


def test_a_patch_larger_than_the_images_is_refused() -> None:
    with pytest.raises(InputError, match="up to the images' 12 pixels, got 13"):
        Patcher(tiny(), Patches(sizes=(6, 13)))


def test_a_random_width_answers_each_image_at_one_of_the_widths() -> None:
    net = tiny()
    images, _ = batch(60)
    victim = RandomWidth(net, (8, 2), seed=3)
    answers = victim(images)
    each = victim.expected(images)
    matches = (each == answers).all(-1)
    assert matches.any(0).all()
    assert 15 < int(matches[0].sum()) < 45
    assert not torch.equal(victim(images), answers)
    assert torch.equal(RandomWidth(net, (8, 2), seed=3)(images), answers)
    with pytest.raises(InputError, match="widths"):
        RandomWidth(net, (5,))
