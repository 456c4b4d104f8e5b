"""Two tiny multi-bit networks on which the right answer of every attack is known by construction.

Class 1 is named where the mean of the image is high, class 0 where it is low. `agreeing` does so at every width, so a
patch made on one width must work on the other as on its own. `disagreeing` looks at the left half at 32 bits and at the
right half at 8 (its BatchNorm, one per width, switches channels off), so a patch that lies in one half cannot matter to
the width that looks at the other.
"""

import pytest
import torch
from torch import nn

from edgeq.data import Dataset, Split
from edgeq.quant.convert import multibit
from edgeq.quant.grid import Grid
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.quant.weighted import ConvUnit, LinearUnit

SIDE = 12
THRESHOLD = 0.33  # of a pixel as the network sees it: between the dark images (0.18) and the bright ones (0.41)


def halves_network(*, disagreeing: bool, dead: bool = False) -> MultiBitNet:
    """Two channels, the mean colour of the left half and of the right half; each width listens to some of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * SIDE * SIDE, 2)
        )
        net = multibit(model, image_shape=(3, SIDE, SIDE), config=QuantConfig(bits=(32, 8)))
    conv, linear = _only(net, ConvUnit), _only(net, LinearUnit)
    weight = torch.zeros(2, 2, SIDE, SIDE)  # class, channel, row, column
    weight[1, 0, :, : SIDE // 2] = 1.0
    weight[1, 1, :, SIDE // 2 :] = 1.0
    weight[0] = -weight[1]
    with torch.no_grad():
        conv.weight.fill_(1.0 / 3.0)
        if conv.bias is not None:
            conv.bias.fill_(0.0)
        linear.weight.copy_(weight.flatten(1) * (0.0 if dead else 0.02))
        assert linear.bias is not None and conv.norm is not None
        for bits, alive in ((32, (1.0, 0.0 if disagreeing else 1.0)), (8, (0.0 if disagreeing else 1.0, 1.0))):
            norm = conv.norm.at(bits)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.weight.copy_(torch.tensor(alive))
            norm.bias.fill_(0.0)
            norm.running_mean.fill_(0.0)
            norm.running_var.fill_(1.0)
        pixels = SIDE * SIDE / (2 if disagreeing else 1)
        linear.bias.copy_(torch.tensor([1.0, -1.0]) * 0.02 * pixels * THRESHOLD)
    for unit in (conv, linear):
        unit.reset_weight_steps()
    for grid in net.grids.values():
        assert isinstance(grid, Grid)
        grid.set_step(8, 1.0 / grid.range(8)[1])
    return net.eval()


def _only(net: MultiBitNet, kind: type) -> ConvUnit | LinearUnit:
    (found,) = [unit for unit in net.units.values() if isinstance(unit, kind)]
    assert isinstance(found, ConvUnit | LinearUnit)
    return found


def bright_and_dark(count: int, *, seed: int) -> Split:
    """Images a little brighter (class 1) or darker (class 0) than the middle, all alike over the whole area."""
    gen = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    base = torch.where(labels == 1, 150.0, 135.0)[:, None, None, None]
    images = base + 10 * torch.rand(count, 3, SIDE, SIDE, generator=gen)
    return Split(images.to(torch.uint8), labels)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Dark and bright images."""
    return Dataset("halves", ("dark", "bright"), bright_and_dark(40, seed=1), bright_and_dark(24, seed=2), flip=False)


@pytest.fixture(scope="session")
def agreeing() -> MultiBitNet:
    """Both widths look at the whole image."""
    return halves_network(disagreeing=False)


@pytest.fixture(scope="session")
def disagreeing() -> MultiBitNet:
    """32 bits look at the left half, 8 bits at the right half."""
    return halves_network(disagreeing=True)
