import pytest
import torch

from edgeq.calib import MinMax, calibrate
from edgeq.calib.walk import evaluating, product


def _entering(net, images: torch.Tensor, name: str, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the variance of what enters a layer's BatchNorm in the deployed network."""
    with evaluating(net, bits), torch.no_grad():
        values = net.values(images, keep=net.names)
        read = next(step.inputs[0] for step in net.steps if step.name == name)
        unit = net.units[name]
        y = product(unit, values[read].real, bits, round_weights=bits != 32)
        y = y if unit.bias is None else y + unit.bias.reshape(1, -1, 1, 1)
        variance, mean = torch.var_mean(y, (0, 2, 3))
    return mean, variance


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("batch_size", [24, 8])
@pytest.mark.parametrize("beside", [True, False])
def test_batchnorm_sees_what_the_deployed_layers_read(make, images, bits: int, batch_size: int, beside: bool) -> None:
    """Beside 32 bits it takes what rounding changes, without them what there is."""
    net = make(bits=(32, bits) if beside else (bits,))
    calibrate(net, images, bits=(bits,), sequential=True, batch_size=batch_size)
    for name in ("first", "left", "right"):
        norm, (mean, variance) = net.units[name].norm, _entering(net, images, name, bits)
        if beside:
            plain, spread = _entering(net, images, name, 32)
            mean = norm.at(32).running_mean + mean - plain
            variance = norm.at(32).running_var * variance / spread
        torch.testing.assert_close(norm.at(bits).running_mean, mean, rtol=1e-4, atol=1e-5)  # sums in another order
        torch.testing.assert_close(norm.at(bits).running_var, variance, rtol=1e-4, atol=1e-5)


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
