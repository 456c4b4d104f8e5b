import pytest
import torch

from edgeq.calib import calibrate, reestimate
from edgeq.calib.batchnorm import Moments, measure
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


def state(net: MultiBitNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(net: MultiBitNet, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("sizes", [(24,), (8, 8, 8), (1, 5, 18)])
def test_moments_do_not_depend_on_the_batches(sizes: tuple[int, ...]) -> None:
    x = torch.randn(24, 3, 4, 4) * 2 + 5
    moments = Moments()
    for part in x.split(sizes):
        moments.add(part)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    # float32 sums over a batch, float64 across batches
    torch.testing.assert_close(moments.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.squares / moments.count, variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
@pytest.mark.parametrize("batch_size", [24, 8])
def test_the_first_layers_statistics_are_exact(net, images, bits: int, batch_size: int) -> None:
    reestimate(net, images, bits=bits, batch_size=batch_size)
    unit = net.units["first"]
    weight = unit.weight
    if bits != 32:
        step = unit.weight_step(bits).reshape(-1, 1, 1, 1)
        weight = (weight / step).round().clamp(-127, 127) * step
    y = torch.nn.functional.conv2d((images.float() - 128) / 64, weight, padding=1)
    variance, mean = torch.var_mean(y, (0, 2, 3))
    torch.testing.assert_close(unit.norm.at(bits).running_mean, mean, rtol=1e-4, atol=1e-5)  # float32 convolutions
    torch.testing.assert_close(unit.norm.at(bits).running_var, variance, rtol=1e-4, atol=1e-5)


def test_only_the_widths_own_statistics_change(net, images) -> None:
    before = state(net)
    reestimate(net, images, bits=4)
    assert changed(net, before) == {
        f"units.{layer}.norm.norms.4.running_{what}" for layer in ("first", "left", "right") for what in ("mean", "var")
    }


def test_beside_itself_nothing_changes(net, images) -> None:
    before = state(net)
    reestimate(net, images, bits=32, source=32)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7)


def test_what_rounding_changes_hangs_less_on_the_images_than_the_statistics_do(make) -> None:
    """On any few images the difference from 32 bits is nearly the same; the statistics themselves are not."""
    torch.manual_seed(1)
    parts = torch.randint(0, 256, (2, 12, 1, 8, 8)).to(torch.uint8) // torch.tensor([1, 3]).reshape(2, 1, 1, 1, 1)
    parts = parts.to(torch.uint8).expand(-1, -1, 3, -1, -1).contiguous()
    found: dict[int | None, list[torch.Tensor]] = {None: [], 32: []}
    for source, each in found.items():
        for part in parts:
            net = make(bits=(32, 8))
            calibrate(net, parts.flatten(0, 1), bn=False)
            reestimate(net, part, bits=8, source=source)
            each.append(torch.cat([u.norm.at(8).running_mean for u in net.weighted().values() if u.norm is not None]))
    apart = {source: float((a - b).abs().mean()) for source, (a, b) in found.items()}
    assert apart[32] < apart[None] / 10


def test_the_difference_is_the_images(net, images) -> None:
    norm = net.units["first"].norm
    with torch.no_grad():
        norm.at(32).running_mean.add_(1.0)
        norm.at(32).running_var.mul_(4.0)
    found = {bits: measure(net, images, bits=bits)["first"] for bits in (32, 4)}
    reestimate(net, images, bits=4, source=32)
    mean = norm.at(32).running_mean + (found[4].mean - found[32].mean)
    torch.testing.assert_close(norm.at(4).running_mean, mean.float())
    variance = norm.at(32).running_var * found[4].variance / found[32].variance
    torch.testing.assert_close(norm.at(4).running_var, variance.float())


def test_shared_statistics_change_for_all_widths(make, images) -> None:
    net = make(batchnorm="shared")
    with at_bits(net, 32), torch.no_grad():
        before = net.eval()(images)
    reestimate(net, images, bits=2)
    with at_bits(net, 32), torch.no_grad():
        assert not torch.equal(net(images), before)


def test_observed_scales_and_flags_stay(make, images) -> None:
    net = make(scales="observer").train()
    net.units["drop"].eval()
    net.width.deployed = True
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    steps = {name: p.clone() for name, p in net.grids.named_parameters()}
    reestimate(net, images, bits=4)
    assert all(torch.equal(p, steps[name]) for name, p in net.grids.named_parameters())
    assert flags == {name: p.requires_grad for name, p in net.named_parameters()}
    assert net.training
    assert not net.units["drop"].training
    assert net.width.deployed
    assert net.width.bits == 32


def test_it_is_deterministic_and_idempotent(net, images) -> None:
    reestimate(net, images, bits=4, batch_size=24)
    before = state(net)
    torch.manual_seed(123)  # dropout would draw from it
    reestimate(net, images, bits=4, batch_size=24)
    assert not changed(net, before)


def test_the_running_statistics_agree_with_those_of_the_batch(net, images) -> None:
    """With all images in one batch, evaluation computes what training does (32 bits: no rounding in between)."""
    reestimate(net, images, bits=32, batch_size=24)
    with at_bits(net, 32), torch.no_grad():
        expected = net.eval()(images)
        net.train()
        net.units["drop"].eval()
        # running variances are unbiased, batch variances are not: one part in 24 * 64
        torch.testing.assert_close(net(images), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (0, 8), (8, 1), (8, 0)])
def test_too_few_images_are_refused(net, images, count: int, batch_size: int) -> None:
    with pytest.raises(InputError):
        reestimate(net, images[:count], bits=4, batch_size=batch_size)


def test_broken_weights_name_the_layer_and_change_nothing(net, images) -> None:
    with torch.no_grad():
        net.units["left"].bias[0] = float("inf")
    before = state(net)
    with pytest.raises(InputError, match="'left'"):
        reestimate(net, images, bits=4)
    assert not changed(net, before)


def test_an_unknown_width_is_refused(net, images) -> None:
    with pytest.raises(InputError, match="5"):
        reestimate(net, images, bits=5)
