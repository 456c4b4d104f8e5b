"""Victims on which the right answer is known, and a tiny multi-bit network."""

import pytest
import torch
from torch import Tensor, nn

from edgeq.quant.convert import multibit
from edgeq.quant.grid import Grid
from edgeq.quant.network import MultiBitNet, QuantConfig

SIDE = 12


class Linear:
    """Logits 0 and w . x: the best patch is 1 where w > 0 and 0 where w < 0, at the window that gains most."""

    def __init__(self, seed: int = 0) -> None:
        self.weight = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))

    def __call__(self, images: Tensor) -> Tensor:
        second = (images * self.weight.to(images)).sum((1, 2, 3)) - 1000.0
        return torch.stack([torch.zeros_like(second), second], 1)


class Region:
    """Class 1 where the mean red of the 4 x 4 square at (2, 6) is above 0.5, class 0 elsewhere."""

    def __call__(self, images: Tensor) -> Tensor:
        red = images[:, 0, 2:6, 6:10].mean((1, 2))
        return torch.stack([0.5 - red, red - 0.5], 1)


def random_images(count: int = 6, *, seed: int = 0) -> Tensor:
    """Bytes of noise."""
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="session")
def net() -> MultiBitNet:
    """A tiny network at 32, 4 and 2 bits, untrained, with ranges that fit its values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * SIDE * SIDE, 4)
        )
        made = multibit(model, image_shape=(3, SIDE, SIDE), config=QuantConfig(bits=(32, 4, 2)))
    for grid in made.grids.values():
        assert isinstance(grid, Grid)
        for bits in (4, 2):
            grid.set_step(bits, 2.0 / grid.range(bits)[1])
    return made.eval()
