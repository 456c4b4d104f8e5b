"""Training learns, is a function of its seed, and refuses what it cannot do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeq import runs
from edgeq.curriculum import Curriculum
from edgeq.data import Dataset, Split, load
from edgeq.errors import InputError
from edgeq.files import load_tensors
from edgeq.quant.network import QuantConfig
from edgeq.training import Progress, TrainConfig, train


def _of(progress: Progress, name: str) -> list[float]:
    return [progress.losses[name]] if name in progress.losses and progress.batch else []


@pytest.mark.ci_slow
def test_it_learns(tmp_path: Path, tiny: TrainConfig) -> None:
    data = load("signs:train=256,test=64")
    losses: list[float] = []
    config = replace(tiny, epochs=4, deployed=0.0, quant=QuantConfig(bits=(8, 2)), curriculum=Curriculum(enabled=False))
    train(config, out=tmp_path / "run", dataset=data, progress=lambda p: losses.extend(_of(p, "ce_2")))
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]


def test_dropout_is_a_function_of_the_seed_and_leaves_the_callers_random_state(
    tmp_path: Path, data: Dataset, tiny: TrainConfig
) -> None:
    config = replace(tiny, epochs=1, deployed=0.0, quant=QuantConfig(bits=(32,)), batch_size=60)

    def dropping(_name: str, *, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 5, 4),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        )

    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build", dropping)
        for name, seed in (("a", 0), ("b", 0)):
            train(replace(config, seed=seed), out=tmp_path / name, dataset=data)
            assert torch.equal(torch.get_rng_state(), state)
            torch.rand(3)
            state = torch.get_rng_state()
    first, second = (load_tensors(tmp_path / name / runs.WEIGHTS) for name in ("a", "b"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("per_class", [1, 2])
def test_too_few_images_or_classes_are_refused_before_anything_is_written(
    tmp_path: Path, per_class: int, tiny: TrainConfig
) -> None:
    images, labels = torch.zeros(2 * per_class, 3, 16, 16, dtype=torch.uint8), torch.arange(2 * per_class) % 2
    split = Split(images, labels)
    small = Dataset("small", ("a", "b"), train=split, test=split, flip=False)
    if per_class == 1:
        with pytest.raises(InputError, match="4 training images, got 2 and 2"):
            train(tiny, out=tmp_path / "run", dataset=small)
        assert not (tmp_path / "run").exists()
    else:
        train(replace(tiny, epochs=1), out=tmp_path / "run", dataset=small)
    one = replace(small, classes=("a",), train=Split(images, labels * 0), test=Split(images, labels * 0))
    with pytest.raises(InputError, match="at least 2 classes"):
        train(tiny, out=tmp_path / "one", dataset=one)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 0}, "at least 1 epoch"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": float("inf")}, "lr > 0"),
        ({"save_every": float("nan")}, "save_every"),
        ({"defense": "magic"}, "defence out of"),
        ({"deployed": 1.0}, "deployed"),
    ],
)
def test_wrong_choices_are_refused(change: dict, says: str, tiny: TrainConfig) -> None:
    with pytest.raises(InputError, match=says):
        replace(tiny, **change)
