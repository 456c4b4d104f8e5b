"""A small residual network whose float answers are the labels, so that it is right about every image."""

import pytest
import torch
from torch import Tensor, nn

from edgeq.calib import calibrate
from edgeq.data import Split
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (x + self.right(self.left(x).relu())).relu()
        return self.last(self.pool(x).flatten(1))


def build(bits: tuple[int, ...] = (32, 8, 5)) -> tuple[MultiBitNet, Split]:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    net = multibit(Residual().eval(), bits=bits, image_shape=(3, 8, 8))
    calibrate(net, images, bn=False)  # or the widths would have BatchNorm of their own: another network, not noise
    with torch.no_grad():
        net.width.bits = bits[0]
        labels = net(images).argmax(1)
    return net, Split(images, labels)


@pytest.fixture(scope="session")
def _made() -> tuple[MultiBitNet, Split]:
    return build()


@pytest.fixture
def made(_made: tuple[MultiBitNet, Split]) -> tuple[MultiBitNet, Split]:
    """A copy that the test may change."""
    import copy

    return copy.deepcopy(_made[0]), _made[1]
