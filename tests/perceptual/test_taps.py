"""Which features are looked at."""

import pytest
import torch

from edgeq.errors import InputError
from edgeq.models import build
from edgeq.perceptual import feature_taps
from edgeq.quant.convert import multibit
from edgeq.quant.units import NarrowUnit


@pytest.mark.parametrize(
    ("model", "sides", "most"),
    [("resnet8", [32, 16], 3), ("resnet8", [32], 1), ("mobilenet_v2", [32, 16, 8], 3)],
)
def test_taps_are_the_ends_of_early_and_middle_stages(model: str, sides: list[int], most: int) -> None:
    net = multibit(build(model, classes=10), bits=(8, 2))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    taps = feature_taps(net, most=most)
    values = net.eval().values(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), keep=net.names)
    assert [values[name].codes.shape[-1] for name in taps] == sides
    for name, side in zip(taps, sides, strict=True):
        later = net.names[net.names.index(name) + 1 :]
        same = [n for n in later if values[n].codes.dim() == 4 and values[n].codes.shape[-1] == side]
        assert all(isinstance(net.units[n], NarrowUnit) for n in same)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_your_own_taps_are_checked() -> None:
    net = multibit(build("resnet8", classes=10), bits=(8, 2)).train()
    (first, *_) = feature_taps(net)
    assert feature_taps(net, [first]) == (first,)
    assert net.training
    with pytest.raises(InputError, match="expected steps of the network, got"):
        feature_taps(net, ["nowhere"])
    with pytest.raises(InputError, match="maps of 3 x 3 pixels or more"):
        feature_taps(net, [net.names[-1]])
