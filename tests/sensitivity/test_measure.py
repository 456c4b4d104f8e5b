import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.data import Split
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from edgeq.quant.weighted import WeightedUnit
from edgeq.sensitivity import Answers, measure
from edgeq.sensitivity.sums import code_counts, decibels

Made = tuple[MultiBitNet, Split]


def _step(name: str, factor: float) -> Callable[[MultiBitNet], None]:
    def change(net: MultiBitNet) -> None:
        step = net.grids[name].steps["5"]  # type: ignore[index]
        net.grids[name].set_step(5, float(step.detach()) * factor)  # type: ignore[operator]

    return change


def _weight_step(name: str, factor: float) -> Callable[[MultiBitNet], None]:
    def change(net: MultiBitNet) -> None:
        with torch.no_grad():
            net.weighted()[name].weight_steps["5"].mul_(factor)

    return change


@pytest.mark.parametrize(
    ("bad", "change"),
    [
        ("first", _step("first", 0.02)),
        ("left", _step("left", 0.01)),
        ("add", _step("add", 60.0)),
        ("first", _weight_step("first", 20.0)),
        ("right", _weight_step("right", 0.02)),
        ("last", _weight_step("last", 30.0)),
    ],
)
def test_a_layer_made_bad_is_named_first(made: Made, bad: str, change: Callable[[MultiBitNet], None]) -> None:
    net, split = made
    change(net)
    report = measure(net, split, bits=(5,)).widths[0]
    layers = {layer.name: layer for layer in report.layers}
    assert report.worst_first()[0].name == bad
    assert layers[bad].logits_db == min(layer.logits_db for layer in report.layers)
    assert layers[bad].left_out.net == min(layer.left_out.net for layer in report.layers)  # left out helps most


def test_a_step_that_is_too_small_is_seen_as_saturation(made: Made) -> None:
    net, split = made
    _step("left", 0.05)(net)
    layer = next(layer for layer in measure(net, split, bits=(5,)).widths[0].layers if layer.name == "left")
    assert layer.saturated is not None and layer.codes is not None
    assert layer.saturated > 0.3
    assert layer.codes.counts[-1] / sum(layer.codes.counts) == layer.saturated  # after ReLU, all of it above
    assert sum(layer.codes.counts) == sum(layer.codes.float_counts) == len(split) * 8 * 8 * 8
    assert len(layer.codes.counts) == 2**5 + 2


def test_a_bad_channel_is_named_with_its_weights(made: Made) -> None:
    net, split = made
    unit = net.weighted()["left"]
    with torch.no_grad():
        unit.weight_steps["5"][3] *= 15
    layer = next(layer for layer in measure(net, split, bits=(5,)).widths[0].layers if layer.name == "left")
    worst = layer.worst[0]
    assert worst.channel == 3
    assert worst.weight_max == float(unit.weight[3].detach().abs().max())
    assert worst.layer_weight_max == float(unit.weight.detach().abs().max())
    assert layer.weights is not None
    assert sum(layer.weights.counts) == unit.weight.numel()


def test_nothing_is_changed_and_batches_do_not_matter(made: Made) -> None:
    net, split = made
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seen: list[tuple[int, int]] = []
    first = measure(net, split, progress=lambda done, total: seen.append((done, total))).to_dict()
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert seen[-1] == (10, 10)  # five units at two widths
    assert measure(net, split).to_dict() == first
    json.dumps(first, allow_nan=False)
    for ours, theirs in zip(first["widths"], measure(net, split, batch_size=17).to_dict()["widths"], strict=True):
        assert ours["worst_first"] == theirs["worst_first"]
        for a, b in zip(ours["layers"], theirs["layers"], strict=True):
            assert a["alone"] == b["alone"]
            assert a["own_db"] == pytest.approx(b["own_db"], abs=0.01)  # float32 sums in another order


def test_more_bits_mean_less_noise(made: Made) -> None:
    result = measure(*made)
    assert result.correct == len(made[1])
    eight, five = result.widths
    assert (eight.bits, five.bits) == (8, 5)
    for high, low in zip(eight.layers, five.layers, strict=True):
        if high.name == "left":  # the others are edge layers or joins, which have 8 bits anyway
            assert high.own_db > low.own_db + 9  # 6 dB a bit, roughly
            assert high.weight_db is not None and low.weight_db is not None
            assert high.weight_db > low.weight_db + 9


def test_without_32_bits_the_widest_width_is_the_reference(made: Made) -> None:
    from edgeq.calib import calibrate
    from edgeq.quant.convert import multibit

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    net = multibit(model.eval(), bits=(8, 4), image_shape=(3, 8, 8))
    calibrate(net, made[1].images)
    assert measure(net, made[1]).reference == 8


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_decibels_of_scaled_powers(signal: float, noise: float) -> None:
    assert decibels(100 * signal, noise) == pytest.approx(decibels(signal, noise) + 20)
    assert decibels(signal, signal) == 0


def test_decibels_stay_numbers() -> None:
    assert [decibels(*pair) for pair in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (math.inf, 1.0))] == [100, 100, -100, 100]


def test_codes_are_counted_with_what_lies_beyond() -> None:
    counts = code_counts(torch.tensor([-9.0, -0.4, 0.6, 2.4, 3.0, 3.6, 99.0]), 0, 3)
    assert counts.tolist() == [1, 1, 1, 1, 1, 2]


def test_chance_is_no_finding() -> None:
    assert Answers(5, 0).clear
    assert not Answers(4, 0).clear
    assert not Answers(40, 30).clear
    assert not Answers(0, 9).clear


def _not_finite(net: MultiBitNet) -> None:
    unit = net.units["left"]
    assert isinstance(unit, WeightedUnit)
    with torch.no_grad():
        unit.weight[0, 0, 0, 0] = math.nan


def test_what_cannot_be_measured_is_refused(made: Made) -> None:
    net, split = made
    with pytest.raises(InputError, match=r"expected widths out of the model's \[8, 5\], got \[4\]"):
        measure(net, split, bits=(4,))
    with pytest.raises(InputError, match="one image or more, got none"):
        measure(net, split.subset(torch.arange(0)))
    with pytest.raises(InputError, match="8, 8"):
        measure(net, Split(torch.zeros(2, 3, 9, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)))
    _not_finite(net)
    with pytest.raises(InputError, match="'left'"):
        measure(net, split)


def test_a_network_with_32_bits_alone_is_refused(made: Made) -> None:
    from edgeq.quant.convert import multibit

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    with pytest.raises(InputError, match="32 bits alone"):
        measure(multibit(model.eval(), bits=(32,), image_shape=(3, 8, 8)), made[1])
