"""Small networks and images, one thread."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.data import Dataset, Split
from edgeq.defenses import Setting
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet, QuantConfig

SIDE = 12
CLASSES = 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Tiny(nn.Module):
    """Two stages, so that there is a tap before the last."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.bn_b = nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_a(self.a(x)))
        x = F.relu(self.bn_b(self.b(x)))
        return self.fc(self.flatten(self.pool(x)))


def tiny(bits: tuple[int, ...] = (32, 8, 2), batchnorm: str = "per-bit") -> MultiBitNet:
    """A network in training mode."""
    torch.manual_seed(1)
    config = QuantConfig(bits=bits, batchnorm=batchnorm)
    return multibit(Tiny(), image_shape=(3, SIDE, SIDE), config=config).train()


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    gen = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=gen), torch.arange(n) % CLASSES


def small_data(n: int = 48) -> Dataset:
    """A data set of noise."""
    split = Split(*batch(n))
    return Dataset("noise", ("a", "b", "c"), train=split, test=split.subset(torch.arange(12)), flip=False)


def setting(folder, epoch: int = 1, epochs: int = 3) -> Setting:
    """The second of three epochs."""
    return Setting(epoch, epochs, folder, lambda count: Split(*batch(count)), (32, 8, 2))
