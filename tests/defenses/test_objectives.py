"""The objectives' values and gradients on a tiny network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from edgeq.attacks import surrogate
from edgeq.config import TrainConfig
from edgeq.defenses import (
    DEFENSES,
    DWQ,
    AbstractObjective,
    DWQObjective,
    PatchATObjective,
    Patches,
    PBATObjective,
    TriQDef,
    TriQDefObjective,
    Turns,
)
from edgeq.defenses.dwq import pgd
from edgeq.defenses.triqdef import input_gradients
from edgeq.errors import InputError
from edgeq.perceptual import Alignment, fdp, gpdp
from edgeq.quant.bits import at_bits

from .conftest import batch, setting, tiny

ONLINE = Patches(online=1.0, sizes=(4,), online_steps=1, warmup=0.0)
POOL = Patches(sizes=(3, 4), pool_steps=2, pool_images=12)
KEY = (0, 1, 2, 0)


def _ready(objective: AbstractObjective, folder: Path) -> None:
    objective.prepare(setting(folder))


def test_patch_at_is_the_mean_over_widths_of_clean_and_patched(tmp_path: Path) -> None:
    net, twin = tiny(), tiny()
    objective = PatchATObjective(net, replace(ONLINE, lambda_adv=0.7))
    _ready(objective, tmp_path)
    images, labels = batch()
    losses = objective(images, labels, net.bits, KEY)
    other = PatchATObjective(twin, ONLINE)
    _ready(other, tmp_path)
    patched = other.patcher.on(images, labels, twin.bits, KEY)
    assert patched.dtype == torch.uint8 and len(patched) == 4
    assert ((patched != images[:4]).flatten(1).sum(1) <= 3 * 16).all() and (patched != images[:4]).any()
    clean, adv = [], []
    for bits in twin.bits:
        with at_bits(twin, bits):
            logits = twin(torch.cat([images, patched]))
        clean.append(F.cross_entropy(logits[:8], labels))
        adv.append(F.cross_entropy(logits[8:], labels[:4]))
    expected = sum(clean) / 3 + 0.7 * sum(adv) / 3
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {"loss", "ce_32", "ce_8", "ce_2", "adv"}


@pytest.mark.parametrize("batchnorm", ["per-bit", "shared"])
@pytest.mark.parametrize("deployed", [False, True])
def test_triqdef_adds_both_penalties_of_the_patched_images(tmp_path: Path, batchnorm: str, deployed: bool) -> None:
    net, twin = tiny(batchnorm=batchnorm), tiny(batchnorm=batchnorm)
    net.width.deployed = twin.width.deployed = deployed
    soft = Alignment(sharpness=10.0)
    objective = TriQDefObjective(net, ONLINE, TriQDef(lambda_fdp=0.3, lambda_gpdp=0.6, share=0.5, alignment=soft))
    control = PatchATObjective(twin, ONLINE)
    for made in (objective, control):
        _ready(made, tmp_path)
    images, labels = batch()
    patched = control.patcher.on(images, labels, twin.bits, KEY)  # before the statistics move
    losses, base = objective(images, labels, net.bits, KEY), control(images, labels, twin.bits, KEY)
    features = []
    probe = tiny(batchnorm=batchnorm)
    probe.width.deployed = deployed
    for bits in probe.bits:
        with at_bits(probe, bits):
            features.append(
                probe.values(torch.cat([images, patched]), keep=objective.taps)[objective.taps[0]].real[8:10]
            )
    by_hand = fdp([torch.stack(features)], soft)
    torch.testing.assert_close(losses["fdp"], by_hand.detach())
    gradients = input_gradients(twin, patched[:2], labels[:2], twin.bits)
    torch.testing.assert_close(losses["gpdp"], gpdp(gradients, soft).detach(), atol=1e-4, rtol=1e-4)
    total = base["loss"] + 0.3 * losses["fdp"] + 0.6 * losses["gpdp"]
    torch.testing.assert_close(losses["loss"].detach(), total.detach())
    losses["loss"].backward()
    missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("defense", ["triqdef", "patch-at"])
@pytest.mark.parametrize(
    ("widths", "batchnorm", "share"), [(0, "per-bit", 1.0), (2, "per-bit", 2 / 3), (2, "shared", 1.0)]
)
def test_the_statistics_that_attacks_see_forget_as_much_per_step_in_turns(
    tmp_path: Path, defense: str, widths: int, batchnorm: str, share: float
) -> None:
    net = tiny(batchnorm=batchnorm)
    objective = DEFENSES[defense](net, TrainConfig(defense=defense, patches=ONLINE, turns=Turns(widths)))
    assert objective.clip == TriQDef().clip  # the control differs by the penalties alone
    _ready(objective, tmp_path)
    found = {m.momentum or 0.0 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert len(found) == 1 and (1 - found.pop()) ** share == pytest.approx(0.9)


def test_gradients_reach_weights_and_norms_through_gpdp_alone() -> None:
    net = tiny()
    images, labels = batch(4)
    gpdp(input_gradients(net, images, labels, net.bits)).backward()
    for name, unit in net.weighted().items():
        assert unit.weight.grad is not None and unit.weight.grad.abs().max() > 0, name
    norms = [p.grad for n, p in net.named_parameters() if ".norms." in n and n.endswith("weight")]
    assert all(g is not None and g.abs().max() > 0 for g in norms)


def test_input_gradients_are_those_that_an_attacker_sees() -> None:
    net = tiny()
    images, labels = batch(4)
    found = input_gradients(net, images, labels, (8,))[0].detach()
    net.eval()
    x = (images.float() / 255).requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(surrogate(net, 8)(x), labels, reduction="sum"), x)
    torch.testing.assert_close(found, expected)


def test_sampled_pairs_are_unbiased_and_use_their_widths_alone() -> None:
    net = tiny((32, 8, 5, 4, 2))
    objective = TriQDefObjective(net, ONLINE, TriQDef(pairs=1))
    counts: dict[tuple[int, ...], int] = {}
    for step in range(2000):
        widths, pairs = objective._pairs(net.bits, (0, 0, step, 0))
        assert len(widths) == 2 and pairs.tolist() == [[0, 1]]
        counts[widths] = counts.get(widths, 0) + 1
    assert len(counts) == 10
    assert all(140 < count < 260 for count in counts.values())  # 200 expected, deviation 13
    widths, pairs = TriQDefObjective(net, ONLINE, TriQDef(pairs=3))._pairs(net.bits, KEY)
    assert {tuple(widths[i] for i in pair) for pair in pairs.tolist()} <= {
        (a, b) for i, a in enumerate(net.bits) for b in net.bits[i + 1 :]
    }
    everything, pairs = TriQDefObjective(net, ONLINE, TriQDef())._pairs(net.bits, KEY)
    assert everything == net.bits and len(pairs) == 10


def test_the_mean_over_single_pairs_is_the_penalty_of_all() -> None:
    net = tiny()
    images, labels = batch(4)
    gradients = input_gradients(net, images, labels, net.bits).detach()
    choices = Alignment(excess=True)
    single = [gpdp(gradients[list(pair)], choices) for pair in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(torch.stack(single).mean(), gpdp(gradients, choices))


@pytest.mark.parametrize("choices", [TriQDef(lambda_gpdp=0.0), TriQDef(lambda_fdp=0.0), TriQDef(pairs=1)])
def test_a_weight_of_zero_leaves_a_penalty_out(tmp_path: Path, choices: TriQDef) -> None:
    net = tiny()
    objective = TriQDefObjective(net, ONLINE, choices)
    _ready(objective, tmp_path)
    losses = objective(*batch(), net.bits, KEY)
    assert ("fdp" in losses) == (choices.lambda_fdp > 0) and ("gpdp" in losses) == (choices.lambda_gpdp > 0)
    losses["loss"].backward()


def test_one_active_width_or_the_warm_up_has_no_penalties(tmp_path: Path) -> None:
    net = tiny()
    objective = TriQDefObjective(net, ONLINE, TriQDef())
    assert set(objective(*batch(), (32,), KEY)) == {"loss", "ce_32"}  # before prepare: clean
    _ready(objective, tmp_path)
    assert set(objective(*batch(), (32,), KEY)) == {"loss", "ce_32", "adv"}


@pytest.mark.parametrize(
    "make", [lambda: PatchATObjective(tiny(), POOL), lambda: TriQDefObjective(tiny(), POOL, TriQDef())]
)
def test_losses_are_a_function_of_the_key(
    tmp_path: Path, make: Callable[[], PatchATObjective | TriQDefObjective]
) -> None:
    values = []
    for key in (KEY, KEY, (0, 1, 3, 0)):
        objective = make()
        _ready(objective, tmp_path)
        torch.rand(3)  # the global state must not matter
        values.append(objective(*batch(), objective.net.bits, key)["loss"].detach())
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_bf16_keeps_the_gradients_of_gradients_in_float32(tmp_path: Path) -> None:
    net = tiny()
    objective = TriQDefObjective(net, ONLINE, TriQDef())
    _ready(objective, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(*batch(), net.bits, KEY)
    losses["loss"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_pbat_replaces_a_share_of_the_batch(tmp_path: Path) -> None:
    net = tiny((4,))
    objective = PBATObjective(net, replace(ONLINE, rho=0.25))
    objective.prepare(setting(tmp_path, epoch=0))
    losses = objective(*batch(), (4,), KEY)
    torch.testing.assert_close(losses["loss"].detach(), 0.25 * losses["adv"] + 0.75 * losses["ce_4"])
    losses["loss"].backward()
    with pytest.raises(InputError, match="one width"):
        PBATObjective(tiny(), ONLINE)


def test_dwq_moves_the_norm_of_the_drawn_width_alone() -> None:
    net = tiny()
    objective = DWQObjective(net, DWQ(steps=2))
    drawn = set()
    for step in range(12):
        before = {n: t.clone() for n, t in net.state_dict().items() if "running_mean" in n}
        losses = objective(*batch(), net.bits, (0, 0, step, 0))
        (bits,) = [int(name.removeprefix("adv_")) for name in losses if name != "loss"]
        moved = {
            n.split(".norms.")[1].split(".")[0] for n, t in before.items() if not torch.equal(net.state_dict()[n], t)
        }
        assert moved == {str(bits)}
        drawn.add(bits)
    assert drawn == set(net.bits)


def test_pgd_stays_in_its_ball_and_raises_the_loss() -> None:
    net = tiny()
    images, labels = batch()
    victim = surrogate(net, 8)
    found = pgd(victim, images, labels, choices=DWQ(eps=8.0, step=2.0, steps=5), key=KEY)
    assert found.dtype == torch.uint8
    assert int((found.int() - images.int()).abs().max()) <= 8
    assert F.cross_entropy(victim(found), labels) > F.cross_entropy(victim(images), labels)
    assert torch.equal(pgd(victim, images, labels, choices=DWQ(steps=0), key=KEY), images)
