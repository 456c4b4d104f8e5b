"""Auto-PGD on losses whose highest point is known."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeq.attacks.autopgd import Auto, AutoPGD, checkpoints
from edgeq.attacks.ball import AbstractSearch, Ball, Pace, ascend, uphill

EPS = 8 / 255
GEN = torch.Generator().manual_seed(0)
IMAGES = torch.randint(60, 200, (4, 3, 6, 6), generator=GEN).to(torch.uint8)


def _climb(search: AbstractSearch, ball: Ball, losses, steps: int) -> Tensor:
    x = ball.random(torch.Generator().manual_seed(1))
    for t in range(steps):
        x = search.move(x, *uphill(losses, x), t)
        assert bool(((x - ball.centre).abs() <= ball.eps + 1e-6).all()) and bool(((x >= 0) & (x <= 1)).all())
    return search.answer


def test_the_checkpoints_are_those_published() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)


@given(st.integers(1, 300))
def test_checkpoints_come_closer_together_and_end_within_the_steps(steps: int) -> None:
    places = checkpoints(steps)
    gaps = [b - a for a, b in pairwise((0, *places))]
    assert all(gap >= 1 for gap in gaps) and places[-1] <= steps
    assert all(later <= earlier + 1 for earlier, later in pairwise(gaps))  # 1: rounding up


def test_a_linear_loss_is_climbed_to_its_corner() -> None:
    ball = Ball(IMAGES, EPS)
    slope = torch.randn(IMAGES.shape, generator=GEN)
    found = _climb(AutoPGD(ball, 3), ball, lambda x: (slope * x).flatten(1).sum(1), 3)
    torch.testing.assert_close(found, ball.project(ball.centre + ball.eps * slope.sign()))


def test_a_top_inside_the_ball_is_found_where_steady_steps_jump_over_it() -> None:
    ball = Ball(IMAGES, EPS)
    top = ball.centre + ball.eps * (torch.rand(IMAGES.shape, generator=GEN) - 0.5)

    def losses(x: Tensor) -> Tensor:
        return -(x - top).square().flatten(1).sum(1)

    auto = losses(ascend(losses, ball, Auto(100), torch.Generator().manual_seed(1)))
    steady = losses(ascend(losses, ball, Pace(100, decay=False), torch.Generator().manual_seed(1)))
    assert bool((auto > steady / 100).all())


def test_images_do_not_hang_on_each_other() -> None:
    ball = Ball(IMAGES, EPS)
    top = ball.centre + ball.eps * (torch.rand(IMAGES.shape, generator=GEN) - 0.5)
    weight = torch.tensor([1.0, 1.0, 0.0, -1.0])  # up, up, flat, downhill everywhere

    def losses(x: Tensor) -> Tensor:
        return -weight * (x - top).square().flatten(1).sum(1)

    together = AutoPGD(ball, 40)
    found = _climb(together, ball, losses, 40)
    assert together.size[0] < EPS / 4  # near a top the steps are halved
    assert together.size[2] == together.size.min()  # a flat loss never climbs
    start = ball.random(torch.Generator().manual_seed(1))
    alone, x = AutoPGD(Ball(IMAGES[:1], EPS), 40), start[:1]
    for t in range(40):
        x = alone.move(x, *uphill(lambda x: -(x - top[:1]).square().flatten(1).sum(1), x), t)
    torch.testing.assert_close(alone.answer[0], found[0])


def test_what_is_no_number_is_never_the_best() -> None:
    ball = Ball(IMAGES, EPS)
    auto = AutoPGD(ball, 4)
    start = ball.random(GEN)
    x = auto.move(start, torch.ones(4), torch.ones(IMAGES.shape), 0)
    auto.move(x, torch.full((4,), torch.nan), torch.ones(IMAGES.shape), 1)
    assert torch.equal(auto.answer, start)
