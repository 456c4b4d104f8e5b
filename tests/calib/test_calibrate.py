import json

import pytest
import torch

from edgeq.calib import METHODS, AbstractMethod, MinMax, calibrate, init_width
from edgeq.calib.walk import float_histograms
from edgeq.errors import InputError
from edgeq.models import build
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet


def state(net: MultiBitNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(net: MultiBitNet, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def logits(net: MultiBitNet, images: torch.Tensor, bits: int) -> torch.Tensor:
    with at_bits(net, bits):
        return net.predict(images)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("chosen", METHODS)
def test_eight_bits_are_close_to_float(net, images, chosen: AbstractMethod, sequential: bool) -> None:
    calibrate(net, images, method=chosen, bits=(8,), bn=False, sequential=sequential)
    expected, got = logits(net, images, 32), logits(net, images, 8)
    assert (got - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("sequential", [False, True])
def test_mode_width_weights_and_flags_stay(net, images, sequential: bool) -> None:
    net.train()
    net.units["drop"].eval()
    before = state(net)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    calibrate(net, images, bits=(4,), sequential=sequential)
    touched = changed(net, before)
    assert all(".4" in name for name in touched)
    assert not any(name.endswith((".weight", ".bias", "num_batches_tracked")) for name in touched)
    assert {name for name in touched if name.startswith("grids")} == {f"grids.{g}.steps.4" for g in net.grids}
    assert flags == {name: p.requires_grad for name, p in net.named_parameters()}
    assert net.training
    assert not net.units["drop"].training
    assert net.width.bits == 32
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("sequential", [False, True])
def test_it_is_deterministic(make, images, sequential: bool) -> None:
    first, second = make(), make()
    assert calibrate(first, images, sequential=sequential) == calibrate(second, images, sequential=sequential)
    assert not changed(second, state(first))


@pytest.mark.parametrize(
    ("name", "sequential"),
    [
        ("resnet8", False),
        ("resnet8", True),
        pytest.param("mobilenet_v2", True, marks=pytest.mark.ci_slow),
        pytest.param("vgg16_bn", False, marks=pytest.mark.ci_slow),
    ],
)
def test_the_built_in_networks(name: str, sequential: bool) -> None:
    torch.manual_seed(0)
    net = multibit(build(name, classes=10).eval(), bits=(32, 4))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    report = calibrate(net, images, method=MinMax(), sequential=sequential, batch_size=2, weights="minmax")
    assert {edge.name for edge in report.edges} == set(net.grids)
    assert all(0 < edge.step < float("inf") for edge in report.edges)
    assert torch.isfinite(logits(net, images, 4)).all()


def test_minmax_steps_are_exact(net, images) -> None:
    histograms = float_histograms(net, images, batch_size=256)
    calibrate(net, images, method=MinMax())
    for bits in (8, 4, 2):
        for name, grid in net.grids.items():
            assert grid.steps[str(bits)].detach() == torch.tensor(histograms[name].top / grid.range(bits)[1])


@pytest.mark.parametrize("chosen", METHODS)
def test_wide_edges_take_the_range_of_their_narrow_reader(net, images, chosen: AbstractMethod) -> None:
    histogram = float_histograms(net, images, batch_size=256)["first"]
    report = calibrate(net, images, method=chosen, bits=(2,))
    edge = next(edge for edge in report.edges if edge.name == "first")
    assert edge.levels == 3
    assert edge.clip == pytest.approx(chosen.step(histogram, 3) * 3)
    assert float(net.grids["first"].step(2).detach()) * 127 == pytest.approx(edge.clip)


def test_weights_by_minmax_or_least_squares(net, images) -> None:
    weight = net.units["left"].weight.detach()
    calibrate(net, images, weights="minmax", bits=(4,))
    assert torch.equal(net.units["left"].weight_steps["4"].detach(), weight.flatten(1).abs().amax(1) / 7)
    last = net.units["last"]
    assert last.weight_steps["4"].item() == pytest.approx(last.weight.abs().max().item() / 127)
    widest = net.units["left"].weight_steps["4"].detach().clone()
    calibrate(net, images, weights="mse", bits=(4,))
    assert (net.units["left"].weight_steps["4"] <= widest).all()
    with pytest.raises(InputError, match="median"):
        calibrate(net, images, weights="median")


def test_float_images_are_the_same_images(make, images) -> None:
    bytes_net, float_net = make(), make()
    calibrate(bytes_net, images, bn=False)
    calibrate(float_net, images.float() / 255, bn=False)
    for name, grid in bytes_net.grids.items():
        torch.testing.assert_close(grid.step(4), float_net.grids[name].step(4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("sequential", [False, True])
def test_broken_values_are_refused_by_name(net, images, sequential: bool) -> None:
    broken = images.float() / 255
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="'image'"):
        calibrate(net, broken, sequential=sequential)
    with torch.no_grad():
        net.units["left"].bias[0] = float("nan")
    with pytest.raises(InputError, match="'left'"):
        calibrate(net, images, sequential=sequential)
    with torch.no_grad():
        net.units["right"].weight[0] = float("nan")
    with pytest.raises(InputError, match="'right'"):
        calibrate(net, images, sequential=sequential)


@pytest.mark.parametrize("count", [0, 2])
def test_images_that_do_not_fit_are_refused(net, count: int) -> None:
    with pytest.raises(InputError, match="shape"):
        calibrate(net, torch.zeros(count, 3, 8 if count == 0 else 9, 8, dtype=torch.uint8))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("chosen", METHODS)
def test_dead_edges_get_a_step(net, images, chosen: AbstractMethod, sequential: bool) -> None:
    for norm in net.units["left"].norm.norms.values():
        torch.nn.init.zeros_(norm.weight)
        torch.nn.init.zeros_(norm.bias)
    report = calibrate(net, images, method=chosen, sequential=sequential)
    dead = [edge for edge in report.edges if edge.name == "left"]
    assert [edge.clip for edge in dead] == pytest.approx([1.0] * 3)
    assert all(edge.noise == edge.clipped == edge.top == 0.0 for edge in dead)
    assert torch.isfinite(logits(net, images, 2)).all()


def test_shared_batchnorm_is_left_alone(make, images) -> None:
    net = make(batchnorm="shared")
    before = state(net)
    for sequential in (False, True):
        assert calibrate(net, images, sequential=sequential).batchnorm == ()
    assert not any("norm" in name for name in changed(net, before))


def test_observed_weight_scales_follow_the_weights(make, images) -> None:
    net = make(scales="observer")
    report = calibrate(net, images)
    assert report.weights == "observed"
    assert report.batchnorm == (8, 4, 2)


def test_the_report_fits_in_json(net, images) -> None:
    report = calibrate(net, images, bits=(4, 2))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["images"] == len(images)
    assert len(data["edges"]) == 2 * len(net.grids)
    assert all(0 <= edge["clipped"] < 1 and 0 <= edge["noise"] <= 1 for edge in data["edges"])


def test_a_new_width_starts_from_the_float_batchnorm(net, images) -> None:
    with torch.no_grad():
        for name in ("first", "left", "right"):
            net.units[name].norm.at(32).weight.mul_(1.25)
    before = state(net)
    report = init_width(net, 4, images)
    for name in ("first", "left", "right"):
        assert torch.equal(net.units[name].norm.at(4).weight, net.units[name].norm.at(32).weight)
    assert report.batchnorm == (4,)
    assert all(".4" in name for name in changed(net, before))


@pytest.mark.parametrize(("bits", "source", "start"), [((8, 4, 2), None, 4), ((32, 8, 4, 2), 8, 8)])
def test_the_source_of_a_new_width(make, images, bits: tuple[int, ...], source: int | None, start: int) -> None:
    net = make(bits=bits)
    with torch.no_grad():
        net.units["first"].norm.at(start).bias.add_(1.0)
    init_width(net, 2, images, source=source)
    assert torch.equal(net.units["first"].norm.at(2).bias, net.units["first"].norm.at(start).bias)


def test_a_width_that_is_not_there_cannot_start(net, images) -> None:
    for wrong in (32, 5):
        with pytest.raises(InputError, match=str(wrong)):
            init_width(net, wrong, images)
    with pytest.raises(InputError, match="source"):
        init_width(net, 4, images, source=5)


@pytest.mark.parametrize("bits", [8, 2])
def test_a_network_of_one_width_starts_with_ranges_that_do_not_explode(bits: int) -> None:
    """Without a float width nothing tells the deeper layers' ranges but the layers before them, once they are set."""
    torch.manual_seed(0)
    net = multibit(build("resnet8", classes=10), bits=(bits,))
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    init_width(net, bits, images)
    with torch.no_grad():
        values = net.train().values(images, keep=net.names)
    for name in net.grids:
        share_of_zeros = float((values[name].codes == 0).float().mean())
        assert share_of_zeros < 0.8, name
        grid = net.grid(name)
        assert float(grid.steps[str(bits)].detach()) * grid.range(bits)[1] < 20, name
