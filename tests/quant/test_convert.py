"""From PyTorch networks to multi-bit ones, and the refusals."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.calib import calibrate
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.reference import run
from edgeq.models import build
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.quant.trace import trace
from edgeq.quant.units import Value


def stir(net: MultiBitNet, seed: int = 0) -> MultiBitNet:
    """Give a network the irregular steps and statistics of a trained one, negative and dead channels included."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, *net.image_shape), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        for b in net.bits:
            with at_bits(net, b):
                net.train()(images)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + 0.5 * torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(0.5 * torch.randn(module.bias.shape, generator=generator))
                module.weight[0] = 0.0
        for name, parameter in net.named_parameters():
            if "grids" in name:
                parameter.mul_(float(torch.rand((), generator=generator)) * 4 + 0.2)
    return net.eval()


class Odd(nn.Module):
    """Concatenation, grouped convolution, windowed average, hidden linear layer, a ReLU and a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.bn_b = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 4, 1)
        self.bn = nn.BatchNorm2d(12)
        self.pool = nn.AvgPool2d(2)
        self.d = nn.Linear(12 * 4, 20)
        self.bn_d = nn.BatchNorm1d(20)
        self.e = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.cat([self.bn_b(self.b(x)).relu(), self.c(x)], dim=1)
        x = nn.functional.max_pool2d(torch.relu(self.bn(x)), 3, stride=2, padding=1)
        x = self.pool(x)
        x = torch.relu(self.bn_d(self.d(x.view(x.size(0), -1))))
        return self.e(nn.functional.dropout(x, 0.1, self.training))


def mismatches(net: MultiBitNet, images: Tensor, bits: int) -> tuple[int, int]:
    """Count the codes at which evaluation mode and the interpreter differ, over every edge."""
    graph = lower(net, bits=bits)
    codes = run(graph, images.numpy())
    with torch.no_grad(), at_bits(net, bits):
        values = net.values(images, keep=net.names)
    wrong = compared = 0
    for name, expected in codes.items():
        if name in values:
            wrong += int((values[name].codes.double().numpy() != expected).sum())
            compared += expected.size
    return wrong, compared


def _images(count: int, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
@pytest.mark.parametrize("shared", ["per-bit", "shared"])
def test_evaluation_mode_is_the_integer_network(bits: int, shared: str) -> None:
    config = QuantConfig(bits=(32, bits), batchnorm=shared)
    net = stir(multibit(build("resnet8", classes=10), config=config))
    wrong, compared = mismatches(net, _images(3), bits)
    assert compared > 300_000
    assert wrong == 0


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_an_irregular_network_is_the_integer_network_too(bits: int) -> None:
    net = stir(multibit(Odd(), image_shape=(3, 16, 16), bits=(32, bits)))
    wrong, compared = mismatches(net, _images(5, 16), bits)
    assert compared > 10_000
    assert wrong == 0


@pytest.mark.ci_slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vgg16_bn", "torchvision/resnet18"])
def test_built_in_networks_are_their_integer_networks(name: str) -> None:
    net = stir(multibit(build(name, classes=10)))
    for bits in net.quantized_bits():
        wrong, compared = mismatches(net, _images(2), bits)
        assert compared > 100_000
        assert wrong == 0


def test_a_wrong_step_shows_as_mismatches() -> None:
    net = stir(multibit(build("resnet8", classes=10), bits=(32, 4)))
    graph = lower(net, bits=4)
    next(iter(net.grids.values())).set_step(4, 0.5)  # type: ignore[operator]
    images = _images(2)
    with torch.no_grad(), at_bits(net, 4):
        logits = net.values(images)["fc"].codes
    assert not np.array_equal(logits.numpy(), graph.run(images.numpy()))


def test_at_32_bits_the_network_is_the_float_network() -> None:
    model = build("resnet8", classes=10).eval()
    net = multibit(model)
    images = _images(4)
    with torch.no_grad(), at_bits(net, 32):
        torch.testing.assert_close(net(images), model((images.float() - 128) / 64), atol=1e-5, rtol=1e-5)


def test_float_images_are_rounded_to_pixels() -> None:
    net = stir(multibit(build("resnet8", classes=10)))
    images = _images(2)
    with torch.no_grad(), at_bits(net, 4):
        torch.testing.assert_close(net(images.float() / 255), net(images), atol=0, rtol=0)


def test_the_model_given_is_left_alone() -> None:
    model = build("resnet8", classes=10)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    net = multibit(model)
    net.train()(_images(2)).sum().backward()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_training_and_evaluation_agree_when_statistics_do() -> None:
    net = stir(multibit(build("resnet8", classes=10), bits=(32, 8)))
    images = _images(64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad(), at_bits(net, 8):
        trained = net.train()(images)
        evaluated = net.eval()(images)
    correlation = torch.corrcoef(torch.stack([trained.flatten(), evaluated.flatten()]))[0, 1]
    assert correlation > 0.98  # 8-bit rounding, snapping and n-1 in the variance remain


def test_black_and_white_pixels_keep_their_gradient() -> None:
    net = stir(multibit(build("resnet8", classes=10)))
    x = (torch.rand(2, 3, 32, 32) > 0.5).float().requires_grad_()
    with at_bits(net, 8):
        net(x).logsumexp(1).sum().backward()
        torch.testing.assert_close(net(x), net((x * 255).byte()), atol=0, rtol=0)
    assert x.grad is not None
    assert float((x.grad != 0).float().mean()) > 0.5


def test_gradients_reach_the_image_through_the_deployed_arithmetic() -> None:
    net = stir(multibit(build("resnet8", classes=10)))
    x = (_images(2).float() / 255).requires_grad_()
    with at_bits(net, 4):
        net(x).logsumexp(1).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0


class _Refused(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.odd = layer
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.odd(self.conv(x)))))


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) if float(x.sum()) > 0 else self.fc(-x.mean((2, 3)))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.conv(x)).mean((2, 3)))


class _Body(nn.Module):
    """A convolution, whatever is given, and a linear layer of three features."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 10)
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self, self.conv(x)))


