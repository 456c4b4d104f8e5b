"""The alignment penalty: laws, reductions, refusals, derivatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from edgeq.errors import InputError
from edgeq.perceptual import Alignment, alignment_penalty, all_pairs, edges, fdp, gpdp, neighbours, similarity

CHOICES = [
    Alignment(),
    Alignment(channels="mean"),
    Alignment(centred=True),
    Alignment(alpha=1.0, beta=0.0),
    Alignment(alpha=0.0, beta=1.0, excess=True),
    Alignment(excess=True, centred=True, channels="mean"),
]


@pytest.mark.parametrize("choices", CHOICES)
def test_a_map_is_fully_similar_to_itself(choices: Alignment) -> None:
    maps = torch.randn(1, 4, 3, 16, 16).expand(3, -1, -1, -1, -1)
    full = choices.alpha + choices.beta
    torch.testing.assert_close(similarity(maps, choices), torch.full((3, 4), full), atol=1e-4, rtol=0)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["noise", "relu", "sparse", "levels"]), side=st.integers(4, 17))
def test_similarity_is_symmetric_bounded_and_blind_to_scale(seed: int, kind: str, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 2, side, side + 1, generator=generator)
    if kind == "relu":
        maps = maps.relu()
    if kind == "sparse":
        maps = maps * (torch.rand(maps.shape, generator=generator) < 0.03)
    if kind == "levels":
        maps = (maps * 0.7).round().clamp(0, 3)
    forward = similarity(maps, Alignment())
    assert ((forward >= 0) & (forward <= 1.5 + 1e-5)).all()
    torch.testing.assert_close(similarity(maps.flip(0), Alignment()), forward)
    torch.testing.assert_close(similarity(maps, Alignment(), pairs=torch.tensor([[1, 0]])), forward)
    scales = 10.0 ** torch.randint(-9, 4, (2, 3, 2, 1, 1), generator=generator)
    torch.testing.assert_close(similarity(maps * scales, Alignment()), forward, atol=2e-3, rtol=0)


def test_images_and_pairs_are_independent_of_each_other() -> None:
    maps = torch.randn(3, 4, 2, 12, 12, dtype=torch.float64)
    together = similarity(maps, Alignment())
    for p, pair in enumerate(all_pairs(3)):
        for n in range(4):
            torch.testing.assert_close(similarity(maps[pair, n : n + 1], Alignment())[0, 0], together[p, n])


@pytest.mark.parametrize("choices", CHOICES)
def test_constant_maps_give_finite_values_and_no_gradient(choices: Alignment) -> None:
    maps = torch.randn(2, 3, 2, 8, 8)
    maps[0] = 0.25
    maps[1, 0] = 0.0
    maps.requires_grad_()
    penalty = alignment_penalty(maps, choices)
    (grad,) = torch.autograd.grad(penalty, maps, create_graph=True)
    assert penalty.isfinite() and grad.isfinite().all()
    if not choices.centred:
        assert penalty == 0
    assert grad[0].abs().max() == 0 and grad[1, 0].abs().max() == 0
    (second,) = torch.autograd.grad(grad.square().sum(), maps)
    assert second.isfinite().all()


def test_a_channel_that_is_dead_everywhere_changes_nothing() -> None:
    maps = torch.randn(2, 3, 2, 16, 16)
    with_dead = torch.cat([maps, torch.zeros(2, 3, 2, 16, 16)], 2)
    torch.testing.assert_close(similarity(with_dead, Alignment()), similarity(maps, Alignment()))


def test_a_channel_that_is_dead_at_one_width_counts_as_unlike() -> None:
    maps = torch.randn(1, 3, 2, 16, 16).repeat(2, 1, 1, 1, 1)
    maps[1, :, 1] = 0.0
    assert (similarity(maps, Alignment()) < 1.2).all()


def test_the_penalty_is_the_mean_over_pairs_and_fdp_over_taps() -> None:
    taps = [torch.randn(3, 4, 2, 16, 16), torch.randn(3, 4, 5, 8, 8)]
    each = [similarity(maps, Alignment()).mean() for maps in taps]
    torch.testing.assert_close(gpdp(taps[0]), each[0])
    torch.testing.assert_close(fdp(taps), (each[0] + each[1]) / 2)
    one = torch.tensor([[0, 2]])
    torch.testing.assert_close(fdp(taps[:1], pairs=one), similarity(taps[0], Alignment(), pairs=one).mean())


def test_excess_is_above_the_null_and_never_negative() -> None:
    noise = torch.randn(2, 64, 1, 16, 16)
    alike = noise[:1] + 0.3 * noise
    choices = Alignment(excess=True)
    raw, null = similarity(alike, choices).mean(), similarity(alike, choices, order=neighbours(64)).mean()
    torch.testing.assert_close(alignment_penalty(alike, choices), raw - null)
    apart = torch.stack([noise[0], noise[0].roll(-1, 0)])  # width 1 shows the next image: below the null
    assert alignment_penalty(apart, choices) == 0
    assert 0 <= alignment_penalty(noise, choices) < 0.03


def test_maps_move_apart_under_gradient_descent() -> None:
    maps = (torch.randn(1, 4, 2, 16, 16) + 0.3 * torch.randn(2, 4, 2, 16, 16)).requires_grad_()
    before = gpdp(maps).item()
    optimizer = torch.optim.Adam([maps], lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        gpdp(maps).backward()
        optimizer.step()
    assert gpdp(maps).item() < before - 0.15


def test_half_precision_maps_are_compared_in_float32() -> None:
    maps = torch.randn(2, 3, 2, 16, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gpdp(maps)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, gpdp(maps.float()))


@pytest.mark.parametrize("choices", CHOICES)
def test_derivatives(choices: Alignment, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(3, 2, 1, 5, 5, dtype=torch.float64)
    maps[1:] = maps[:1] + 0.2 * maps[1:]  # well above the null, away from the hinge
    maps.requires_grad_()
    frozen: list[Tensor] = []
    real = edges.edge_threshold

    def threshold(magnitude: Tensor, q: float) -> Tensor:
        """The first value for ever: a constant for autograd must be one for numerical derivatives too."""
        if not frozen:
            frozen.append(real(magnitude, q))
        return frozen[0]

    monkeypatch.setattr(edges, "edge_threshold", threshold)
    soft = Alignment(**{**vars(choices), "sharpness": 10.0})

    def run(x: Tensor) -> Tensor:
        return alignment_penalty(x, soft)

    assert run(maps) > 0.01
    assert gradcheck(run, (maps,), fast_mode=True)
    assert gradgradcheck(run, (maps,), fast_mode=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": -1.0}, "alpha and beta of 0 or more"),
        ({"alpha": 0.0, "beta": 0.0}, "not both 0"),
        ({"alpha": math.nan}, "got nan and 1.0"),
        ({"beta": math.inf}, "got 0.5 and inf"),
        ({"q": 1.0}, "q between 0 and 1"),
        ({"sharpness": 0.0}, "positive sharpness"),
        ({"sharpness": math.nan}, "finite, positive sharpness"),
        ({"bins": 2}, "bins >= 3"),
        ({"channels": "all"}, "'each' or 'mean'"),
    ],
)
def test_wrong_choices_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Alignment(**wrong)


def test_maps_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 widths"):
        gpdp(torch.zeros(1, 2, 1, 8, 8))
    with pytest.raises(InputError, match="at least 3 x 3"):
        gpdp(torch.zeros(2, 2, 1, 2, 2))
    with pytest.raises(InputError, match="at least one tap"):
        fdp([])
    with pytest.raises(InputError, match="batch of 2 or more"):
        gpdp(torch.zeros(2, 1, 1, 8, 8), Alignment(excess=True))
