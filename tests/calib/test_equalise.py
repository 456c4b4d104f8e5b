import pytest
import torch
from torch import Tensor, nn

from edgeq.calib import calibrate, equalise
from edgeq.calib.equalise import channel_scales
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet


def chain(*, second: nn.Module, act: type[nn.Module] = nn.ReLU) -> MultiBitNet:
    """Two convolutions with channels of very different sizes between them, then a linear layer on flattened planes."""
    torch.manual_seed(0)
    first, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, 1.0, 5.0, 20.0]))
        norm.bias.copy_(norm.weight / 2)
    layers = (first, norm, act(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 3, 5))
    return multibit(nn.Sequential(*layers).eval(), image_shape=(3, 8, 8), bits=(32, 8, 4))


def float_logits(net: MultiBitNet, images: Tensor) -> Tensor:
    with at_bits(net, 32):
        return net.predict(images)


CHAINS = {
    "dense": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_the_float_function_stays_and_ranges_narrow(kind: str, images) -> None:
    net = chain(second=CHAINS[kind]())
    expected = float_logits(net, images)
    pairs = [pair for pair in equalise(net, images) if pair.second]
    assert len(pairs) == 2
    # the same products of floats, rounded in other places: some units in the last place of the largest logit
    torch.testing.assert_close(float_logits(net, images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert pairs[0].before > 50
    assert pairs[0].after < pairs[0].before / 5
    if kind == "depthwise":
        assert pairs[0].after == pytest.approx(1.0)


def test_sums_over_channels_balance_values_and_weights() -> None:
    net = chain(second=nn.Conv2d(4, 4, 3, padding=1))
    second = next(unit for unit in net.weighted().values() if unit.weight.shape[1:] == (4, 3, 3))
    with torch.no_grad():
        second.weight.fill_(1.0)
    scale = channel_scales(torch.tensor([1.0, 4.0, 16.0, 0.0]).double(), second)
    torch.testing.assert_close(scale, torch.tensor([0.5, 1.0, 2.0, 1.0]).double())  # square roots; a dead one stays


def test_relu6_and_additions_are_left_alone(net, images) -> None:
    six = equalise(chain(second=CHAINS["dense"](), act=nn.ReLU6), images)
    assert six[0].skipped == "ReLU6 is not homogeneous"
    found = {pair.first: pair for pair in equalise(net, images)}
    assert found["first"].skipped == "2 operators read it"
    assert found["left"].second == "right"
    assert found["right"].skipped == "an addition reads it"


def test_shared_batchnorm_and_all_widths_scale_alike(make, images) -> None:
    for batchnorm in ("shared", "per-bit"):
        net = make(batchnorm=batchnorm)
        gains = {key: norm.weight.clone() for key, norm in net.units["left"].norm.norms.items()}
        equalise(net, images)
        ratios = [gains[key] / norm.weight for key, norm in net.units["left"].norm.norms.items()]
        assert all(torch.equal(ratio, ratios[0]) for ratio in ratios)
        assert not torch.equal(ratios[0], torch.ones_like(ratios[0]))


def test_it_needs_all_widths(net, images) -> None:
    with pytest.raises(InputError, match="calibrate all of them"):
        calibrate(net, images, bits=(4,), passes=("equalise",))