def _wide() -> nn.Conv2d:
    layer = nn.Conv2d(3, 3, 1)
    generator = torch.Generator().manual_seed(3)
    nn.init.normal_(layer.weight, 0.0, 20.0, generator=generator)
    return layer


@pytest.mark.parametrize(
    "model",
    [
        _Body(lambda net, y: y.mean((2, 3))),
        _Body(lambda net, y: y.mean(dim=(-1, -2))),
        _Body(lambda net, y: torch.add(input=y, other=y.relu()).mean((2, 3), keepdim=True).flatten(1)),
        _Body(lambda net, y: net.a(torch.cat(tensors=[y, y], dim=1)).mean((2, 3)), a=nn.Conv2d(6, 3, 1)),
        _Body(
            lambda net, y: net.pop(net.image(net.keys(input=y))).mean((2, 3)), pop=_wide(), image=_wide(), keys=_wide()
        ),
        _Body(lambda net, y: F.relu6(F.avg_pool2d(net.a(y), 2)).mean((2, 3)), a=_wide()),
        _Body(lambda net, y: (lambda z: (F.relu6(z) + net.b(z)).mean((2, 3)))(net.a(y)), a=_wide(), b=_wide()),
    ],
    ids=["mean", "mean by keyword", "keywords", "cat", "names", "relu6 after a pooling", "relu6 beside another reader"],
)
def test_other_spellings_are_the_same_network(model: nn.Module) -> None:
    net = multibit(model.eval(), image_shape=(3, 16, 16), bits=(32, 8, 4))
    images = _images(16, 16)
    calibrate(net, images)
    with torch.no_grad():
        expected = model((images.float() - 128) / 64)
        for bits, least in ((32, 1.0 - 1e-6), (8, 0.97)):
            with at_bits(net, bits):
                assert torch.corrcoef(torch.stack([net(images).flatten(), expected.flatten()]))[0, 1] > least
    for bits in (8, 4):
        wrong, compared = mismatches(net, images, bits)
        assert compared > 1000
        assert wrong == 0


def test_a_relu6_that_stands_alone_has_its_ceiling_at_every_width() -> None:
    net = multibit(
        _Body(lambda net, y: F.relu6(F.avg_pool2d(net.a(y), 2)).mean((2, 3)), a=_wide()).eval(), bits=(32, 8, 4)
    )
    images = _images(16)
    calibrate(net, images)
    for bits in (8, 4):
        with torch.no_grad(), at_bits(net, bits):
            values = net.values(images, keep=net.names)
        step = values["avg_pool2d"].step
        assert step is not None
        assert float(values["avg_pool2d"].real.max()) > 7
        assert abs(float(values["relu6"].real.max()) - 6) <= float(step) / 2


