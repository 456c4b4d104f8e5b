"""Attacks by gradient on victims whose best patch is known."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from edgeq.attacks.base import AbstractPatchAttack, Ascent, climb
from edgeq.attacks.eot import pixels
from edgeq.attacks.gap import GAP
from edgeq.attacks.goal import Goal
from edgeq.attacks.lavan import LAVAN
from edgeq.attacks.located import Located, Race, training_attack
from edgeq.attacks.patch import cut, mask
from edgeq.attacks.perimage import draw_weighted, window_sums
from edgeq.attacks.victim import Surrogate, surrogate
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from tests.attacks.conftest import SIDE, Linear, Region, random_images

BLACK = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)
ZEROS = torch.zeros(4, dtype=torch.int64)
SHORT = Ascent(steps=14, step=0.1)

ATTACKS: tuple[AbstractPatchAttack, ...] = (
    Located(size=4, ascent=SHORT),
    Located(size=4, ascent=SHORT, place="random", start="random", restarts=2, move_every=5),
    Located(size=4, ascent=replace(SHORT, rule="sign"), place="gradient", start="grey", region="border"),
    LAVAN(size=4, ascent=SHORT),
    LAVAN(size=4, ascent=SHORT, universal=True),
    GAP(size=4, ascent=SHORT),
    training_attack(4),
    Located(size=4, ascent=SHORT, race=Race(3, Ascent(2, 0.2, "sign"), 2, 2, Ascent(3))),
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_same_seed_gives_the_same_patch_of_bytes_and_the_rest_keeps_its_bits(
    attack: AbstractPatchAttack, net: MultiBitNet
) -> None:
    images, goal = random_images(5), Goal(torch.tensor([0, 1, 2, 3, 0]))
    result = attack.run(surrogate(net, 4), images, goal, seed=3)
    again = attack.run(surrogate(net, 4), images, goal, seed=3)
    assert torch.equal(result.patch, again.patch)
    assert torch.equal((result.patch * 255).round() / 255, result.patch)
    assert bool(((result.patch >= 0) & (result.patch <= 1)).all())
    attacked = result.on(images)
    assert attacked.dtype == torch.uint8
    if result.places is not None:
        hidden = mask(result.places, 4, (SIDE, SIDE)).expand_as(images)
        assert torch.equal(attacked[~hidden], images[~hidden])
        assert torch.equal(cut(attacked, result.places, 4), (result.patch * 255).round().to(torch.uint8))
    assert result.flat == 0.0
    assert int(result.queries.min()) > 0


def test_a_linear_model_gets_the_analytic_patch_at_the_analytic_place() -> None:
    victim, goal = Linear(), Goal.towards(ZEROS, 1)
    result = Located(size=4, ascent=Ascent(steps=0)).run(victim, BLACK, goal)
    gains = window_sums(victim.weight.clamp_min(0)[None], 4)[0]  # from black, an optimal patch gains sum max(w, 0)
    assert result.places is not None
    best = int(gains.argmax())
    assert (int(result.places.top[0]), int(result.places.left[0])) == (best // gains.shape[1], best % gains.shape[1])
    template = cut(victim.weight[None].expand(4, -1, -1, -1), result.places, 4)
    assert torch.equal(result.patch, (template > 0).float())


@pytest.mark.parametrize("rule", ["adam", "sign"])
def test_steps_reach_the_analytic_patch_from_noise(rule) -> None:
    victim, goal = Linear(), Goal.towards(ZEROS, 1)
    attack = Located(size=4, ascent=Ascent(steps=20, step=0.1, rule=rule), place="random", start="random")
    result = attack.run(victim, BLACK, goal)
    assert result.places is not None
    template = cut(victim.weight[None].expand(4, -1, -1, -1), result.places, 4)
    assert torch.equal(result.patch, (template > 0).float())


def test_a_universal_patch_at_one_place_is_the_sign_of_the_template() -> None:
    victim, goal = Linear(), Goal.towards(ZEROS, 1)
    result = GAP(size=4, ascent=SHORT, eot=pixels(region=(3, 5)), loss="margin").run(victim, BLACK, goal)
    assert torch.equal(result.patch[0], (victim.weight[:, 3:7, 5:9] > 0).float())


def test_moves_climb_to_the_place_that_matters() -> None:
    victim, goal = Region(), Goal(ZEROS)
    still = Located(size=4, ascent=Ascent(40), place="random", start="random", region="anywhere")
    moving = replace(still, move_every=2, stride=1)
    seen = [attack.run(victim, BLACK, goal, seed=2).score for attack in (still, moving)]
    assert bool((seen[1] >= seen[0]).all()) and bool((seen[1] > seen[0]).any())


def test_a_patch_over_the_region_flips_it_and_one_elsewhere_cannot() -> None:
    goal = Goal(ZEROS)
    over = Located(size=4, ascent=SHORT).run(Region(), BLACK, goal)
    assert over.places is not None
    assert bool(goal.reached(Region()(over.on(BLACK.float() / 255))).all())
    elsewhere = Located(size=4, ascent=SHORT, region=(8, 0)).run(Region(), BLACK, goal)
    assert not bool(goal.reached(Region()(elsewhere.on(BLACK.float() / 255))).any())


class Misleading:
    """Weak evidence at the top left has a gradient; what flips the answer, a bright bottom right, has none on black."""

    def __call__(self, images: Tensor) -> Tensor:
        lured = 0.1 * images[:, :, :4, :4].mean((1, 2, 3))
        decisive = (images[:, :, 8:12, 8:12].mean((1, 2, 3)) - 0.2).clamp_min(0.0)
        return torch.stack([torch.full_like(lured, 0.15), lured + decisive], 1)


def test_scouts_find_the_place_that_the_gradient_hides() -> None:
    goal = Goal(ZEROS)
    led = Located(size=4, ascent=SHORT)
    scouted = replace(led, scouts=200)
    assert not bool((led.run(Misleading(), BLACK, goal).score >= 1).any())
    found = scouted.run(Misleading(), BLACK, goal)
    assert bool((found.score >= 1).all())
    assert int(found.queries[0]) == 1 + 201 + 15  # the gradient, the scouts and the own start, the steps and the end


def test_a_scout_is_kept_only_where_it_is_better(net: MultiBitNet) -> None:
    images, goal, victim = random_images(8), Goal(torch.arange(8) % 4), surrogate(net, 2)
    ask = Located(size=3, ascent=Ascent(0))
    scores = [replace(ask, scouts=scouts).run(victim, images, goal).score for scouts in (0, 1, 4, 16)]
    assert all(bool((b >= a).all()) for a, b in pairwise(scores))
    assert bool((scores[-1] > scores[0]).any())


def test_a_weighted_place_follows_its_weights_and_keeps_to_what_is_allowed() -> None:
    free = torch.ones(2, 3, dtype=torch.bool)
    free[0, 0] = False
    weights = torch.tensor([[9.0, 1.0, 0.0], [2.0, 0.0, 1.0]]).expand(4000, -1, -1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    places = draw_weighted(weights, free, uniform)
    share = torch.bincount(3 * places.top + places.left, minlength=6) / 4000
    assert torch.allclose(share, torch.tensor([0.0, 0.25, 0.0, 0.5, 0.0, 0.25]), atol=0.03)
    nowhere = draw_weighted(torch.zeros(4000, 2, 3), free, uniform)
    assert set((3 * nowhere.top + nowhere.left).tolist()) == {1, 2, 3, 4, 5}


def test_a_race_never_loses_what_was_found_and_asks_only_about_what_is_left(net: MultiBitNet) -> None:
    images = random_images(40)
    with torch.no_grad():
        goal = Goal(surrogate(net, 4)(images).argmax(1))
    alone = Located(size=1, ascent=Ascent(1), place="random", start="random")
    heat = Ascent(3, 0.2, "sign", decay=True)
    raced = replace(alone, race=Race(6, heat, scouts=2, finalists=2, final=Ascent(4)))
    before, after = (attack.run(surrogate(net, 4), images, goal) for attack in (alone, raced))
    assert bool((after.score >= before.score).all())
    assert int((after.score >= 1).sum()) > int((before.score >= 1).sum())
    won = before.score >= 1
    assert bool(won.any())
    assert torch.equal(after.queries[won], before.queries[won])
    assert torch.equal(after.patch[won], before.patch[won])
    # a heat: the start, two scouts, three steps and the end; a final: four steps and the end
    left = after.score < 1
    assert set((after.queries - before.queries)[left].tolist()) == {6 * (1 + 2 + 3 + 1) + 2 * (4 + 1)}


def test_restarts_never_lose_what_was_found(net: MultiBitNet) -> None:
    images, goal = random_images(8), Goal(torch.arange(8) % 4)
    few, many = (
        Located(size=3, ascent=Ascent(4), restarts=r).run(surrogate(net, (4, 2)), images, goal) for r in (1, 4)
    )
    assert bool((many.score >= few.score).all())
    done = few.score >= 2  # both members fooled: no restart
    assert torch.equal(many.queries[done], few.queries[done])
    assert bool((many.queries[~done] > few.queries[~done]).all())


@pytest.mark.parametrize(
    "attack",
    [
        Located(size=4, ascent=Ascent(4), place="random", start="random", restarts=2, move_every=2),
        Located(size=4, ascent=Ascent(2), scouts=5, restarts=2),
        Located(size=4, ascent=Ascent(2), race=Race(3, Ascent(2, 0.2, "sign"), 2, 2, Ascent(3)), move_every=2),
        LAVAN(size=4, ascent=Ascent(3)),
    ],
)
def test_batched_equals_one_by_one(attack: AbstractPatchAttack, net: MultiBitNet) -> None:
    images, goal = random_images(3), Goal(torch.tensor([0, 1, 2]))
    whole = attack.run(surrogate(net, 2), images, goal)
    single = replace(attack, batch_size=1).run(surrogate(net, 2), images, goal)  # type: ignore[call-arg]
    assert torch.equal(whole.patch, single.patch)
    assert torch.equal(whole.score, single.score)


def test_the_score_is_what_the_victim_says_of_the_bytes(net: MultiBitNet) -> None:
    images, goal = random_images(6), Goal(torch.arange(6) % 4)
    victim = surrogate(net, 2)
    result = Located(size=4, ascent=SHORT, restarts=2).run(victim, images, goal)
    with torch.no_grad():
        assert torch.equal(goal.rank(victim(result.on(images))), result.score)


def test_an_attack_leaves_the_network_as_it_was(net: MultiBitNet) -> None:
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net.train()
    try:
        attacked = training_attack(4).run(surrogate(net), random_images(5), Goal(torch.zeros(5).long()), seed=(0, 1))
        assert net.training and not net.width.deployed and net.width.bits == max(net.bits)
    finally:
        net.eval()
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    again = training_attack(4).run(surrogate(net), random_images(5), Goal(torch.zeros(5).long()), seed=(0, 1))
    assert torch.equal(attacked.patch, again.patch)  # training mode attacks the deployed arithmetic too


def test_a_constant_victim_ends_with_flat_gradients_and_no_success() -> None:
    def constant(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(images), -1)

    for attack in ATTACKS:
        result = attack.run(constant, BLACK, Goal(ZEROS))
        assert result.flat == 1.0
    assert not bool((Located(size=4, ascent=SHORT).run(constant, BLACK, Goal(ZEROS)).score > 1).any())


def test_not_a_number_in_a_gradient_counts_as_flat_and_stays_out_of_the_patch() -> None:
    def broken(images: Tensor) -> Tensor:
        red = (images[:, 0] * 0).sum((1, 2)).sqrt()  # the derivative of sqrt at 0 is infinite, times 0
        return torch.stack([red, -red], 1)

    result = LAVAN(size=4, ascent=SHORT).run(broken, BLACK, Goal(ZEROS))
    assert result.flat == 1.0
    assert bool(result.patch.isfinite().all())


def test_a_universal_patch_needs_images_of_another_class(net: MultiBitNet) -> None:
    with pytest.raises(InputError, match="other classes than the target"):
        GAP(size=4, ascent=SHORT).run(surrogate(net, 4), BLACK, Goal.towards(ZEROS, 0))


def test_patches_per_image_want_their_images(net: MultiBitNet) -> None:
    result = Located(size=4, ascent=Ascent(1)).run(surrogate(net, 4), BLACK, Goal(ZEROS))
    with pytest.raises(InputError, match="4 attacked images"):
        result.on(BLACK[:2])


def test_progress_is_called_once_a_step(net: MultiBitNet) -> None:
    calls: list[tuple[int, int, float]] = []
    GAP(size=4, ascent=Ascent(5)).run(
        surrogate(net, 4), BLACK, Goal(ZEROS), progress=lambda done, total, loss: calls.append((done, total, loss))
    )
    assert [call[:2] for call in calls] == [(k, 5) for k in range(1, 6)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Ascent(steps=-1),
        lambda: Ascent(step=0.0),
        lambda: Located(restarts=0),
        lambda: Located(restarts=2, keep="last"),
        lambda: Located(race=Race(), keep="last"),
        lambda: Race(starts=2, finalists=3),
        lambda: Surrogate(None, ()) and Located(move_every=-1),  # type: ignore[arg-type]
        lambda: Located(scouts=-1),
    ],
)
def test_wrong_choices_are_refused(wrong) -> None:
    with pytest.raises((InputError, TypeError)):
        wrong()


def _directions(ascent: Ascent, slopes: list[float]) -> list[float]:
    """Return how a grey pixel moves where the loss has these slopes, one a step."""
    patch = torch.full((1, 1, 1, 1), 0.5)
    seen: list[float] = []

    def score(variable: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(float(variable.detach()))
        return (slopes[t] * variable).flatten(1).sum(1), variable

    seen.append(float(climb(patch, score, ascent).patch))
    return [round(b - a, 4) for a, b in pairwise(seen)]


def test_momentum_outvotes_one_batch_and_not_two() -> None:
    steps = Ascent(steps=4, step=0.01, rule="sign", momentum=0.9)
    assert _directions(steps, [1.0, -5.0, -5.0, -5.0]) == [0.01, -0.01, -0.01, -0.01]  # 0.9 - 1 < 0: no size counts
    assert _directions(steps, [1.0, 1.0, -5.0, -5.0]) == [0.01, 0.01, 0.01, -0.01]  # 1.71 - 1, then 0.64 - 1
    plain = Ascent(steps=3, step=0.01, rule="sign")
    assert _directions(plain, [1.0, 1.0, -5.0]) == [0.01, 0.01, -0.01]


def test_momentum_belongs_to_the_rule_sign() -> None:
    with pytest.raises(InputError, match="momentum from 0 to below 1 with the rule sign"):
        Ascent(momentum=0.9)
    with pytest.raises(InputError, match="momentum from 0 to below 1"):
        Ascent(rule="sign", momentum=1.0)
