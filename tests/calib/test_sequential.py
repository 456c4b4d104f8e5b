import pytest
import torch

from edgeq.calib import MinMax, calibrate
from edgeq.calib.walk import evaluating, product


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("batch_size", [24, 8])
def test_batchnorm_sees_what_the_deployed_layers_read(net, images, bits: int, batch_size: int) -> None:
    calibrate(net, images, bits=(bits,), sequential=True, batch_size=batch_size)
    with evaluating(net, bits):
        values = net.values(images, keep=net.names)
    inputs = {step.name: step.inputs[0] for step in net.steps}
    for name in ("first", "left", "right"):
        unit = net.units[name]
        y = product(unit, values[inputs[name]].real, bits, round_weights=True).detach()
        y = y if unit.bias is None else y + unit.bias.detach().reshape(1, -1, 1, 1)
        variance, mean = torch.var_mean(y, (0, 2, 3))
        norm = unit.norm.at(bits)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)  # float32 sums in another order
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


def test_without_rounding_to_speak_of_it_is_the_plain_calibration(make, images) -> None:
    plain, ordered = make(), make()
    calibrate(plain, images, method=MinMax(), bits=(8,), bn=False)
    calibrate(ordered, images, method=MinMax(), bits=(8,), bn=False, sequential=True)
    for name, grid in plain.grids.items():
        # some roundings of 1/254 of the range each, added up over three layers
        torch.testing.assert_close(grid.step(8), ordered.grids[name].step(8), rtol=0.05, atol=0)


def test_the_reported_range_is_that_of_the_rounded_network(net, images) -> None:
    report = calibrate(net, images, method=MinMax(), bits=(2,), sequential=True, bn=False)
    plain = calibrate(net, images, method=MinMax(), bits=(2,), bn=False)
    tops = {edge.name: edge.top for edge in report.edges}
    assert tops["first"] != tops["left"]
    assert tops["left"] != {edge.name: edge.top for edge in plain.edges}["left"]
