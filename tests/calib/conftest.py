"""A small residual network with a tied branch, a wide edge, a dropout and a pooling, and images for it."""

import pytest
import torch
from torch import Tensor, nn

from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.right, self.right_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool, self.flat, self.drop = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first(x)).relu()
        y = self.left_norm(self.left(x)).relu()
        y = self.right_norm(self.right(y))
        x = (x + y).relu()
        return self.last(self.drop(self.flat(self.pool(x))))


def build(*, bits: tuple[int, ...] = (32, 8, 4, 2), **config) -> MultiBitNet:
    from edgeq.quant.network import QuantConfig

    torch.manual_seed(0)
    net = Residual()
    with torch.no_grad():
        for norm in (net.first_norm, net.left_norm, net.right_norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.1, 0.5)
    return multibit(net.eval(), image_shape=(3, 8, 8), config=QuantConfig(bits=bits, **config))


@pytest.fixture
def net() -> MultiBitNet:
    return build()


@pytest.fixture(scope="session")
def make():
    return build


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
