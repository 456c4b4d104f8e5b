"""The widths of one training: their turns, their order, their losses and their statistics."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeq import calib, runs
from edgeq.curriculum import Curriculum
from edgeq.data import Dataset, decoded
from edgeq.defenses import DEFENSES, Standard, StandardObjective, Turns
from edgeq.models import build
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.training import Progress, TrainConfig, train


def test_the_objective_is_the_mean_over_the_active_widths() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 8))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(8)
    objective = StandardObjective(net.train(), Standard())
    losses = objective(images, labels, (32, 8))
    torch.testing.assert_close(losses["loss"].detach(), (losses["ce_32"] + losses["ce_8"]) / 2)
    assert set(losses) == {"loss", "ce_32", "ce_8"}


@pytest.mark.parametrize(
    ("passes", "rounds"),
    [
        (2, 2),
        pytest.param(0, 3, marks=pytest.mark.ci_slow),
        pytest.param(7, 3, marks=pytest.mark.ci_slow),
    ],
)
def test_widths_that_take_turns_take_as_many_steps_each(
    tmp_path: Path, data: Dataset, passes: int, rounds: int, tiny: TrainConfig
) -> None:
    config = replace(tiny, epochs=1, deployed=0.0, curriculum=Curriculum(enabled=False), batch_size=40)
    seen: list[str] = []

    def watch(progress: Progress) -> None:
        seen.extend(name for name in progress.losses if progress.batch and name != "loss")

    train(replace(config, turns=Turns(1, passes)), out=tmp_path / "run", dataset=data, progress=watch)
    assert seen == (["ce_32", "ce_8", "ce_4"] * 3)[: 3 * rounds]  # a pass has three batches


def test_metrics_hold_the_mean_of_every_width_that_took_its_turn(
    tmp_path: Path, data: Dataset, tiny: TrainConfig
) -> None:
    steps: dict[str, list[float]] = {}

    def watch(progress: Progress) -> None:
        for name, value in progress.losses.items() if not progress.accuracy else ():
            steps.setdefault(name, []).append(value)

    train(replace(tiny, epochs=1, deployed=0.0), out=tmp_path / "run", dataset=data, progress=watch)
    (line,) = (tmp_path / "run" / runs.METRICS).read_text().splitlines()
    losses = json.loads(line)["losses"]
    assert set(losses) == {"loss", "ce_32", "ce_8", "ce_4"}
    assert losses == pytest.approx({name: sum(values) / len(values) for name, values in steps.items()})


@pytest.mark.ci_slow
def test_every_pass_has_its_own_order(tmp_path: Path, data: Dataset, tiny: TrainConfig) -> None:
    shown: list[torch.Tensor] = []

    class Watching(StandardObjective):
        def forward(self, images, labels, active, key=(0, 0, 0, 0)):
            shown.append(images)
            return super().forward(images, labels, active, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENSES, "standard", lambda net, config: Watching(net, config.standard, Turns(1)))
        train(replace(tiny, epochs=1, deployed=0.0), out=tmp_path / "run", dataset=data)
    first, second = shown[:5], shown[5:]
    assert len(second) == 5 and not torch.equal(torch.cat(first), torch.cat(second))


def _norm(net: MultiBitNet, bits: int) -> nn.Module:
    norm = net.weighted()["conv"].norm
    assert norm is not None
    return norm.at(bits)


@pytest.mark.ci_slow
def test_the_average_ends_with_statistics_of_its_own(tmp_path: Path, data: Dataset, tiny: TrainConfig) -> None:
    net = train(replace(tiny, ema=0.9, deployed=0.0), out=tmp_path / "run", dataset=data)
    norm = _norm(net, 8)
    before = copy.deepcopy(norm)
    calib.reestimate(net, decoded(data.train), bits=8)  # a quarter of them were held out in training
    torch.testing.assert_close(before.running_mean, norm.running_mean, atol=0.1, rtol=0.1)
    torch.testing.assert_close(before.running_var, norm.running_var, atol=0.1, rtol=0.25)


def test_bf16_statistics_are_in_real_numbers() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    nets = [multibit(build("resnet8", classes=10), bits=(4,)).train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0](images)
    with torch.autocast("cpu", torch.bfloat16):
        nets[1](images)
    stem = [_norm(net, 4) for net in nets]
    # bf16 keeps 8 bits of each sum; the statistics are means over 65,536 of them
    torch.testing.assert_close(stem[1].running_mean, stem[0].running_mean, atol=1e-3, rtol=0.02)
    torch.testing.assert_close(stem[1].running_var, stem[0].running_var, atol=1e-3, rtol=0.02)


def test_the_deployed_stage_freezes_statistics_and_trains_weights() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 4)).train()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for b in net.bits:
        with at_bits(net, b):
            net(images)
    before = {n: t.clone() for n, t in net.state_dict().items() if "running" in n or "num_batches" in n}
    net.width.deployed = True
    for b in net.bits:
        with at_bits(net, b):
            net(images).logsumexp(1).sum().backward()
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())
    unit = net.weighted()["blocks_0_conv1"]
    assert unit.weight.grad is not None
    assert float(unit.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("scales", ["learned", "observer"])
@pytest.mark.parametrize("batchnorm", ["per-bit", "shared"])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_variant_has_gradients(scales: str, batchnorm: str, bf16: bool) -> None:
    config = QuantConfig(bits=(32, 8, 2), scales=scales, batchnorm=batchnorm)
    net = multibit(build("resnet8", classes=10), config=config).train()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = StandardObjective(net, Standard())(images, torch.arange(8), net.bits)["loss"]
    loss.backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
