"""Attacks on autoencoders whose optimum is known."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeq.attacks.ball import Ball, Pace, ascend
from edgeq.attacks.latent import (
    LATENT_WAYS,
    TARGETED,
    Autoencoder,
    anchors,
    attack_autoencoder,
    checkerboard,
    others,
    target,
)
from edgeq.attacks.latent_report import latents_withstood
from edgeq.attacks.pipeline import Effort
from edgeq.attacks.pipeline_report import Assault
from edgeq.data.seeds import generator
from edgeq.errors import InputError

SIDE = 12
QUICK = Effort(steps=20, starts=1, batch_size=3)
WEIGHT = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2])


def _pixels(images: Tensor) -> Tensor:
    return images / 255 if images.dtype == torch.uint8 else images


def _encode(images: Tensor) -> Tensor:
    """One number: a weighted sum, far from zero."""
    return ((_pixels(images) * WEIGHT).sum((1, 2, 3)) + 1000.0)[:, None, None, None]


def _redraw(images: Tensor) -> Tensor:
    """Twice the contrast: x' = x + d errs by |x - 1/2 + 2 d|^2, most where every pixel leaves the middle."""
    return 2 * _pixels(images) - 0.5


MODEL = Autoencoder(_encode, _redraw)


def _images(count: int = 5, *, low: int = 64, high: int = 192) -> Tensor:
    gen = torch.Generator().manual_seed(1)
    return torch.randint(low, high, (count, 3, SIDE, SIDE), generator=gen).to(torch.uint8)


@pytest.mark.parametrize("effort", [QUICK, replace(QUICK, ascent="auto")])
@pytest.mark.parametrize("eps", [2, 16])
def test_a_linear_encoder_is_moved_by_eps_times_the_sign_of_its_weights(eps: int, effort: Effort) -> None:
    x = _images()
    found = attack_autoencoder("photoguard", MODEL, x, LABELS, eps=eps, effort=effort)
    expected = x.int() - eps * WEIGHT.sign().int()  # 1000 + w x is lowered towards 0
    assert torch.equal(found.int(), expected)


def test_the_reconstruction_attack_drives_every_pixel_away_from_the_middle() -> None:
    x = _images()
    found = attack_autoencoder("reconstruction", MODEL, x, LABELS, eps=16, effort=QUICK).int() - x.int()
    away = x.int().sub(127.5).sign().int()
    far = x.int().sub(127.5).abs() > 2 * 16 + 2  # nearer the middle, a random start may lie on the other slope
    assert torch.equal(found[far], 16 * away[far])


def test_the_ascent_is_the_one_asked_for() -> None:
    x = _images(low=0, high=256)
    steps = [replace(QUICK, ascent=ascent) for ascent in ("pgd", "auto")]
    found = [attack_autoencoder("glaze", MODEL, x, LABELS, eps=16, effort=effort) for effort in steps]
    assert not torch.equal(*found)


@given(st.integers(1, 255), st.sampled_from(LATENT_WAYS), st.integers(0, 3))
def test_no_pixel_moves_further_than_eps(eps: int, way: str, seed: int) -> None:
    x = _images(low=0, high=256)
    found = attack_autoencoder(way, MODEL, x, LABELS, eps=eps, effort=Effort(steps=2, starts=1), seed=seed)
    assert found.dtype == torch.uint8
    assert int((found.int() - x.int()).abs().max()) <= eps


def test_a_target_within_reach_is_reached_and_not_passed() -> None:
    x = _images(2, low=100, high=140)
    goal = MODEL.encode(x).flip(0)
    ball = Ball(x, 64 / 255)
    found = ascend(lambda y: -(MODEL.encode(y) - goal).square().flatten(1).mean(1), ball, Pace(60), generator("test"))
    assert float((MODEL.encode(found) - goal).abs().max()) < 0.1 * float((MODEL.encode(x) - goal).abs().max())


def test_more_starts_are_never_worse() -> None:
    x = _images(low=0, high=256)
    errors = []
    for starts in (1, 4):
        found = attack_autoencoder("reconstruction", MODEL, x, LABELS, eps=32, effort=Effort(steps=3, starts=starts))
        errors.append((_redraw(found) - x / 255).square().flatten(1).mean(1))
    assert bool((errors[1] >= errors[0]).all())
    assert bool((errors[1] > errors[0]).any())


def test_zero_and_infinite_gradients_move_nothing_to_nowhere() -> None:
    def losses(x: Tensor) -> Tensor:
        root = (x - x.detach()).clamp(min=0).sqrt()  # an infinite derivative, times zero
        return (root * 0).flatten(1).sum(1)

    x = _images()
    found = ascend(losses, Ball(x, 8 / 255), Pace(3), generator("test"))
    assert torch.equal(found, Ball(x, 8 / 255).random(generator("test")))


