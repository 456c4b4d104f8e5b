import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.attacks.goal import Goal
from edgeq.attacks.success import Success, robust, success, untargeted, wilson
from edgeq.errors import InputError


def _logits(*named: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(named), 3).float()


def test_only_images_that_were_right_and_not_of_the_target_count() -> None:
    goal = Goal.towards(torch.tensor([0, 0, 0, 1, 2, 2]), 1)
    clean = _logits(0, 0, 2, 1, 2, 2)  # the third is wrong from the start, the fourth is of the target class
    attacked = _logits(1, 2, 1, 0, 1, 2)
    assert success(clean, attacked, goal) == Success(2, 4)
    assert untargeted(clean, attacked, goal) == Success(4, 5)
    assert success(clean, attacked, Goal(goal.labels)) == Success(4, 5)
    assert robust(clean, attacked, goal) == Success(1, 6)


@pytest.mark.parametrize(
    ("wins", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(wins: int, total: int, low: float, high: float) -> None:
    assert wilson(wins, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_interval_holds_the_rate_and_mirrors(wins: int, total: int) -> None:
    wins = min(wins, total)
    low, high = Success(wins, total).interval()
    assert 0.0 <= low <= wins / total <= high <= 1.0
    assert (1 - high, 1 - low) == pytest.approx(wilson(total - wins, total), abs=1e-12)


def test_no_image_counts_for_nothing() -> None:
    assert Success(0, 0).rate == 0.0 and Success(0, 0).interval() == (0.0, 1.0)
    with pytest.raises(InputError, match="wins between"):
        Success(3, 2)
