"""Attacks on pipelines whose weakness is known."""

import json
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from edgeq.attacks.pipeline import Effort, attack_pipeline, right
from edgeq.attacks.pipeline_report import Assault, bare_accuracy, withstood
from edgeq.errors import InputError
from edgeq.purifiers import ALP, AbstractPurifier, Purified
from edgeq.purifiers.deployed import PURIFIER_WAYS as WAYS
from edgeq.purifiers.deployed import ways_for
from tests.purifiers.conftest import SIDE, TINY_FSQ, TINY_VAE, TINY_VQ, images

QUICK = Effort(steps=6, starts=2, eot=3, queries=60, batch_size=7)
LABELS = torch.arange(10) % 2


class Rounds(AbstractPurifier):
    """Rounds pixels to eight levels, without or with a gradient; noise if asked."""

    def __init__(self, *, gradient: bool = True, noise: float = 0.0) -> None:
        super().__init__()
        self.gradient, self.noise, self.stochastic, self.codewords = gradient, noise, noise > 0, noise == 0
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def encode(self, images: Tensor) -> Tensor:
        return images

    def squeeze(self, latent: Tensor, draw, temperature: float) -> Tensor:
        coarse = (latent * 4).round() / 4
        hard = latent + (coarse - latent).detach() if self.gradient else coarse
        return hard + self.noise * draw.normal(latent) if self.noise else hard

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def bits_per_image(self, image_shape: tuple[int, ...]) -> float:
        return 3.0 * SIDE * SIDE * 3

    def not_exportable(self) -> str:
        return ""


class Mean:
    """Class 1 where the image is bright on the whole, but for a weight of each pixel."""

    def __init__(self) -> None:
        self.weight = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        bright = ((x - 0.5) * self.weight).sum((1, 2, 3))
        return torch.stack([-bright, bright], 1)


def _labelled(deployed: Purified) -> tuple[Tensor, Tensor]:
    """Images with the classes that the pipeline gives them: clean accuracy is 1."""
    x = images(10)
    with torch.no_grad():
        return x, deployed(x).argmax(1)