def test_the_targets_are_what_they_are_called() -> None:
    x = _images()
    latents = MODEL.encode(x)
    assert float(target("photoguard", MODEL, x, LABELS).abs().max()) == 0
    torch.testing.assert_close(target("mist", MODEL, x, LABELS)[3:4], MODEL.encode(checkerboard(x[:1])))
    board = checkerboard(x[:1])[0, 0]
    assert board[0, :8].tolist() == [0] * 4 + [255] * 4
    assert board[4, :8].tolist() == [255] * 4 + [0] * 4
    torch.testing.assert_close(target("nightshade", MODEL, x, LABELS), latents[anchors(latents, LABELS)])
    torch.testing.assert_close(target("glaze", MODEL, x, LABELS), latents[others(LABELS, generator("glaze", 0))])


def test_anchors_are_the_most_typical_images_of_the_next_class() -> None:
    latents = torch.tensor([0.0, 1.0, 5.0, 10.0, 11.0, 30.0])[:, None, None, None]
    labels = torch.tensor([4, 4, 4, 7, 7, 9])
    assert anchors(latents, labels).tolist() == [3, 3, 3, 5, 5, 1]  # means 2, 10.5 (the first of two), 30


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1), st.integers(0, 9))
def test_others_are_of_another_class(classes: list[int], seed: int) -> None:
    labels = torch.tensor(classes)
    assert bool((labels[others(labels, generator("test", seed))] != labels).all())


def test_wrong_attacks_are_refused() -> None:
    x = _images()
    with pytest.raises(InputError, match="expected an attack out of photoguard"):
        attack_autoencoder("magic", MODEL, x, LABELS, eps=8, effort=QUICK)
    with pytest.raises(InputError, match="eps from 1 to 255"):
        attack_autoencoder("mist", MODEL, x, LABELS, eps=0, effort=QUICK)
    for way in ("glaze", "nightshade"):
        with pytest.raises(InputError, match="two classes or more"):
            attack_autoencoder(way, MODEL, x, torch.zeros(5, dtype=torch.int64), eps=8, effort=QUICK)


def test_the_report_sets_each_model_beside_its_attacker() -> None:
    """The second encoder sees one pixel, with the other sign, so that what was made on the first repels it."""
    blunt = WEIGHT * 0
    blunt[0, 0, 0] = -WEIGHT[0, 0, 0].sign()

    def encode(images: Tensor) -> Tensor:
        return ((_pixels(images) * blunt).sum((1, 2, 3)) + 1000.0)[:, None, None, None]

    models = {"start": MODEL, "smooth": Autoencoder(encode, _pixels)}
    x = _images()
    body = latents_withstood(models, x, LABELS, Assault(eps=(16, 4), effort=QUICK))
    named = [(row["eps"], row["model"]) for row in body["worst"]]
    assert named == [(4, "start"), (4, "smooth"), (16, "start"), (16, "smooth")]
    assert len(body["rows"]) == 2 * len(LATENT_WAYS) * 3
    pairs = {(r["model"], r["made_on"]) for r in body["rows"]}
    assert pairs == {("start", "start"), ("smooth", "smooth"), ("smooth", "start")}
    assert body["clean"]["smooth"]["psnr"] == 100
    for row in body["rows"]:
        assert ("left" in row) == (row["way"] in TARGETED)
        if row["model"] == "smooth" and row["way"] == "reconstruction" and row["made_on"] == "smooth":
            assert row["mse"] == pytest.approx((row["eps"] / 255) ** 2, rel=1e-5)  # a copy errs by what is added
        if row["model"] == "smooth" and row["way"] == "photoguard":
            assert (row["left"] < 1) == (row["made_on"] == "smooth")
    for eps in (4, 16):
        several = [r["mse"] for r in body["rows"] if (r["eps"], r["model"]) == (eps, "smooth")]
        worst = next(r["mse"] for r in body["worst"] if (r["eps"], r["model"]) == (eps, "smooth"))
        assert worst >= max(several) - 1e-9
    assert body["warnings"] == []


def test_a_masked_gradient_is_doubted() -> None:
    masked = Autoencoder(_encode, lambda images: _redraw(images).detach() + 0 * _pixels(images))
    assault = Assault(ways=("reconstruction",), eps=(16,), effort=QUICK)
    body = latents_withstood({"start": MODEL, "masked": masked}, _images(), LABELS, assault)
    assert any("gradients are masked" in warning for warning in body["warnings"])