def test_logits_beyond_24_bits_are_exact() -> None:
    last = nn.Linear(1000, 2)
    nn.init.constant_(last.weight, 1.0)
    model = nn.Sequential(nn.Conv2d(3, 10, 1), nn.Flatten(), last)
    unit = multibit(model, image_shape=(3, 10, 10), bits=(8,)).eval().weighted()["2"]
    value = Value(torch.full((1, 1000), 127.0), torch.ones(1), 127)
    assert value.step is not None and unit.bias is not None
    with torch.no_grad():
        unit.bias.copy_(torch.tensor([1_200_001.0, -1_200_001.0]) * unit.weight_step(8))
        folded = unit.folded(value.step)
        got = unit(value).codes
    expected = value.codes.double() @ folded.weight.double().T + folded.bias
    assert float(expected.max()) > 2**24
    assert torch.equal(got.double(), expected)
    assert not torch.equal(expected.float().double(), expected)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_Refused(nn.PReLU()), "PReLU at 'odd'"),
        (_Refused(nn.GroupNorm(2, 4)), "GroupNorm at 'odd'"),
        (_Refused(nn.AvgPool2d(3, ceil_mode=True)), "ceil_mode"),
        (_Refused(nn.MaxPool2d(3, dilation=2)), "dilation"),
        (_Refused(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "AvgPool2d"),
        (_Refused(nn.AdaptiveAvgPool2d(7)), "adaptive pooling"),
        (_Refused(nn.Conv2d(4, 4, 3, padding="same")), "padding"),
        (_Refused(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), "reflect"),
        (_Refused(nn.BatchNorm2d(4, affine=False)), "affine"),
        (_Branching(), "torch.fx"),
        (_Twice(), "twice"),
        (_Body(lambda net, y: F.avg_pool2d(y, 2, divisor_override=3).mean((2, 3))), "divisor_override"),
        (_Body(lambda net, y: (F.relu(y, inplace=True) + y).mean((2, 3))), "what its trace says"),
        (_Body(lambda net, y: net.norm(net.norm(y)).mean((2, 3)), norm=nn.BatchNorm2d(3)), "twice"),
        (_Body(lambda net, y: torch.flatten(F.adaptive_avg_pool2d(y, 1))), "two images at a time"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "average over the plane, got conv at"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 10)), "stops at them"),
    ],
)
def test_what_cannot_be_converted_is_named(model: nn.Module, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        multibit(model)


def test_a_weight_that_two_layers_share_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(3 * 28 * 28, 10))
    model[1].weight = model[0].weight
    with pytest.raises(InputError, match="got '0' and '1' with one between them"):
        multibit(model)


def test_trace_attaches_norm_and_relu() -> None:
    ops = {op.name: op for op in trace(build("resnet8", classes=10), (3, 32, 32))}
    assert ops["conv"].norm is not None
    assert ops["conv"].relu == float("inf")
    assert [op.kind for op in ops.values()].count("add") == 3
    assert all(op.kind not in ("batchnorm", "relu") for op in ops.values())


def test_edge_layers_keep_eight_bits_and_can_be_told_not_to() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 2))
    assert {n: u.weight_bits[2] for n, u in net.weighted().items() if u.weight_bits[2] != 2} == {"conv": 8, "fc": 8}
    bare = multibit(build("resnet8", classes=10), config=QuantConfig(bits=(32, 2), edge_bits=0))
    assert {u.weight_bits[2] for u in bare.weighted().values()} == {2}
    wrong, _ = mismatches(stir(bare), _images(2), 2)
    assert wrong == 0


@pytest.mark.parametrize("bits", [(), (1,), (9,), (8, 8), (16,)])
def test_wrong_widths_are_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="bit"):
        multibit(build("resnet8", classes=10), bits=bits)


def test_switching_the_width_is_undone_after_an_error() -> None:
    net = multibit(build("resnet8", classes=10))
    with pytest.raises(RuntimeError), at_bits(net, 4):
        raise RuntimeError
    assert net.width.bits == 32
    with pytest.raises(InputError, match="one of the model's widths"), at_bits(net, 3):
        pass