@pytest.mark.parametrize("ascent", ["pgd", "auto"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_stays_within_eps_and_wins_where_it_must(way: str, ascent: Literal["pgd", "auto"]) -> None:
    effort = replace(QUICK, ascent=ascent)
    deployed = Purified(Rounds(noise=0.05 if way in ("eot", "fixed") else 0.0), Mean())
    x, y = _labelled(deployed)
    found = attack_pipeline(way, deployed, x, y, eps=64, effort=effort)
    assert found.images.dtype == torch.uint8
    assert int((found.images.int() - x.int()).abs().max()) <= 64
    assert int(right(deployed, found.images, y).sum()) <= (2 if way == "square" else 0)
    again = attack_pipeline(way, deployed, x, y, eps=64, effort=effort)
    assert torch.equal(again.images, found.images)


def test_the_ways_that_mean_something() -> None:
    assert set(WAYS) - set(ways_for(Rounds())) == {"eot", "fixed"}
    assert set(WAYS) - set(ways_for(Rounds(noise=0.1))) == {"soft", "fab"}
    with pytest.raises(InputError, match="expected an attack out of"):
        attack_pipeline("eot", Purified(Rounds(), Mean()), images(10), LABELS, eps=8, effort=QUICK)


def test_a_masked_gradient_does_not_pass_for_robustness() -> None:
    deployed = Purified(Rounds(gradient=False), Mean())
    x, y = _labelled(deployed)
    document = withstood(deployed, x, y, Assault(eps=(8, 64), effort=QUICK))
    blind = document["rows"][-1]["ways"]
    assert blind["straight"]["flat"] == 1
    assert document["rows"][-1]["robust"]["rate"] == 0  # identity and transfer get through
    assert any("vanish" in w for w in document["warnings"])
    json.dumps(document, allow_nan=False)


def test_only_a_blind_way_is_flagged_for_what_it_leaves() -> None:
    deployed = Purified(Rounds(gradient=False), Mean())
    x, y = _labelled(deployed)
    document = withstood(deployed, x, y, Assault(ways=("straight",), eps=(64,), effort=QUICK))
    assert document["rows"][0]["robust"]["rate"] > 0.05
    assert any("should leave nothing" in w for w in document["warnings"])
    document = withstood(deployed, x, y, Assault(ways=("identity",), eps=(8,), effort=QUICK))
    assert any("no eps of 64" in w for w in document["warnings"])


def test_robust_is_the_minimum_over_the_ways_and_falls_with_eps() -> None:
    deployed = Purified(Rounds(noise=0.2), Mean(), samples=2)
    x, y = _labelled(deployed)
    document = withstood(deployed, x, y, Assault(eps=(1, 64), effort=QUICK))
    for row in document["rows"]:
        ways = row["ways"]
        assert row["robust"]["right"] <= min(c["right"] for name, c in ways.items() if name != "fixed")
        assert row["robust_seed_known"]["right"] <= ways["fixed"]["right"]
        assert row["robust"]["right"] <= document["clean"]["right"]
    assert document["rows"][1]["robust"]["right"] <= document["rows"][0]["robust"]["right"]
    bare = bare_accuracy(deployed, x, y, Assault(eps=(64,), effort=QUICK))
    assert bare[64]["rate"] == 0


@pytest.mark.parametrize("method", [TINY_VQ, TINY_FSQ, ALP(8, 1, latent=8), TINY_VAE], ids=["vq", "fsq", "alp", "vae"])
def test_real_purifiers_can_be_attacked_in_all_their_ways(method) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        purifier = method.build((3, SIDE, SIDE), 16).train()
        if method.kind == "purevq":  # normalised vectors: untrained ones are all nearly 0, where a ReLU has no gradient
            for _ in range(20):
                purifier.decode(purifier.bottleneck.learn(purifier.encode(images(16).float() / 127.5 - 1))[0])
    deployed = Purified(purifier.eval().requires_grad_(False), Mean())
    x, y = _labelled(deployed)
    effort = Effort(steps=2, starts=1, eot=2, queries=3)
    document = withstood(deployed, x, y, Assault(eps=(8,), effort=effort))
    cells = document["rows"][0]["ways"]
    assert set(cells) == set(ways_for(purifier))
    assert all(cell["flat"] == 0 for cell in cells.values())
    assert all(("code_flip" in cell) == (method.kind == "purevq") for cell in cells.values())


def test_wrong_choices_are_refused() -> None:
    for wrong, words in (
        (lambda: Effort(steps=0), "positive numbers"),
        (lambda: Effort(cold=3.0), "cold <= warm"),
        (lambda: Assault(eps=(0,)), "eps from 1 to 255"),
        (lambda: withstood(Purified(Rounds(), Mean()), images(10), LABELS, Assault(ways=("magic",))), "magic"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()


def test_square_does_not_trust_one_draw_of_the_noise() -> None:
    victim = Mean()
    quiet, noisy = Purified(Rounds(), victim), Purified(Rounds(noise=0.3), victim)
    x, y = _labelled(quiet)
    # the deployed draw alone names every image wrongly: an attacker who asks about it has won before the first square
    signs = (1 - 2 * y)[:, None] * torch.tensor([[-1.0, 1.0]])

    class Lucky(Purified):
        def __call__(self, images: Tensor) -> Tensor:
            found = super().__call__(images)
            return found + 1e3 * signs if self.draw == noisy.draw else found

    lucky = Lucky(noisy.purifier, victim)
    tried = {
        q: attack_pipeline("square", lucky, x, y, eps=8, effort=replace(QUICK, queries=q, batch_size=10))
        for q in (1, 200)
    }
    margins = {q: (quiet(found.images) * -signs).sum(1).mean() for q, found in tried.items()}  # of the right class
    assert float(margins[200]) < float(margins[1]) - 1.0
