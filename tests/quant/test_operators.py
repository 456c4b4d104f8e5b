"""Decoders, shuffles, products, tables and MLPs: evaluation mode and the interpreter give the same codes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.calib import MinMax, calibrate
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.executor import TorchExecutor
from edgeq.export.graph import Move, Mul, PlaneSum, Table
from edgeq.export.reference import run
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet
from edgeq.quant.tables import FUNCTIONS, Levels

SIDE = 8


def images(count: int) -> Tensor:
    shape = (count, 3, SIDE, SIDE)
    found = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    found[0], found[1] = 0, 255
    return found


def prepared(model: nn.Module, bits: tuple[int, ...] = (8, 3)) -> MultiBitNet:
    net = multibit(model, bits=(32, *bits), image_shape=(3, SIDE, SIDE))
    calibrate(net, images(4), method=MinMax(), weights="minmax", bn=False)
    return net.eval()


def assert_same(net: MultiBitNet, bits: tuple[int, ...] = (8, 3)) -> set[type]:
    """Compare evaluation mode, interpreter and executor on every edge; return the kinds of nodes."""
    kinds: set[type] = set()
    x = images(4)
    for width in bits:
        graph = lower(net, bits=width)
        codes, fast = run(graph, x.numpy()), TorchExecutor(graph).edges(x)
        with torch.no_grad(), at_bits(net, width):
            values = net.values(x, keep=net.names)
        for name, expected in codes.items():
            assert torch.equal(fast[name], torch.from_numpy(expected)), (name, width)
            if name in values:
                assert torch.equal(values[name].codes.int(), torch.from_numpy(expected)), (name, width)
        kinds |= {type(node) for node in graph.nodes}
        assert len(set(codes[graph.output].ravel().tolist())) > 4
    return kinds


class Around(nn.Module):
    """A convolution, something, another convolution, and a classifier."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module, channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.between = between
        self.b = nn.Conv2d(channels, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.b(self.between(self.a(x)))).mean((2, 3)))


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)


MOVES: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, int]] = {
    "channel shuffle by hand": (shuffle, 8),
    "ChannelShuffle": (nn.ChannelShuffle(4), 8),
    "PixelShuffle": (nn.PixelShuffle(2), 2),
    "chunk": (lambda x: torch.cat([x.chunk(2, dim=1)[1], x.chunk(2, 1)[0]], 1), 8),
    "split": (lambda x: torch.split(x, [3, 5], 1)[1], 5),
    "slices": (lambda x: x[:, 2:7, ::1, 1:], 5),
    "narrow": (lambda x: x.narrow(1, 1, 6), 6),
    "narrow from the end": (lambda x: torch.narrow(x, dim=1, start=-5, length=4), 4),
    "permute": (lambda x: x.permute(0, 1, 3, 2), 8),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), 8),
    "Upsample": (nn.Upsample(size=(3 * SIDE, SIDE)), 8),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 6),
    "ConvTranspose2d of one pixel": (nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), 6),
    "ceil_mode": (nn.MaxPool2d(3, 2, ceil_mode=True), 8),
    "ceil_mode with padding": (nn.MaxPool2d(3, 3, padding=1, ceil_mode=True), 8),
    "adaptive, up": (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(6)), 8),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str) -> None:
    between, channels = MOVES[name]
    assert_same(prepared(Around(between, channels)))


