import pytest
import torch

from edgeq.calib import calibrate
from edgeq.calib.observers import Observer
from edgeq.calib.walk import codes_served, evaluating, float_histograms, parts, unrounded
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.weighted import WeightedUnit


def test_float_values_are_those_of_32_bits(net, images) -> None:
    histograms = float_histograms(net, images, batch_size=10)
    with at_bits(net, 32), torch.no_grad():
        values = net.eval().values(images, keep=tuple(net.grids))
    assert set(histograms) == set(net.grids)
    for name, histogram in histograms.items():
        real = values[name].real
        assert histogram.top == pytest.approx(float(real.abs().max()), rel=1e-5)  # BatchNorm folded in float64 here
        assert histogram.counts.sum() + histogram.zeros == pytest.approx(real.numel())


def test_a_model_without_32_bits_uses_its_highest_width(make, images) -> None:
    with_float = float_histograms(make(bits=(32, 8, 4)), images, batch_size=24)
    without = float_histograms(make(bits=(8, 4)), images, batch_size=24)
    assert {n: h.top for n, h in without.items()} == pytest.approx({n: h.top for n, h in with_float.items()})


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_ranges_serve_the_narrowest_reader(net, bits: int) -> None:
    served = codes_served(net, bits)
    hi = min(2**bits - 1, 127)
    assert served["first"] == hi  # wide, since the addition reads it, but `left` reads a narrow copy
    assert served["left"] == hi  # narrow itself
    assert served["add"] == 127  # read by the pooling alone
    assert served["pool"] == 127  # read by the last layer, which stays at 8 bits


def test_unrounded_values_round_to_the_deployed_codes(net, images) -> None:
    calibrate(net, images)
    net.width.snapped = False
    for bits in (8, 4, 2):
        with evaluating(net, bits):
            values = net.values(images, keep=net.names)
            for step in net.steps[1:-1]:
                unit = net.units[step.name]
                if unit.output is None or step.inputs[0] not in values:
                    continue
                real = unrounded(unit, tuple(values[n] for n in step.inputs), bits, round_weights=True)
                lo, hi = unit.output.range(bits)
                codes = (real / unit.out_step()).round().clamp(lo, hi)
                # the deployed bias is a whole number of accumulator units, each worth `multiplier` codes
                folds = isinstance(unit, WeightedUnit)
                multiplier = float(unit.folded(values[step.inputs[0]].step).multiplier.max()) if folds else 0.0
                assert (codes - values[step.name].codes).abs().max() <= 1 + multiplier / 2


def test_parts_are_nearly_equal(images) -> None:
    assert [len(p) for p in parts(images, 10)] == [8, 8, 8]
    assert [len(p) for p in parts(images[:3], 2, least=2)] == [3]
    assert [len(p) for p in parts(images[:1], 100, least=2)] == [1]


def test_evaluating_puts_every_mode_back(net) -> None:
    net.train()
    net.units["drop"].eval()
    net.width.deployed = True
    with pytest.raises(RuntimeError, match="stop"), evaluating(net, 4):
        assert not net.training
        assert net.width.bits == 4
        raise RuntimeError("stop")
    assert net.training
    assert not net.units["drop"].training
    assert net.width.deployed
    assert net.width.bits == 32


def test_observers_are_asked_about_every_value(net, images) -> None:
    observer = Observer("x")
    observer.add(images.float())
    assert observer.histogram().top == float(images.max())


def test_unknown_widths_are_refused(net, images) -> None:
    with pytest.raises(InputError, match=r"\[32\]"):
        calibrate(net, images, bits=(32,))
