import json
from copy import deepcopy

import pytest
import torch

from edgeq.calib import PASSES, calibrate, passes, reestimate
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.reference import run
from edgeq.quant.bits import at_bits
from edgeq.quant.units import Value
from edgeq.runs import load_into


@pytest.fixture(scope="module")
def done(make):
    net = make()
    pixels = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return net.eval(), calibrate(net, pixels, passes=("bias", "rounding", "equalise"))


@pytest.fixture
def improved(done):
    net, report = done
    return deepcopy(net), report


def test_a_report_per_pass_and_width_in_their_order(improved) -> None:
    _, report = improved
    assert [(p.name, p.bits) for p in report.passes] == [(name, b) for name in PASSES for b in (8, 4, 2)]
    for b in (8, 4, 2):
        mine = [p for p in report.passes if p.bits == b]
        assert [p.mse_before for p in mine[1:]] == [p.mse_after for p in mine[:-1]]
        assert mine[-1].sqnr_db_after > mine[0].sqnr_db_before
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_what_is_exported_is_the_evaluation_mode(improved, images, bits: int) -> None:
    net, _ = improved
    graph = lower(net, bits=bits)
    with at_bits(net, bits), torch.no_grad():
        values = net.values(images[:4], keep=net.names)
    tensors = run(graph, images[:4].numpy())
    compared = 0
    for node in graph.nodes:
        if node.name in values:
            assert torch.equal(torch.from_numpy(tensors[node.name]).double(), values[node.name].codes.double())
            compared += 1
    assert compared >= 5


def test_corrections_travel_with_the_state_dict(improved, make, images, tmp_path) -> None:
    net, _ = improved
    other = make()
    assert not [name for name in other.state_dict() if "corrections" in name]
    load_into(other, dict(net.state_dict()), tmp_path)
    with at_bits(net, 2), at_bits(other, 2):
        assert torch.equal(net.predict(images), other.predict(images))
    with pytest.raises(InputError, match="corrections"):
        load_into(make(), {**net.state_dict(), "units.left.corrections.weight_7": torch.zeros(1)}, tmp_path)
    plain = make()
    other.load_state_dict(plain.state_dict())  # and go with it
    assert other.state_dict().keys() == plain.state_dict().keys()


def test_calibrating_again_drops_corrections(improved, images, make) -> None:
    net, _ = improved
    calibrate(net, images)
    assert net.state_dict().keys() == make().state_dict().keys()


def test_fake_quantization_knows_the_corrections(make, images) -> None:
    """Without BatchNorm's batch statistics in between, training mode is the deployed network up to rounding."""
    net = make(bits=(32, 8))
    calibrate(net, images, bn=False, passes=("rounding", "bias"))
    last = net.units["last"]
    x = torch.randint(0, 100, (5, 8)).float()
    value = Value(x, torch.tensor(0.01), 127)
    with at_bits(net, 8), torch.no_grad():
        deployed = last.eval()(value).real
        trained = last.train()(value).real
        last.corrections.clear(8)
        without = last(value).real
    assert (trained - deployed).abs().max() < 0.01 * last.weight_step(8).max() + 1e-5
    assert (trained - without).abs().max() > (trained - deployed).abs().max()


@pytest.mark.parametrize("bn", [True, False])
def test_learned_rounding_leaves_statistics_of_the_rounded_network(make, images, bn: bool) -> None:
    """They were measured on weights rounded to nearest; a ResNet-20 at 3 bits lost 12 points to that."""
    net = make(bits=(32, 3))
    calibrate(net, images, bn=bn, passes=("rounding",))
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" in name and ".3." in name}
    reestimate(net, images, bits=3, source=32)
    same = [torch.equal(net.state_dict()[name], value) for name, value in before.items()]
    assert before and (all(same) if bn else not any(same))


def test_stopped_on_the_way_it_leaves_the_network_as_it_was(net, images, monkeypatch) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(passes, "correct_bias", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, images, bits=(2,), passes=("rounding", "bias"))
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("wrong", [("bias", "bias"), ("adaround",)])
def test_wrong_passes_are_refused(net, images, wrong: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="expected passes"):
        calibrate(net, images, passes=wrong)


@pytest.mark.parametrize("weights", ["mse-tensor", "minmax-tensor"])
def test_one_weight_step_for_a_tensor(net, images, weights: str) -> None:
    report = calibrate(net, images, weights=weights)
    assert report.weights == weights
    for unit in net.weighted().values():
        assert len(unit.weight_steps["4"].unique()) == 1
    if weights == "minmax-tensor":
        unit = net.units["left"]
        torch.testing.assert_close(unit.weight_steps["4"][0].detach(), unit.weight.detach().abs().max() / 7)
