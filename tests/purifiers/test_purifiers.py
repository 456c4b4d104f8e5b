import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.attacks import surrogate
from edgeq.attacks.checks import check_victim
from edgeq.data import Split
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.purifiers import (
    ALP,
    SRL,
    VAE,
    AbstractPurifier,
    Draw,
    OpenClip,
    PureVQ,
    Purified,
    PurifierConfig,
    Shield,
    Towers,
    load_purifier,
    purified_accuracies,
)
from edgeq.purifiers.base import sample, to_bytes
from edgeq.purifiers.config import plain, restored
from edgeq.runs import load_run
from tests.purifiers.conftest import SIDE, TINY_ALP, TINY_VQ, images


def test_a_purifier_maps_bytes_and_floats_to_images(trained) -> None:
    _, purifier = load_purifier(trained)
    out = purifier(images())
    assert out.shape == (6, 3, SIDE, SIDE)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    torch.testing.assert_close(purifier(images().float() / 255), out, atol=1e-5, rtol=0)  # 127.5 or 255 and 2
    assert to_bytes(out).dtype == torch.uint8
    torch.testing.assert_close(out, purifier(images()), atol=0, rtol=0)


def test_gradients_reach_the_image(trained) -> None:
    _, purifier = load_purifier(trained)
    x = (images().float() / 255).requires_grad_()
    (grad,) = torch.autograd.grad(purifier(x).sum(), x)
    assert bool((grad.flatten(1).abs().amax(1) > 0).all())


def test_an_image_is_purified_alone_or_in_company_alike(trained) -> None:
    _, purifier = load_purifier(trained)
    alone = torch.cat([purifier(x[None]) for x in images()])
    torch.testing.assert_close(purifier(images()), alone, atol=1e-4, rtol=0)  # convolutions of other batch sizes


def test_only_alp_depends_on_the_draw(vq_run, alp_run) -> None:
    for run, changes in ((vq_run, False), (alp_run, True)):
        _, purifier = load_purifier(run)
        first, second = purifier(images(), draw=Draw(0)), purifier(images(), draw=Draw(1))
        assert torch.equal(first, second) != changes
        assert purifier.stochastic is changes
    same = images(1).expand(2, -1, -1, -1)
    _, alp = load_purifier(alp_run)
    assert torch.equal(*alp(same, draw=Draw(0)).unbind())
    assert not torch.equal(*alp(same, draw=Draw(0, shared=False)).unbind())


@given(st.integers(0, 2**40), st.integers(1, 30))
@settings(max_examples=20)
def test_draws_are_reproducible_and_differ(seed: int, k: int) -> None:
    like = torch.zeros(2, 3, 4, 4)
    assert torch.equal(Draw(seed).normal(like), Draw(seed).normal(like))
    assert not torch.equal(Draw(seed).normal(like), sample(Draw(seed), k).normal(like))


def test_the_latent_of_alp_has_unit_variance_so_that_sigma_means_something() -> None:
    alp = TINY_ALP.build((3, SIDE, SIDE), 40).train()
    variance = alp.encode(images(40).float() / 127.5 - 1).var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(8), atol=0.01, rtol=0)  # BatchNorm adds 1e-5 to small variances


def test_capacities() -> None:
    vq = TINY_VQ.build((3, 32, 32), 16)
    assert vq.bits_per_image((3, 32, 32)) == 64 * 4
    assert PureVQ().build((3, 32, 32), 64).bits_per_image((3, 32, 32)) == 576
    alp = ALP(channels=8, sigma=1.0, learn_sigma=False).build((3, 32, 32), 16)
    assert alp.bits_per_image((3, 32, 32)) == pytest.approx(64 * 64 / 2)
    assert ALP(channels=8, sigma=0.0, learn_sigma=False).build((3, 32, 32), 16).bits_per_image((3, 32, 32)) == math.inf


def test_the_paper_form_says_that_it_is_not_exportable() -> None:
    paper = dataclasses.replace(TINY_VQ, form="paper").build((3, 16, 16), 16)
    assert "GroupNorm" in paper.not_exportable()
    assert TINY_VQ.build((3, 16, 16), 16).not_exportable() == ""
    assert "GroupNorm" in dataclasses.replace(TINY_ALP, form="paper").build((3, 16, 16), 16).not_exportable()
    paper.eval()
    assert paper(images()).shape == (6, 3, 16, 16)
    assert not any("BatchNorm" in type(m).__name__ for m in paper.modules())


