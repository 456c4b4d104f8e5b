import pytest
import torch

from edgeq.calib import calibrate, correct_bias
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits


def means(net, images, bits: int) -> torch.Tensor:
    with at_bits(net, bits):
        return net.predict(images).double().mean(0)


@pytest.mark.parametrize("batchnorm", ["per-bit", "shared"])
@pytest.mark.parametrize("bits", [8, 2])
def test_the_mean_error_of_the_logits_is_gone(make, images, bits: int, batchnorm: str) -> None:
    net = make(batchnorm=batchnorm)
    calibrate(net, images, bn=False)
    target = means(net, images, 32)
    others = {b: means(net, images, b) for b in net.bits if b != bits}
    before = (means(net, images, bits) - target).abs().max()
    correct_bias(net, images, bits=bits)
    after = (means(net, images, bits) - target).abs().max()
    with at_bits(net, bits), torch.no_grad():
        step = net.eval().values(images[:1])["last"].step
    assert after <= step / 2 + 5e-5  # the integer bias is rounded; logits of size 1 in float32, summed in two orders
    assert after < before
    assert all(torch.equal(means(net, images, b), value) for b, value in others.items())


def test_a_second_time_finds_the_same(net, images) -> None:
    calibrate(net, images)
    assert correct_bias(net, images, bits=2) == correct_bias(net, images, bits=2)


def test_unknown_widths_and_empty_images_are_refused(net, images) -> None:
    with pytest.raises(InputError, match=r"\[5\]"):
        correct_bias(net, images, bits=5)
    with pytest.raises(InputError, match="one image or more"):
        correct_bias(net, images[:0], bits=4)
