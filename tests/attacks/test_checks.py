"""Each warning is given when it should be, and not otherwise."""

import torch
from torch import Tensor

from edgeq.attacks.base import Ascent, PatchResult
from edgeq.attacks.checks import check_blackbox, check_climb, check_gradients, check_growth, check_paired, check_victim
from edgeq.attacks.goal import Goal
from edgeq.attacks.located import Located
from edgeq.attacks.success import Success
from edgeq.attacks.victim import surrogate
from edgeq.quant.network import MultiBitNet
from tests.attacks.conftest import Linear, random_images

IMAGES = random_images(4)
GOAL = Goal(torch.zeros(4, dtype=torch.int64))
ATTACK = Located(size=4, ascent=Ascent(5))


def _rounded(images: Tensor) -> Tensor:
    return Linear()((images * 255).round() / 255)  # rounding without a straight-through gradient


def test_rounding_without_a_gradient_is_noticed() -> None:
    (warning,) = check_gradients(ATTACK.run(_rounded, IMAGES, GOAL), name="located")
    assert "100 %" in warning and "straight-through" in warning


def test_pixels_that_clipping_holds_are_noticed() -> None:
    def clipped(images: Tensor) -> Tensor:
        return Linear()(images.clamp(0.4, 0.6))

    (warning,) = check_gradients(ATTACK.run(clipped, IMAGES, GOAL))
    assert "pixels are zero" in warning


def test_a_sound_attack_gives_no_warning(net: MultiBitNet) -> None:
    result = ATTACK.run(surrogate(net, 2), IMAGES, GOAL)
    assert check_gradients(result) == []
    assert check_victim(surrogate(net, 2), IMAGES.float() / 255) == []


def _trace(*losses: float) -> PatchResult:
    one = torch.zeros(1)
    return PatchResult(torch.zeros(1, 3, 2, 2), None, None, one.double(), one.long(), losses)


def test_a_loss_that_does_not_climb_is_noticed() -> None:
    assert check_climb(_trace(0.0, 1.0, 2.0)) == []
    assert "does not climb" in check_climb(_trace(2.0, 1.0, 0.5, 0.2))[0]


def test_a_black_box_that_beats_the_white_box_is_noticed() -> None:
    assert check_blackbox(Success(50, 100), Success(55, 100)) == []  # within chance
    assert "gradients are masked" in check_blackbox(Success(10, 100), Success(55, 100))[0]


def test_success_that_does_not_grow_is_noticed() -> None:
    grows = {4: Success(10, 100), 6: Success(40, 100), 8: Success(70, 100)}
    assert check_growth(grows, budget="patch side") == []
    assert check_growth({4: Success(97, 100), 8: Success(97, 100)}, budget="patch side") == []  # no room
    (stuck,) = check_growth({10: Success(30, 100), 100: Success(30, 100)}, budget="steps")
    assert "does not grow" in stuck and "from 10 to 100" in stuck
    (falls,) = check_growth({4: Success(60, 100), 8: Success(20, 100)}, budget="patch side")
    assert "falls from 60.0 % to 20.0 %" in falls


def test_a_victim_that_is_random_or_gives_probabilities_is_noticed() -> None:
    images = IMAGES.float() / 255
    assert "randomised" in check_victim(lambda x: Linear()(x) + torch.randn(len(x), 1), images)[0]
    assert "probabilities" in check_victim(lambda x: (Linear()(x) / 1000).softmax(1), images)[0]
    assert "not finite" in check_victim(lambda x: Linear()(x) * torch.inf, images)[0]


def test_other_patches_that_fool_other_images_are_counted_in_pairs() -> None:
    white = torch.arange(100) < 80
    assert check_paired(white, white) == []
    assert check_paired(white, torch.arange(100) < 84) == []  # 4 to 0: one in sixteen by chance
    assert "fools 90 of 100 images, the white-box attack only 80" in check_paired(white, torch.arange(100) < 90)[0]
    assert check_paired(white, torch.arange(100) >= 15) == []  # 20 to 15
    assert check_paired(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)) == []
