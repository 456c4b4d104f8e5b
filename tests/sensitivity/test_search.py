"""The search for bits of layers: the knapsack against brute force, budgets, and what its networks really do."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeq.calib import calibrate
from edgeq.calib.passes import float_logits
from edgeq.calib.walk import evaluating
from edgeq.data import Split
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.graph import Conv, Linear
from edgeq.export.pack import packed_size
from edgeq.pixels import Pixels
from edgeq.quant.convert import multibit
from edgeq.quant.layer_bits import Bits
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.sensitivity.knapsack import knapsack
from edgeq.sensitivity.noise import LayerNoise, layer_noises
from edgeq.sensitivity.search import Budget, nearest_setting, search

from .conftest import Residual

Made = tuple[MultiBitNet, Split]
ITEMS = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(ITEMS, st.integers(0, 60))
def test_the_knapsack_is_as_good_as_trying_everything(items: list[list[tuple[int, int]]], budget: int) -> None:
    costs = [[cost for cost, _ in item] for item in items]
    losses = [[float(loss) for _, loss in item] for item in items]
    every = [
        sum(losses[i][k] for i, k in enumerate(picks))
        for picks in product(*(range(len(item)) for item in items))
        if sum(costs[i][k] for i, k in enumerate(picks)) <= budget
    ]
    found = knapsack(costs, losses, budget)
    if not every:
        assert found is None
        return
    assert found is not None and found.exact
    assert sum(costs[i][k] for i, k in enumerate(found.options)) <= budget
    assert sum(losses[i][k] for i, k in enumerate(found.options)) == min(every)


@given(st.integers(0, 100), st.integers(3, 12))
def test_with_few_states_the_budget_is_held_all_the_same(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(10**9, 10**12, (12, 3)).tolist()
    losses = rng.random((12, 3)).tolist()
    budget = int(np.mean(costs) * 12)
    whole, thin = knapsack(costs, losses, budget), knapsack(costs, losses, budget, most=most)
    assert whole is not None and thin is not None
    total = [sum(values[i][k] for i, k in enumerate(c.options)) for c in (whole, thin) for values in (costs, losses)]
    assert max(total[0], total[2]) <= budget
    assert total[1] <= total[3]


def _layers(seed: int) -> tuple[LayerNoise, ...]:
    rng = np.random.default_rng(seed)
    layers = tuple(
        LayerNoise(f"l{i}", int(rng.integers(*span)), int(rng.integers(*span)) * 64, i in (0, 4), i == 2, i == 0)
        for i, span in enumerate(((5, 30), (300, 500), (5, 30), (300, 500), (5, 30)))
    )
    for layer in layers:
        for b in (8, 5, 4, 2):
            layer.weight_noise[b], layer.code_noise[b] = (float(rng.random() * 4.0**-b) for _ in range(2))
    return layers


@given(
    st.integers(0, 50),
    st.sampled_from([Budget("bytes", 0.6, True), Budget("bops", 0.5, True), Budget("bits", 5.5)]),
    st.booleans(),
    st.booleans(),
)
def test_budgets_are_held_and_no_uniform_plan_within_is_better(
    seed: int, budget: Budget, ends: bool, alike: bool
) -> None:
    layers = _layers(seed)
    found = search(layers, budget, ends=ends, alike=alike)
    spent = sum(budget.cost(layer, found.mixed.layers.get(layer.name, (8, 8))) for layer in layers)
    assert found.mixed.within
    assert spent <= found.limit
    assert all(u.noise >= found.mixed.noise - 1e-15 for u in found.uniform if u.within)
    assert "l2" not in found.mixed.layers  # a BatchNorm has no choice
    if not ends:
        assert found.mixed.layers["l4"] == found.mixed.layers["l0"] == (8, 8)
    assert found.mixed.layers["l0"][1] == 8  # pixels
    if alike:
        assert all(w == a for name, (w, a) in found.mixed.layers.items() if name != "l0")
    elif budget.kind != "bops":  # fewer bits for codes would save nothing
        assert all(layer.code_noise[found.mixed.layers[layer.name][1]] == min(layer.code_noise.values())
                   for layer in layers if layer.name in ("l1", "l3"))  # fmt: skip


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a budget of \d+ bytes of weights or more, got 10 bytes"):
        search(_layers(0), Budget("bytes", 10))
    with pytest.raises(InputError, match=r"bits per weight or more, got 2.000 bits per weight"):
        search(_layers(0), Budget("bits", 2.0))
    with pytest.raises(InputError, match="bit-operations or more"):
        search(_layers(0), Budget("bops", 0.01, True))
    with pytest.raises(InputError, match="above 0"):
        Budget("bops", 0)
    with pytest.raises(InputError, match="got a share"):
        Budget("bits", 0.5, True)


def _mixed(net: MultiBitNet, layers: dict[str, Bits], images: torch.Tensor, setting: int) -> MultiBitNet:
    config = QuantConfig(bits=(32, setting), layer_bits={setting: layers})
    made = multibit(Residual().eval(), image_shape=(3, 8, 8), config=config)
    made.load_state_dict(net.state_dict(), strict=False)
    calibrate(made, images, bn=False)
    return made.eval()


def _noise(net: MultiBitNet, images: torch.Tensor, setting: int) -> float:
    expected = float_logits(net, images, batch_size=100)
    with evaluating(net, setting):
        return float((net(images) - expected).square().sum() / expected.square().sum())


def test_the_network_that_was_found_has_the_size_foretold_and_no_more_noise_than_a_uniform_one(made: Made) -> None:
    net, split = made
    layers = layer_noises(net, split.images, bits=(8, 6, 5, 4, 3, 2))
    assert [layer.name for layer in layers] == ["first", "left", "right", "last"]
    uniform = search(layers, Budget("bits", 8.0), ends=True).uniform
    for b in (4, 3):
        same = next(plan for plan in uniform if plan.name == f"{b} bits")
        found = search(layers, Budget("bytes", same.weight_bytes), ends=True)
        setting = nearest_setting(found.mixed)
        mixed, plain = (_mixed(net, dict(p.layers), split.images, setting) for p in (found.mixed, same))
        nodes = [node for node in lower(mixed, bits=setting).nodes if isinstance(node, Conv | Linear)]
        sizes = sum(packed_size(node.weight.size, node.weight_bits) for node in nodes)
        assert sizes == found.mixed.weight_bytes <= same.weight_bytes
        assert {node.name: node.weight_bits for node in nodes} == {n: w for n, (w, _) in found.mixed.layers.items()}
        real = _noise(mixed, split.images, setting)
        assert real <= _noise(plain, split.images, setting)
        assert real == pytest.approx(found.mixed.noise, rel=0.8)  # foretold from layers alone


@pytest.mark.parametrize("pixels", [Pixels(), Pixels((0.5, 0.4, 0.5), (0.3,))])
def test_what_was_found_can_be_built_with_layers_that_have_no_choice(pixels: Pixels) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).eval()
    net = multibit(model, bits=(32, 8), image_shape=(3, 8, 8), pixels=pixels)
    images = torch.randint(0, 256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    calibrate(net, images, bn=False)
    layers = layer_noises(net, images, bits=(8, 4, 2))
    found = search(layers, Budget("bits", 4.0), ends=True).mixed
    assert found.layers.keys() == {"0", "5"} and found.layers["0"][1] == 8
    mixed = multibit(model, config=found.config(net.config, 4), image_shape=(3, 8, 8), pixels=pixels)
    calibrate(mixed, images, bn=False)
    nodes = {node.name: node for node in lower(mixed.eval(), bits=4).nodes if isinstance(node, Conv | Linear)}
    assert sum(packed_size(node.weight.size, node.weight_bits) for node in nodes.values()) == found.weight_bytes
    assert {name: nodes[name].weight_bits for name in found.layers} == {n: w for n, (w, _) in found.layers.items()}


def test_fewer_bits_are_more_noise_and_nothing_is_changed(made: Made) -> None:
    net, split = made
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seen: list[tuple[int, int]] = []
    layers = layer_noises(net, split.images, bits=(8, 4, 2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    for layer in layers:
        assert layer.weight_noise[8] < layer.weight_noise[4] < layer.weight_noise[2]
        if not layer.pixels:
            assert layer.code_noise[8] < layer.code_noise[4] < layer.code_noise[2]
    assert [layer.pixels for layer in layers] == [True, False, False, False]
    assert [layer.end for layer in layers] == [True, False, False, True]
    assert [layer.macs for layer in layers] == [8 * 64 * 27, 8 * 64 * 72, 8 * 64 * 72, 5 * 128]
    with pytest.raises(InputError, match=r"from 2 to 8 for single layers, got \[32, 8\]"):
        layer_noises(net, split.images, bits=(32, 8))
