"""Poisons where the best ones are known in closed form; budgets in bytes; what counts as success."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeq.data import Split
from edgeq.errors import InputError
from edgeq.models import resnet8
from edgeq.poison import Bullseye, Descent, GradientMatching, Narcissus, Scene, Targets, Trigger, successes
from edgeq.poison.base import shifted, within
from edgeq.poison.bullseye import distance, transfer_set
from edgeq.poison.goals import stamp
from edgeq.poison.gradient_matching import Learner, learner, mismatch
from edgeq.poison.networks import named
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet, QuantConfig
from tests.poison.conftest import SIDE, Mean, Planes, noise

QUICK = Bullseye(poisons=3, per_class=0, descent=Descent(steps=60, step=4 / 255))


def _near(bases: Tensor, step: int) -> Tensor:
    """An image whose channel means lie `step` bytes above those of the bases: just within eps = step of them all."""
    mean = bases.float().mean((0, 2, 3)).round()
    return (mean[None, :, None, None] + step).expand(1, 3, SIDE, SIDE).to(torch.uint8)


def test_bullseye_reaches_the_target_where_the_budget_allows() -> None:
    bases = noise(3)
    found, losses = replace(QUICK, eps=8).craft([Mean()], bases, _near(bases, 7))
    assert losses[0] > 1e-3
    aim = Mean()(_near(bases, 7) / 255)[0]
    assert losses[-1] < 1e-6
    apart = (Mean()(found / 255).mean(0) - aim).abs()
    assert float(apart.max()) * 255 < 0.51  # all bytes may round the same way, by half a step at most


def test_beyond_the_budget_bullseye_goes_to_its_edge() -> None:
    bases = noise(3)
    found, _ = replace(QUICK, eps=2).craft([Mean()], bases, _near(bases, 40))
    assert torch.equal(found, bases + 2)  # the unique optimum of a mean: every byte as far as it may


def test_bullseye_uses_its_target() -> None:
    bases = noise(3)
    up, _ = QUICK.craft([Mean()], bases, _near(bases, 30))
    down, _ = QUICK.craft([Mean()], bases, (_near(bases, 0).int() - 30).to(torch.uint8))
    assert torch.equal(up, bases + 8)
    assert torch.equal(down, bases - 8)


def test_bullseye_has_the_mean_over_networks() -> None:
    bases = noise(3)
    aim = _near(bases, 30)
    here = [Mean(), lambda images: 1.0 - Mean()(images)]
    both, losses = QUICK.craft(here, bases, aim)
    single = [QUICK.craft([m], bases, aim)[1][0] for m in here]
    assert losses[0] == pytest.approx(sum(single) / 2, rel=1e-5)
    assert torch.equal(both, bases + 8)


def test_the_distance_is_relative_to_the_target_and_of_the_mean() -> None:
    poisons = torch.tensor([[1.0, 0.0], [3.0, 2.0]])  # mean (2, 1)
    assert float(distance(poisons, torch.tensor([2.0, 3.0]))) == pytest.approx(4 / 13)


def test_the_trigger_of_a_linear_classifier_is_the_sign_of_its_weights() -> None:
    victim, images = Planes(), noise(20)
    attack = Narcissus(eps=5, shift=0, batch_size=8, descent=Descent(steps=30, step=2 / 255, rule="sign"))
    up, _ = attack.craft([victim], images, 1)
    down, _ = attack.craft([victim], images, 0)
    assert torch.equal(up, (5 * victim.weight.sign()).to(torch.int16))
    assert torch.equal(down, -up)


def _linear() -> Learner:
    weight = torch.randn(3, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(5)) / 20
    weight.requires_grad_()
    return Learner(lambda x: x.flatten(1) @ weight.T, (weight,))


def test_the_gradient_of_a_linear_classifier_is_the_outer_product() -> None:
    one, image = _linear(), noise(1) / 255
    error = one.logits(image).softmax(1)[0] - torch.tensor([0.0, 1.0, 0.0])
    wanted = torch.outer(error, image.flatten()).flatten()
    found = one.gradient(image, torch.tensor([1]))
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-6)  # sums in another order


def test_equal_gradients_match_and_opposite_ones_do_not(scene: Scene) -> None:
    one, images = learner(scene.nets[0]), scene.test.images[:2] / 255
    a, b = (one.gradient(images[k : k + 1], torch.tensor([3])) for k in (0, 1))
    assert float(mismatch(a, a)) == pytest.approx(0, abs=1e-4)  # float32 sums over 78 thousand parameters
    assert float(mismatch(a, -a)) == pytest.approx(2, abs=1e-4)
    assert float(mismatch(a, b)) > 1e-3


MATCHING = GradientMatching(shift=0, restarts=1, descent=Descent(steps=150, step=2 / 255, rule="signed-adam"))


def test_gradient_matching_becomes_the_target_where_the_budget_allows() -> None:
    target = noise(1, seed=7)
    moves = torch.randint(-8, 9, target.shape, generator=torch.Generator().manual_seed(1))
    base = (target.int() + moves).to(torch.uint8)  # the target itself is within eps, with a mismatch of 0
    found, losses = MATCHING.craft([_linear()], base, target, 1)
    assert losses[-1] < losses[0] / 10
    assert losses[-1] < 5e-4
    other, _ = MATCHING.craft([_linear()], base, noise(1, seed=8), 1)
    assert not torch.equal(found, other)  # the target is used


def test_more_starts_are_no_worse() -> None:
    target, bases, few = noise(1, seed=7), noise(3), Descent(steps=4, step=1 / 255, rule="signed-adam")
    aim = _linear().gradient(target / 255, torch.tensor([1]))
    better = []
    for seed in ("a", "b", "c"):
        attacks = [replace(MATCHING, restarts=k, descent=few) for k in (1, 4)]
        made = [attack.craft([_linear()], bases, target, 1, seed=seed) for attack in attacks]
        ends = [float(mismatch(aim, _linear().gradient(x / 255, torch.ones(3).long()))) for x, _ in made]
        assert ends[1] <= ends[0]
        better.append(ends[1] < ends[0])
    assert any(better)


@given(st.integers(0, 1 << 20), st.integers(1, 255), st.floats(0.01, 3.0))
def test_no_byte_leaves_the_budget(seed: int, eps: int, size: float) -> None:
    images = noise(2, seed=seed, low=0, high=256)
    change = size * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    moved = (within(images, change, eps=eps).int() - images.int()).abs()
    assert int(moved.max()) <= eps
    inside = (images.int() - eps >= 0) & (images.int() + eps <= 255) & (change.abs() * 255 >= eps)
    assert bool((moved[inside] == eps).all())  # and none of it is given away


@settings(max_examples=10)
@given(st.integers(1, 20), st.integers(0, 100))
def test_crafted_images_stay_in_the_budget(eps: int, seed: int) -> None:
    bases = noise(3, seed=seed, low=0, high=256)
    found, _ = replace(QUICK, eps=eps, descent=Descent(steps=3, step=0.5)).craft([Mean()], bases, noise(1, seed=99))
    assert int((found.int() - bases.int()).abs().max()) <= eps
    attack = Narcissus(eps=eps, batch_size=4, descent=Descent(steps=3, step=0.5))
    pattern, _ = attack.craft([Planes()], bases, 1)
    assert int(pattern.abs().max()) <= eps
    matched, _ = replace(MATCHING, eps=eps, descent=Descent(steps=2, step=0.5)).craft([_linear()], bases, noise(1), 1)
    assert int((matched.int() - bases.int()).abs().max()) <= eps


@pytest.mark.parametrize("attack", [QUICK, Narcissus(batch_size=8), replace(MATCHING, poisons=3)])
def test_attacks_on_a_network_touch_only_what_they_say_and_depend_on_the_seed(attack, scene: Scene) -> None:
    attack = replace(attack, descent=Descent(steps=3))
    found, again = attack.run(scene), attack.run(scene)
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.index, again.index)
    other = attack.run(replace(scene, seed=1))
    assert not torch.equal(other.index, found.index) or not torch.equal(other.images, found.images)
    assert set(scene.train.labels[found.index].tolist()) == {found.goal.label}  # clean labels
    dirty = found.put_into(scene.train)
    moved = (dirty.images.int() - scene.train.images.int()).abs().flatten(1).amax(1)
    assert int(moved.max()) <= attack.eps
    assert set(moved.nonzero()[:, 0].tolist()) <= set(found.index.tolist())
    assert bool((moved[found.index] > 0).all())
    assert torch.equal(dirty.labels, scene.train.labels)


def test_targets_are_named_rightly_and_differ(scene: Scene) -> None:
    attack = replace(QUICK, descent=Descent(steps=1))
    goals = [attack.run(replace(scene, number=n)).goal for n in range(3)]
    seen = set()
    for goal in goals:
        assert isinstance(goal, Targets)
        assert torch.equal(named(scene.nets[0], goal.images), goal.labels)
        assert goal.label != int(goal.labels)
        seen.add(goal.images.numpy().tobytes())
    assert len(seen) == 3


def test_success_counts_no_image_of_the_wanted_class() -> None:
    images, labels = noise(6), torch.tensor([0, 0, 1, 1, 1, 2])
    goal = Trigger(torch.zeros(3, SIDE, SIDE, dtype=torch.int16), 1)
    always = successes(goal, Split(images, labels), lambda x: torch.ones(len(x), dtype=torch.int64))
    assert {(s.wins, s.total) for s in always.values()} == {(3, 3)}
    shown = goal.shown(Split(images, labels))["x0"]
    assert torch.equal(shown, images[[0, 1, 5]])


def test_a_trigger_is_added_times_its_strength() -> None:
    images = torch.full((1, 3, SIDE, SIDE), 250, dtype=torch.uint8)
    pattern = torch.full((3, SIDE, SIDE), 3, dtype=torch.int16)
    pattern[0] = -100
    named_ = Trigger(pattern, 1).shown(Split(images, torch.tensor([0])))
    assert [int(named_[f"x{k}"][0, 1, 0, 0]) for k in range(4)] == [250, 253, 255, 255]
    assert [int(named_[f"x{k}"][0, 0, 0, 0]) for k in range(4)] == [250, 150, 50, 0]
    assert torch.equal(stamp(images, pattern), named_["x1"])


def test_single_images_are_counted_as_they_are_named() -> None:
    goal = Targets(noise(1), torch.tensor([0]), 2)
    test = Split(noise(2), torch.tensor([0, 1]))
    for said, wins in ((2, 1), (0, 0)):
        counted = successes(goal, test, lambda x, said=said: torch.full((len(x),), said))
        assert (counted["target"].wins, counted["target"].total) == (wins, 1)


def test_the_transfer_set_is_the_last_of_each_class() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    assert transfer_set(labels, 2).tolist() == [2, 3, 4, 5]
    assert transfer_set(labels, 0).tolist() == list(range(6))


def test_shifts_move_whole_images_and_let_gradients_through() -> None:
    images = (noise(4) / 255).requires_grad_()
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    for before, after in zip(images.detach(), moved.detach(), strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2), value=128 / 255)
        windows = padded.unfold(1, SIDE, 1).unfold(2, SIDE, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert bool((windows == after).flatten(1).all(1).any())
    (grad,) = torch.autograd.grad(moved.sum(), (images,))
    assert set(grad.flatten().tolist()) == {0.0, 1.0}
    assert shifted(images, 0, torch.Generator()) is images


def _without_float() -> MultiBitNet:
    return multibit(resnet8(), image_shape=(3, 32, 32), config=QuantConfig(bits=(4,)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda scene: Bullseye(eps=0), "eps from 1 to 255"),
        (lambda scene: Bullseye(poisons=0), "poisons"),
        (lambda scene: Narcissus(batch_size=0), "batch size"),
        (lambda scene: GradientMatching(restarts=0), "restarts"),
        (lambda scene: learner(_without_float()), "width 32"),
        (lambda scene: Descent(steps=0), "steps of 1"),
        (lambda scene: replace(scene, nets=()), "expected surrogates"),
        (lambda scene: Narcissus(poisons=1000).run(scene), "at least 1000 images"),
        (lambda scene: Narcissus().run(replace(scene, number=10)), "below 10, got 10"),
        (lambda scene: Bullseye(poisons=30, per_class=20).run(scene), "at least 30 images"),
        (lambda scene: Bullseye().run(replace(scene, number=5000)), "names rightly"),
    ],
)
def test_wrong_choices_are_refused(wrong, words: str, scene: Scene) -> None:
    with pytest.raises((InputError,), match=words):
        wrong(scene)