ACTIVATIONS = {
    "celu": nn.CELU(),
    "elu": nn.ELU(0.5),
    "gelu": nn.GELU(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "hardtanh": nn.Hardtanh(-0.5, 0.75),
    "leaky_relu": nn.LeakyReLU(0.2),
    "levels": Levels(5),
    "logsigmoid": nn.LogSigmoid(),
    "mish": nn.Mish(),
    "selu": nn.SELU(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(beta=2),
    "softsign": nn.Softsign(),
    "tanh": nn.Tanh(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pointwise_functions_are_tables(name: str) -> None:
    net = prepared(Around(ACTIVATIONS[name]), bits=(8,))
    assert Table in assert_same(net, bits=(8,))
    graph = lower(net, bits=8)
    (table,) = (node for node in graph.nodes if isinstance(node, Table))
    given, landed = graph.edges[table.input], graph.edges[table.name]
    real = ACTIVATIONS[name](torch.arange(given.lo, given.hi + 1).double() * given.scale).numpy()
    assert abs(table.table * landed.scale - real.clip(landed.lo * landed.scale, landed.hi * landed.scale)).max() < (
        0.501 * landed.scale
    )


@pytest.mark.parametrize(
    "call",
    [
        torch.sigmoid,
        lambda x: x.tanh(),
        F.silu,
        lambda x: F.leaky_relu(x, 0.3),
        lambda x: F.gelu(x, approximate="tanh"),
    ],
)
def test_functions_and_methods_are_the_modules(call: Callable[[Tensor], Tensor]) -> None:
    assert Table in assert_same(prepared(Around(call), bits=(8,)), bits=(8,))


class Gated(nn.Module):
    """Squeeze and excitation, and a product of two planes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.stem = nn.Conv2d(3, 3, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.silu(self.a(x)) * self.b(x)
        factors = torch.sigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc((factors * x).mean((2, 3)))


class UNet(nn.Module):
    """Down, up by a transposed convolution and by nearest neighbours, with concatenated skips."""

    def __init__(self, *, dense: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = dense
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.join, self.last = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.one(x))
        two = torch.relu(self.bn(self.two(F.max_pool2d(one, 2))))
        x = torch.relu(self.join(torch.cat([torch.relu(self.norm(self.up(two))), one], 1)))
        x = self.last(torch.cat([x, F.interpolate(two, scale_factor=2.0, mode="nearest")], 1))
        return x if self.dense else torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


def test_products_and_gates() -> None:
    assert {Mul, Table} <= assert_same(prepared(Gated()))


@pytest.mark.parametrize(("dense", "shape"), [(False, (5,)), (True, (5, SIDE, SIDE))])
def test_a_decoder(dense: bool, shape: tuple[int, ...]) -> None:
    """It ends in an average, or in logits of every pixel."""
    net = prepared(UNet(dense=dense))
    kinds = assert_same(net)
    assert Move in kinds and (PlaneSum in kinds) != dense
    graph = lower(net, bits=8)
    assert net.output_shape == graph.edges[graph.output].shape == shape
    with torch.no_grad(), at_bits(net, 8):
        real = net(images(3))
    logits = torch.from_numpy(graph.run(images(3).numpy())) * graph.edges[graph.output].scale
    torch.testing.assert_close(logits.float(), real, rtol=1e-5, atol=0.0)  # one product in float32


def test_a_network_that_draws_ends_in_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    down = (nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.SiLU())
    net = prepared(nn.Sequential(*down, nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)))
    assert net.output_shape == (3, SIDE, SIDE)
    assert_same(net)


def test_passes_improve_logits_of_every_pixel() -> None:
    net = multibit(UNet(dense=True), bits=(32, 3), image_shape=(3, SIDE, SIDE))
    report = calibrate(net, images(16), passes=("equalise", "rounding", "bias"))
    assert report.passes[-1].mse_after < report.passes[0].mse_before


def test_a_plain_mlp() -> None:
    torch.manual_seed(0)
    size = 3 * SIDE * SIDE
    layers = (nn.Linear(size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))
    assert_same(prepared(nn.Sequential(nn.Flatten(), *layers)))


def test_gradients_pass_through_tables_and_products() -> None:
    net = prepared(Gated())
    x = (images(6)[2:].float() / 255).requires_grad_()
    with at_bits(net, 8):
        net(x).square().sum().backward()
        exact = x.grad
        assert exact is not None and float(exact.abs().amax()) > 0
        x.grad = None
    with at_bits(net, 32):
        net(x).square().sum().backward()
    assert x.grad is not None
    assert float(F.cosine_similarity(exact.flatten(), x.grad.flatten(), dim=0)) > 0.9


def test_training_moves_the_steps_of_tables_and_products() -> None:
    net = multibit(Gated(), bits=(32, 4), image_shape=(3, SIDE, SIDE)).train()
    with at_bits(net, 4):
        net(images(4)).square().sum().backward()
    for name in ("silu", "mul"):
        step = net.grid(name).steps["4"]
        assert step.grad is not None and float(step.grad.abs()) > 0, name


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


REFUSALS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attention": (lambda: Around(nn.MultiheadAttention(8, 2)), "MultiheadAttention at 'between': its softmax"),
    "layer norm": (lambda: Around(nn.LayerNorm(SIDE)), "LayerNorm at 'between': it divides.*BatchNorm"),
    "group norm": (lambda: Around(nn.GroupNorm(2, 8)), "GroupNorm at 'between'.*BatchNorm"),
    "softmax": (lambda: Around(nn.Softmax(1)), "Softmax at 'between'.*Sigmoid"),
    "bilinear": (lambda: Around(nn.Upsample(scale_factor=2, mode="bilinear")), "mode='nearest'.*'bilinear'"),
    "odd factor": (lambda: Around(nn.Upsample(size=(11, 11))), r"whole factors.*\(8, 8\) to \(11, 11\)"),
    "batch": (lambda: Around(lambda x: x.reshape(2, 4, SIDE, SIDE), 4), "batch axis to stay"),
    "steps": (lambda: Around(lambda x: x[:, ::2], 4), "slices without steps"),
    "constant": (lambda: Around(Constant()), "product of two tensors.*constant"),
    "padding": (lambda: Around(nn.ConvTranspose2d(8, 8, 1, padding=1)), "padding below its kernel"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_operator_and_what_to_do(name: str) -> None:
    make, words = REFUSALS[name]
    with pytest.raises(InputError, match=words):
        multibit(make(), bits=(32, 8), image_shape=(3, SIDE, SIDE))
