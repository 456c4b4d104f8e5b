"""The pool's cache: found again, gone on with, and refused when it was touched."""

import json
from pathlib import Path

import pytest
import torch

from edgeq.attacks.base import Ascent
from edgeq.attacks.eot import pixels
from edgeq.attacks.pool import ORIGIN, PARTIAL, PATCHES, PatchPool, PoolConfig, make_pool, open_pool
from edgeq.attacks.victim import surrogate
from edgeq.errors import InputError
from edgeq.files import load_tensors, save_tensors
from edgeq.quant.network import MultiBitNet
from tests.attacks.conftest import random_images

IMAGES, LABELS = random_images(16), torch.arange(16) % 4
CONFIG = PoolConfig(sizes=(3, 4), targets=(0, 2), ascent=Ascent(3), batch_size=4, eot=pixels())


def _make(net: MultiBitNet, folder: Path, config: PoolConfig = CONFIG, **more) -> PatchPool:
    return make_pool(surrogate(net, 32), IMAGES, LABELS, folder=folder, config=config, **more)


def _place(folder: Path) -> Path:
    (place,) = folder.iterdir()
    return place


def test_a_pool_is_made_once_and_found_again(net: MultiBitNet, tmp_path: Path) -> None:
    calls: list[int] = []
    first = _make(net, tmp_path, progress=lambda done, total, loss: calls.append(done))
    second = _make(net, tmp_path, progress=lambda done, total, loss: calls.append(done))
    assert calls == [1, 2, 3, 4]
    assert sorted(first.patches) == [3, 4] and first.eot == second.eot == CONFIG.eot
    for size in (3, 4):
        assert first.patches[size].shape == (2, 3, size, size)
        assert torch.equal(first.patches[size], second.patches[size])
        assert sorted(first.targets[size].tolist()) == [0, 2]
    assert sorted(p.name for p in _place(tmp_path).iterdir()) == [ORIGIN, PATCHES]


def test_other_choices_or_images_make_another_pool(net: MultiBitNet, tmp_path: Path) -> None:
    _make(net, tmp_path)
    _make(net, tmp_path, PoolConfig(sizes=(3,), targets=(0,), ascent=Ascent(1)))
    make_pool(surrogate(net, 4), IMAGES, LABELS, folder=tmp_path, config=CONFIG)
    make_pool(surrogate(net, 32), IMAGES.flip(0), LABELS, folder=tmp_path, config=CONFIG)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_killed_run_goes_on_to_the_same_pool(net: MultiBitNet, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, _total: int, _loss: float) -> None:
        if done == 2:
            raise Killed

    whole = _make(net, tmp_path / "whole")
    with pytest.raises(Killed):
        _make(net, tmp_path / "cut", progress=kill)
    assert len(load_tensors(_place(tmp_path / "cut") / PARTIAL)) == 2
    calls: list[int] = []
    resumed = _make(net, tmp_path / "cut", progress=lambda done, total, loss: calls.append(done))
    assert calls == [3, 4]
    assert all(torch.equal(whole.patches[s], resumed.patches[s]) for s in (3, 4))


def test_a_touched_pool_is_refused(net: MultiBitNet, tmp_path: Path) -> None:
    _make(net, tmp_path)
    place = _place(tmp_path)
    good = (place / PATCHES).read_bytes()
    tensors = load_tensors(place / PATCHES)
    save_tensors(place / PATCHES, {name: t.flip(0) for name, t in tensors.items()})
    with pytest.raises(InputError, match="it was changed"):
        _make(net, tmp_path)
    (place / PATCHES).unlink()
    with pytest.raises(InputError, match="readable file"):
        open_pool(place)
    (place / PATCHES).write_bytes(good)
    open_pool(place)
    origin = json.loads((place / ORIGIN).read_text())
    for change in ({"bits": [4]}, {"format": 99}, {"config": {}}, {"config": {**origin["config"], "sizes": [3, 5]}}):
        (place / ORIGIN).write_text(json.dumps({**origin, **change}))
        with pytest.raises(InputError, match="expected"):
            open_pool(place)


def test_images_get_patches_towards_other_classes_than_their_own(net: MultiBitNet, tmp_path: Path) -> None:
    pool = PatchPool(
        {2: torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 2, 2)}, {2: torch.tensor([0, 1])}, pixels()
    )
    images, labels = torch.full((40, 3, 8, 8), 128, dtype=torch.uint8), torch.arange(40) % 2
    seen = pool.on(images, labels, gen=torch.Generator().manual_seed(0))
    assert bool((seen[labels == 0].amax((1, 2, 3)) == 255).all()) and bool((seen[labels == 0] >= 128).all())
    assert bool((seen[labels == 1].amin((1, 2, 3)) == 0).all()) and bool((seen[labels == 1] <= 128).all())
    assert torch.equal(seen, pool.on(images, labels, gen=torch.Generator().manual_seed(0)))


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one size"):
        PoolConfig(sizes=())
