import pytest
import torch

from edgeq.attacks.goal import Goal, check_goal
from edgeq.errors import InputError
from tests.attacks.conftest import random_images

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0], [1.0, 5.0, 4.0]])
LABELS = torch.tensor([0, 2, 1])


def test_margins_are_positive_where_the_goal_is_reached() -> None:
    assert Goal(LABELS).margins(LOGITS).tolist() == [-2.0, 0.0, -1.0]
    assert Goal.towards(LABELS, 1).margins(LOGITS).tolist() == [-2.0, 0.0, 1.0]


def test_the_logit_loss_pushes_target_up_and_source_down() -> None:
    logits = LOGITS.clone().requires_grad_()
    Goal.towards(LABELS, 0).loss(logits, "logits")[1].backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [1.0, 0.0, -1.0]


def test_ties_go_to_the_first_class_as_on_the_device() -> None:
    assert Goal(LABELS).reached(LOGITS).tolist() == [False, True, False]  # image 1: class 1 is named before class 2
    assert Goal.towards(LABELS, 2).reached(LOGITS).tolist() == [False, False, False]


def test_cross_entropy_rises_with_success() -> None:
    torch.testing.assert_close(
        Goal(LABELS).loss(LOGITS, "cross-entropy"), torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    )
    towards = Goal.towards(LABELS, 1).loss(LOGITS, "cross-entropy")
    torch.testing.assert_close(towards, LOGITS.log_softmax(1)[:, 1])


FOUR = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.5, 2.0, 1.0], [1.0, 5.0, 4.0, 4.5]])


def test_the_logit_ratio_is_the_margin_over_the_spread_of_the_largest() -> None:
    expected = torch.tensor([-2.0 / 3.0, 0.5 / 1.5, -0.5 / 1.0])
    torch.testing.assert_close(Goal(LABELS).loss(FOUR, "dlr"), expected)
    towards = torch.tensor([-2.0 / 3.5, (2.5 - 2.0) / (2.5 - 0.5), 0.0])
    torch.testing.assert_close(Goal.towards(LABELS, 1).loss(FOUR, "dlr"), towards)


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 0, 2])])
@pytest.mark.parametrize("logits", [FOUR, LOGITS])
def test_the_logit_ratio_hangs_neither_on_scale_nor_on_shift(logits: torch.Tensor, targets: torch.Tensor) -> None:
    goal = Goal(LABELS, targets)
    torch.testing.assert_close(goal.loss(100 * logits - 7, "dlr"), goal.loss(logits, "dlr"), rtol=1e-4, atol=1e-5)


def test_the_logit_ratio_of_two_classes_is_the_margin() -> None:
    goal = Goal(torch.tensor([0, 0, 1]))
    assert torch.equal(goal.loss(LOGITS[:, :2], "dlr"), goal.margins(LOGITS[:, :2]))


def test_an_ensemble_counts_fooled_members_first() -> None:
    goal = Goal(torch.tensor([0, 0]))
    both = torch.tensor([[[1.0, 1.1], [0.0, 90.0]], [[1.0, 1.1], [5.0, 4.9]]])
    rank = goal.rank(both)
    assert rank[0] > 2 and 1 < rank[1] < 2  # two narrow wins beat one huge one
    assert goal.loss(both, "margin").shape == (2,)


@pytest.mark.parametrize(
    ("images", "goal"),
    [
        (random_images(2), Goal(LABELS)),
        (random_images(3).float(), Goal(LABELS)),
        (random_images(3).float() * torch.nan, Goal(LABELS)),
        (random_images(3).int(), Goal(LABELS)),
        (random_images(0), Goal(LABELS[:0])),
    ],
)
def test_what_does_not_fit_is_refused(images: torch.Tensor, goal: Goal) -> None:
    with pytest.raises(InputError, match="expected"):
        check_goal(goal, images)
