"""FAB where the nearest image over the boundary is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from edgeq.attacks.ball import Ball
from edgeq.attacks.fab import fab, to_boundary

GEN = torch.Generator().manual_seed(0)


@given(st.integers(0, 10**6), st.floats(-3.0, 3.0))
def test_the_step_to_a_boundary_is_that_of_a_linear_program(seed: int, value: float) -> None:
    gen = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 1, 2, 3, generator=gen, dtype=torch.float64).round(decimals=1)
    slopes = (torch.randn(points.shape, generator=gen, dtype=torch.float64)).round(decimals=1)
    found = to_boundary(points, torch.tensor([value], dtype=torch.float64), slopes)
    assert bool((points + found >= -1e-12).all()) and bool((points + found <= 1 + 1e-12).all())
    p, w = points.flatten().numpy(), slopes.flatten().numpy()
    room = abs(w) * (1 - p if value < 0 else p) * (w > 0) + abs(w) * (p if value < 0 else 1 - p) * (w < 0)
    if room.sum() < abs(value):
        assert float((slopes * found).sum()) == pytest.approx(-room.sum() * (1 if value > 0 else -1), abs=1e-9)
        return
    # least t with |d| <= t, w . d = -value, 0 <= p + d <= 1
    rows = [[*(s if i == j else 0.0 for j in range(6)), -1.0] for i in range(6) for s in (1.0, -1.0)]
    limits = [*((-x, 1 - x) for x in p), (0, None)]
    best = linprog([0] * 6 + [1], rows, [0] * 12, [[*w, 0.0]], [-value], limits)
    assert float(found.abs().max()) == pytest.approx(best.x[-1], abs=1e-6)
    assert float((slopes * found).sum()) == pytest.approx(-value, abs=1e-6)


def test_between_two_linear_classes_it_finds_the_least_change() -> None:
    images = torch.randint(100, 156, (6, 1, 4, 4), generator=GEN).to(torch.uint8)
    weight = torch.randn(16, generator=GEN)

    def victim(x: Tensor) -> Tensor:
        x = x / 255.0 if x.dtype == torch.uint8 else x
        score = x.flatten(1) @ weight + 0.3
        return torch.stack([-score, score], 1)

    logits = victim(images)
    labels = logits.argmax(1)
    least = logits.diff(dim=1).abs()[:, 0] / (2 * weight.abs().sum())
    found, flat = fab(victim, Ball(images, 1.0), labels, 1 - labels, steps=30)
    assert flat == 0 and bool((victim(found).argmax(1) != labels).all())
    change = (found.float() - images.float()).abs().flatten(1).amax(1) / 255
    assert bool((change <= least + 1.01 / 255).all())  # 1.01: a byte more than the least, which is none

    inside, _ = fab(victim, Ball(images, 0.5 * float(least.min())), labels, 1 - labels, steps=30)
    assert torch.equal(victim(inside).argmax(1), labels)  # nothing within half of the least


def test_a_curved_boundary_is_met_from_its_nearest_side() -> None:
    images = torch.full((2, 1, 2, 2), 128, dtype=torch.uint8)

    def victim(x: Tensor) -> Tensor:
        x = x / 255.0 if x.dtype == torch.uint8 else x
        x = x.flatten(1) - 128 / 255 + torch.tensor([-0.02, 0.01, 0.01, 0.01])
        inside = 0.04 - (x.square() * torch.tensor([1.0, 1.0, 0.1, 0.1])).sum(1)
        return torch.stack([inside, -inside], 1)

    found, _ = fab(
        victim, Ball(images, 1.0), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), steps=60
    )
    change = (found.float() - 128).abs().flatten(1).amax(1) / 255
    # along (-1, 1, 1, 1): (t + 0.02)^2 + 1.2 (t + 0.01)^2 = 0.04
    assert bool((victim(found).argmax(1) == 1).all()) and bool((change <= 0.1202 + 2 / 255).all())


def test_a_flat_victim_is_said_to_be_flat() -> None:
    images = torch.full((2, 1, 2, 2), 128, dtype=torch.uint8)

    def victim(x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.float().sum()

    found, flat = fab(
        victim, Ball(images, 0.1), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), steps=3
    )
    assert flat == 1 and torch.equal(found, images)
