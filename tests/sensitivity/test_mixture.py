import pytest
import torch

from edgeq.calib.walk import evaluating
from edgeq.data import Split
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet
from edgeq.sensitivity import Mixture, rounding_units

Made = tuple[MultiBitNet, Split]


def test_layers_and_joins_can_be_quantized_alone(made: Made) -> None:
    assert tuple(rounding_units(made[0])) == ("first", "left", "right", "add", "last")


def test_nothing_rounded_is_the_float_network(made: Made) -> None:
    net, split = made
    with evaluating(net, 5):
        mixed = Mixture(net, 5).whole(split.images, frozenset())
    with torch.no_grad(), at_bits(net.eval(), 32):
        exact = net(split.images)
    torch.testing.assert_close(mixed["last"].real, exact, rtol=1e-4, atol=1e-5)  # BatchNorm as gain and shift


@pytest.mark.parametrize("bits", [8, 5])
def test_everything_rounded_is_the_deployed_network_up_to_multipliers_and_biases(made: Made, bits: int) -> None:
    net, split = made
    with evaluating(net, bits):
        mixed = Mixture(net, bits).whole(split.images, frozenset(rounding_units(net)))
        deployed = net.values(split.images, keep=net.names)
    for name in ("first", "left", "add"):
        off = (mixed[name].codes - deployed[name].codes).abs()
        assert off.max() <= 2  # a tie or a rounded bias moves a code, and what reads it
        assert (off > 0).float().mean() < 0.2
    far = (mixed["last"].real - deployed["last"].real).norm() / deployed["last"].real.norm()
    assert far < 0.02  # under half a step of 5 bits


@pytest.mark.parametrize("name", ["first", "left", "right", "add", "last"])
def test_an_exchange_is_the_whole_network_with_that_choice(made: Made, name: str) -> None:
    net, split = made
    everything = frozenset(rounding_units(net))
    with evaluating(net, 5):
        mixture = Mixture(net, 5)
        for rounded, base in ((True, frozenset()), (False, everything)):
            got = mixture.exchanged(mixture.whole(split.images, base), name, rounded=rounded)
            expected = mixture.whole(split.images, base ^ {name})
            assert name in got
            for step in net.names:
                if step in got:
                    torch.testing.assert_close(got[step].real, expected[step].real, rtol=0, atol=0)


def test_an_exchange_runs_only_what_lies_behind(made: Made) -> None:
    net, split = made
    with evaluating(net, 5):
        mixture = Mixture(net, 5)
        fresh = mixture.exchanged(mixture.whole(split.images, frozenset()), "right", rounded=True)
    assert not {"first", "left"} & fresh.keys()
