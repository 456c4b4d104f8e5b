"""Surrogates: one width, several, all but one, a tuned copy."""

import pytest
import torch

from edgeq.attacks.adaptive import FineTune, attackers, tuned_copy
from edgeq.attacks.victim import all_but, answers, surrogate
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet
from tests.attacks.conftest import random_images

LABELS = torch.arange(32) % 4


def test_a_surrogate_answers_as_the_deployed_network_does(net: MultiBitNet) -> None:
    images = random_images(5)
    net.train()  # the mode must not matter
    try:
        seen = answers(surrogate(net), images, batch_size=2)
    finally:
        net.eval()
    for logits, bits in zip(seen, net.bits, strict=True):
        with at_bits(net, bits):
            # at 32 bits float32 sums depend on the batch; below, the integers are exact
            torch.testing.assert_close(logits, net.predict(images), rtol=0, atol=1e-5 if bits == 32 else 0)
    assert answers(surrogate(net, 4), images).shape == (5, 4)


def test_gradients_pass_through_the_roundings(net: MultiBitNet) -> None:
    images = random_images(3).float() / 255
    images[:, :, :6] = images[:, :, :6].round()  # black and white too
    images.requires_grad_()
    for bits in net.bits:
        (grad,) = torch.autograd.grad(surrogate(net, bits)(images)[:, 0].sum(), (images,))
        assert bool((grad != 0).float().mean() > 0.9)
        with torch.no_grad():  # and the answer is that of the bytes
            same = surrogate(net, bits)((images * 255).round().to(torch.uint8))
            torch.testing.assert_close(surrogate(net, bits)(images), same, rtol=0, atol=1e-5 if bits == 32 else 0)


def test_the_adaptive_attackers_are_those_that_the_docs_name(net: MultiBitNet) -> None:
    found = attackers(net, 4, tuned=net)
    assert {name: victim.bits for name, victim in found.items()} == {
        "white-box": (4,),
        "from-32": (32,),
        "from-2": (2,),
        "all-but": (32, 2),
        "joint": (32, 4, 2),
        "tuned": (32, 4, 2),
    }
    assert all_but(net, 2).bits == (32, 4)


def test_widths_that_the_network_lacks_are_refused(net: MultiBitNet) -> None:
    with pytest.raises(InputError, match="got \\[5\\]"):
        surrogate(net, 5)


def test_tuning_changes_a_copy_and_lowers_its_loss_at_every_width(net: MultiBitNet) -> None:
    images = random_images(32)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    choices = FineTune(steps=25, lr=0.02, batch_size=16)
    tuned = tuned_copy(net, images, LABELS, choices=choices)
    again = tuned_copy(net, images, LABELS, choices=choices)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(torch.equal(t, tuned.state_dict()[name]) for name, t in again.state_dict().items())
    for old, new in zip(answers(surrogate(net), images), answers(surrogate(tuned), images), strict=True):
        loss = torch.nn.functional.cross_entropy
        assert float(loss(new, LABELS)) < float(loss(old, LABELS))
    assert tuned.width is not net.width and all(p.grad is None for p in net.parameters())