class _Identity(AbstractPurifier):
    stochastic = False
    codewords = False

    def encode(self, images):
        return images

    def squeeze(self, latent, draw, temperature):
        return latent

    def decode(self, latent):
        return latent

    def bits_per_image(self, image_shape):
        return math.inf

    def not_exportable(self):
        return ""


def test_a_purifier_that_does_nothing_changes_no_accuracy(made_run) -> None:
    _, net = load_run(made_run)
    gen = torch.Generator().manual_seed(0)
    split = Split(torch.randint(0, 256, (30, 3, 32, 32), generator=gen).to(torch.uint8), torch.arange(30) % 10)
    identity = _Identity()
    identity.anchor = torch.nn.Parameter(torch.zeros(()))
    assert purified_accuracies(identity, net, split) == accuracies(net, split)
    victim = Purified(identity, surrogate(net, 4))
    torch.testing.assert_close(victim(split.images), surrogate(net, 4)(split.images), atol=0, rtol=0)


def test_a_purified_victim_averages_its_draws_and_is_repeatable(alp_run) -> None:
    _, alp = load_purifier(alp_run)

    def classify(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    victim = Purified(alp, classify, samples=3)
    parts = [classify(victim.purified(images(), k)) for k in range(3)]
    torch.testing.assert_close(victim(images()), torch.stack(parts).mean(0), atol=1e-6, rtol=0)  # order of the sum
    assert not torch.equal(parts[0], parts[1])
    assert not [w for w in check_victim(victim, images().float() / 255) if "differ" in w]


def test_several_draws_of_a_deterministic_purifier_are_refused(vq_run) -> None:
    _, vq = load_purifier(vq_run)
    with pytest.raises(InputError, match="expected 1 draw"):
        Purified(vq, lambda x: x.mean((2, 3)), samples=2)


@pytest.mark.parametrize("shape", [(2, 3, 18, 16), (2, 1, 16, 16), (2, 3, 8, 8)])
def test_images_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    purifier = TINY_ALP.build((3, 16, 16), 4).eval()
    with pytest.raises(InputError, match="multiples of 4"):
        purifier(torch.zeros(shape))
    with pytest.raises(InputError, match="expected uint8 images or floats"):
        purifier(torch.zeros(2, 3, 16, 16, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PureVQ(channels=7), "even number of channels"),
        (lambda: PureVQ(codes=1), "codes >= 2"),
        (lambda: PureVQ(levels=(8, 2)), "3 or more levels"),
        (lambda: PureVQ(beta=-1.0), "beta"),
        (lambda: PureVQ(form="gelu"), "form"),  # type: ignore[arg-type]
        (lambda: ALP(sigma=0.0), "sigma > 0"),
        (lambda: ALP(latent=0), "latent >= 1"),
        (lambda: PurifierConfig(epochs=0), "at least 1 epoch"),
        (lambda: PurifierConfig(lr=math.nan), "lr > 0"),
        (lambda: PureVQ().build((3, 32, 32), 4), "at least as many vectors"),
    ],
)
def test_wrong_choices_are_refused(make, words: str) -> None:
    with pytest.raises((InputError, Exception), match=words) as caught:
        make()
    assert isinstance(caught.value, InputError) or "jaxtyping" in type(caught.value).__module__


CLASSES = ("a", "b")
CHOICES = (
    PureVQ(),
    ALP(),
    VAE(),
    SRL("run", "0" * 64, VAE(latent=4), eps=4.0),
    Towers(CLASSES, hardened=True),
    Shield("run", "0" * 64, Towers(CLASSES), CLASSES, features="class"),
    Shield("file", "0" * 64, OpenClip("{}"), CLASSES, discrete=False),
)


@pytest.mark.parametrize("method", CHOICES, ids=[m.kind for m in CHOICES])
def test_choices_survive_json(method) -> None:
    config = PurifierConfig(method=method, epochs=3)
    assert restored(plain(config)) == config
