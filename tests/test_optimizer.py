"""The optimizer: who is in it, at what rate, and where learned steps stay."""

import pytest
import torch
from torch import nn

from edgeq.models import build
from edgeq.optimizer import learning_rate, make_optimizer, update
from edgeq.quant.convert import multibit


def test_learning_rates() -> None:
    assert learning_rate("cosine", 0.05, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate("cosine", 1.0, warmup=0.1) == pytest.approx(0.0)
    assert [learning_rate("step", d, warmup=0.1) for d in (0.0, 0.5, 0.75)] == [1.0, 0.1, 0.01]


def test_every_parameter_is_in_the_optimizer_once() -> None:
    net = multibit(build("resnet8", classes=10))
    optimizer = make_optimizer(net, lr=0.1, weight_decay=1e-4)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(listed) == len({id(p) for p in listed})
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert decayed == {id(unit.weight) for unit in net.weighted().values()}


def test_layers_may_be_called_norm_or_steps() -> None:
    model = nn.Sequential()
    layers = {"norm": nn.Conv2d(3, 4, 3), "steps": nn.Conv2d(4, 4, 3), "flat": nn.Flatten(), "fc": nn.Linear(64, 10)}
    for name, layer in layers.items():
        model.add_module(name, layer)
    net = multibit(model, image_shape=(3, 8, 8))
    decayed = {id(p) for p in make_optimizer(net, lr=0.1, weight_decay=1e-4).param_groups[0]["params"]}
    assert decayed == {id(unit.weight) for unit in net.weighted().values()}


def test_a_learned_weight_step_stays_where_codes_are_used() -> None:
    net = multibit(build("resnet8", classes=10), bits=(8, 2))
    optimizer = make_optimizer(net, lr=0.1, weight_decay=0.0)
    unit = net.weighted()["conv"]
    step, other = unit.weight_steps["8"], unit.weight_steps["2"].detach().clone()
    old, weight = step.detach().clone(), unit.weight.detach().clone()
    step.grad = torch.full_like(step, -1e6)  # far up
    step.grad[0] = 1e-6
    unit.weight.grad = torch.ones_like(unit.weight)
    update(net, optimizer)
    torch.testing.assert_close(unit.weight, weight - 0.1 * 1.9)  # Nesterov's first move; weights are free
    torch.testing.assert_close(step[1:], unit.weight.detach().flatten(1).abs().amax(1)[1:] / 63.5)
    torch.testing.assert_close(step[0], old[0])
    assert torch.equal(unit.weight_steps["2"], other)  # not in the step, not moved


@pytest.mark.parametrize(("clip", "length"), [(0.0, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_a_gradient_that_is_too_long_is_shortened_as_a_whole(clip: float, length: float) -> None:
    net = multibit(build("resnet8", classes=10), bits=(8,))
    unit = net.weighted()["conv"]
    old, grad = unit.weight.detach().clone(), torch.randn(unit.weight.shape)
    grad *= 5.0 / grad.norm()
    unit.weight.grad = grad.clone()
    update(net, make_optimizer(net, lr=0.1, weight_decay=0.0), clip=clip)
    torch.testing.assert_close(unit.weight, old - 0.19 * grad * length / 5.0)
