"""PerturbShield: its losses, what they reach, and what attacks make of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.attacks.pipeline import Effort, attack_pipeline, right
from edgeq.attacks.pipeline_report import Assault, bare_accuracy, published_accuracy, withstood
from edgeq.errors import InputError
from edgeq.files import load_tensors
from edgeq.purifiers import Draw, load_guard, load_purifier, shielded, srl_from, towers_of, train_purifier
from edgeq.purifiers.guarded import GuardedTowers
from edgeq.purifiers.shield import ShieldObjective
from edgeq.purifiers.shielded import SHIELD_WAYS
from edgeq.training import Interrupted
from tests.purifiers.conftest import SIDE, config, dataset, images, labels, tiny_shield
from tests.stopping import on_call

SHAPE = (3, SIDE, SIDE)
QUICK = Effort(steps=1, starts=1, queries=2)


def _objective(start: Path, **changes: object) -> ShieldObjective:
    method = tiny_shield(start, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.objective(method.build(SHAPE, 16), 3e-3)


def _guard(run: Path) -> GuardedTowers:
    guard = load_guard(run)[1]
    assert isinstance(guard, GuardedTowers)
    return guard


def _l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the unit vectors of two stacks."""
    unit = [x / x.square().sum(-1, keepdim=True).sqrt() for x in (a, b)]
    return (unit[0] - unit[1]).abs().mean()


def test_the_losses_are_those_of_the_paper(towers_run: Path) -> None:
    objective = _objective(towers_run, fusion=0.25, beta=0.4)
    guard, y = objective.purifier.train(), labels(16)
    x = images(16).float() / 255
    objective.losses(x, y)  # starts the codebook
    assert guard.shield is not None
    latent = guard.shield.encoder(guard.look(x)[1])
    before = guard.shield.codebook.words.clone()  # type: ignore[union-attr]
    parts = objective.losses(x, y)

    vectors = latent.permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = before[torch.cdist(vectors, before).argmin(1)]
    words = nearest.view(16, SIDE // 4, SIDE // 4, 4).permute(0, 3, 1, 2)
    seen, grid = guard.look(x)
    rebuilt = guard.shield.decoder(words)
    weight, bias = guard.shield.places.weight[0], guard.shield.places.bias
    drawn = (rebuilt.flatten(2) * weight).sum(2) + bias
    texts, spoken = guard.texts(), guard.get_buffer("spoken")
    cosine = [(f / f.norm(dim=1, keepdim=True)) @ texts.T for f in (seen, drawn)]
    logits = guard.towers.scale * (0.75 * cosine[0] + 0.25 * cosine[1])
    by_hand = {
        "cross_entropy": -logits.log_softmax(1)[torch.arange(16), y].mean(),
        "reconstruction": (rebuilt - grid).square().mean(),
        "image": _l1(drawn, seen),
        "commitment": 0.4 / 4 * (vectors - nearest).square().mean(),
        "text": _l1(texts, spoken),
    }
    assert parts.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)  # other orders of summation


def test_a_step_weighs_the_parts(towers_run: Path) -> None:
    found = _objective(towers_run, alpha=2.0, lam=3.0, mu=5.0).step(images(16), labels(16), done=0.5, draw=Draw(0))
    weights = {"reconstruction": 2.0, "image": 3.0, "text": 5.0}
    expected = sum(weights.get(name, 1.0) * value for name, value in found.items() if name != "loss")
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_prompts_and_shield_and_leave_the_towers(towers_run: Path) -> None:
    objective = _objective(towers_run)
    guard = objective.purifier
    frozen = {name: t.clone() for name, t in guard.towers.state_dict().items()}
    moved = {name: p.clone() for name, p in guard.named_parameters() if p.requires_grad}
    assert "prompt" in moved
    assert not any(name.startswith("towers.") for name in moved)
    for k in range(2):
        objective.step(images(16), labels(16), done=0.5, draw=Draw(k))
    assert all(torch.equal(t, frozen[name]) for name, t in guard.towers.state_dict().items())
    still = [name for name, p in guard.named_parameters() if name in moved and torch.equal(p, moved[name])]
    assert still == []
    x = (images(4).float() / 255).requires_grad_()
    guard.eval().fused(x, guard.texts().detach())[:, 0].sum().backward()
    assert x.grad is not None and bool((x.grad.flatten(1).abs().amax(1) > 0).all())


