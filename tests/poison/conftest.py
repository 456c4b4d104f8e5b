"""Feature maps and classifiers whose best poisons can be written down, and a tiny scene with a real network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeq.data import Split, load
from edgeq.poison import Scene
from edgeq.runs import load_run

SIDE = 8
DATA = "signs:train=200,test=100"  # of made_run


def noise(count: int, *, seed: int = 0, low: int = 40, high: int = 216) -> Tensor:
    """Byte images whose pixels keep a distance from black and white."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, SIDE, SIDE), generator=gen).to(torch.uint8)


class Mean:
    """The mean of each channel: linear, and in reach."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Planes:
    """Logits +-w . (x - 1/2): class 1 grows with every pixel along the sign of w."""

    def __init__(self) -> None:
        self.weight = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))

    def __call__(self, images: Tensor) -> Tensor:
        along = ((images - 0.5) * self.weight).sum((1, 2, 3))
        return torch.stack([-along, along], 1)


@pytest.fixture(scope="session")
def scene(made_run: Path) -> Scene:
    _, net = load_run(made_run)
    dataset = load(DATA)
    assert isinstance(dataset.train, Split)
    assert isinstance(dataset.test, Split)
    return Scene((net,), dataset.train, dataset.test, len(dataset.classes))