def test_training_images_stay_within_eps_and_are_worse(towers_run: Path) -> None:
    objective = _objective(towers_run, eps=8.0, steps=3)
    guard, y = objective.purifier, labels(16)
    worst = objective.attacked(images(16), y, Draw(0))
    assert float((worst - images(16) / 255).abs().max()) <= 8 / 255 + 1e-6
    with torch.no_grad():
        clean, attacked = (F.cross_entropy(guard.fused(x, guard.texts()), y) for x in (images(16), worst))
    assert attacked > clean


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"features": "none"}, marks=pytest.mark.ci_slow)], ids=["grid", "none"]
)
def test_a_stopped_shield_ends_with_the_same_bits(changes: dict, towers_run: Path, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    start = tmp_path / "start"
    shutil.copytree(towers_run, start)
    method = config(tiny_shield(start, **changes))
    train_purifier(method, out=straight, dataset=dataset())
    with pytest.raises(Interrupted):
        train_purifier(method, out=broken, dataset=dataset(), stop=on_call(4))
    torch.manual_seed(99)
    train_purifier(method, out=broken, resume=True, dataset=dataset())
    assert (broken / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()
    assert (broken / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    line = json.loads((broken / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("codes_used" in line["clean"]) == (not changes)
    shutil.rmtree(start)  # the run holds the towers, too
    kept, first = load_tensors(broken / "weights.safetensors"), load_tensors(towers_run / "weights.safetensors")
    assert all(torch.equal(kept[name], t) for name, t in first.items() if name.startswith("towers."))
    load_guard(broken)


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, set(SHIELD_WAYS)),
        ({"discrete": False}, set(SHIELD_WAYS) - {"soft"}),
        pytest.param({"features": "class"}, set(SHIELD_WAYS), marks=pytest.mark.ci_slow),
        ({"features": "none"}, {"straight", "fab", "square"}),
    ],
    ids=["grid", "continuous", "class", "none"],
)
def test_every_variant_is_attacked_in_its_ways(changes: dict, ways: set[str], towers_run: Path) -> None:
    objective = _objective(towers_run, **changes)
    objective.step(images(16), labels(16), done=0.5, draw=Draw(0))
    deployed = shielded(objective.purifier.eval().requires_grad_(False))
    x = images(4)
    with torch.no_grad():
        y = deployed(x).argmax(1)
    row = withstood(deployed, x, y, Assault(eps=(8,), effort=QUICK))["rows"][0]
    assert set(row["ways"]) == ways
    assert all(cell["flat"] == 0 for cell in row["ways"].values())
    assert row["robust"]["right"] <= min(cell["right"] for cell in row["ways"].values())
    discrete = changes.get("discrete", True) and changes.get("features") != "none"
    assert all(("code_flip" in cell) == discrete for cell in row["ways"].values())
    if changes.get("features") == "none":
        assert all(cell["survival"] == pytest.approx(1) for cell in row["ways"].values())


def test_what_each_way_differentiates(shield_run: Path) -> None:
    from edgeq.purifiers.deployed import Look

    deployed, x = shielded(_guard(shield_run)), images(4)
    views = {way: deployed.seen(Look(way, Draw(), 1, 0.5)) for way in deployed.ways}
    with torch.no_grad():
        logits = {way: view(x) for way, view in views.items()}
        answers = deployed.guard.answers(x)
    for way in ("straight", "identity"):
        torch.testing.assert_close(logits[way], answers["accuracy"])
    torch.testing.assert_close(logits["class-branch"], answers["class_accuracy"])
    torch.testing.assert_close(logits["shield-branch"], answers["shield_accuracy"])
    assert not torch.allclose(logits["soft"], answers["accuracy"])
    cold = deployed.seen(Look("soft", Draw(), 1, 1e-6))
    torch.testing.assert_close(cold(x), deployed(x), rtol=1e-3, atol=1e-3)


def test_a_wide_ball_leaves_nothing_and_the_published_attack_is_beside(shield_run: Path) -> None:
    deployed, x = shielded(_guard(shield_run)), images(10)
    with torch.no_grad():
        y = deployed(x).argmax(1)
    assault = Assault(ways=("straight",), eps=(64,), effort=Effort(steps=5, starts=1))
    found = attack_pipeline("straight", deployed, x, y, eps=64, effort=assault.effort)
    assert int((found.images.int() - x.int()).abs().max()) <= 64
    assert int(right(deployed, found.images, y).sum()) == 0
    published = published_accuracy(deployed, x, y, assault)[64]
    assert published["total"] == 10
    assert published["rate"] < 0.5
    assert bare_accuracy(deployed, x, y, assault).keys() == {64}


def test_wrong_choices_and_folders_are_refused(towers_run: Path, shield_run: Path, vq_run: Path) -> None:
    for changes, words in (
        ({"fusion": 0.0}, "features none"),
        ({"eps": 256.0}, "at most 255"),
        ({"codes": 1}, "2 or more classes and codes"),
        ({"lam": -1.0}, "lam and mu >= 0"),
    ):
        with pytest.raises(InputError, match=words):
            tiny_shield(towers_run, **changes)
    with pytest.raises(InputError, match="use a smaller prompt_length"):
        tiny_shield(towers_run, prompt_length=64).build(SHAPE, 16)
    with pytest.raises(InputError, match="fewer codes"):
        tiny_shield(towers_run, features="class").build(SHAPE, 8)
    with pytest.raises(InputError, match="kind towers in"):
        towers_of(vq_run)
    for run in (shield_run, towers_run):
        with pytest.raises(InputError, match="makes no images"):
            load_purifier(run)
    with pytest.raises(InputError, match="makes no images"):
        srl_from(shield_run)


def test_towers_that_changed_are_refused(towers_run: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(towers_run, start)
    method = tiny_shield(start)
    (start / "weights.safetensors").write_bytes((start / "weights.safetensors").read_bytes() + b" ")
    with pytest.raises(InputError, match="got others; start anew"):
        train_purifier(config(method), out=tmp_path / "run", dataset=dataset())
