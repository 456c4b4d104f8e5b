"""Codebooks and drawn images in a multi-bit network: evaluation mode, interpreter and executor give the same codes."""

import pytest
import torch
from torch import Tensor, nn

from edgeq.calib import calibrate
from edgeq.errors import InputError
from edgeq.export import TorchExecutor, lower
from edgeq.export.graph import Codebook
from edgeq.export.reference import run
from edgeq.pixels import Pixels
from edgeq.quant.bits import at_bits
from edgeq.quant.codebook import CodebookUnit, Codewords, nearest
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet
from edgeq.quant.tables import Levels

BITS = (8, 3)
SEEN = Pixels((0.5,), (0.5,))


def autoencoder(between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        between,
        nn.Conv2d(6, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 3, 3, 1, 1),
    ).eval()


def codewords() -> Codewords:
    return Codewords(0.5 * torch.randn(12, 6, generator=torch.Generator().manual_seed(1)))


def images() -> Tensor:
    found = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    found[0], found[1] = 0, 255
    return found


def prepared(model: nn.Module, *, sequential: bool = False) -> MultiBitNet:
    net = multibit(model, bits=(32, *BITS), image_shape=(3, 8, 8), pixels=SEEN, draws=True)
    calibrate(net, images(), sequential=sequential)
    return net.eval()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("between", [codewords(), Levels(8)], ids=["words", "levels"])
def test_an_autoencoder_is_one_function_everywhere(between: nn.Module, sequential: bool) -> None:
    net, x = prepared(autoencoder(between), sequential=sequential), images()
    for bits in BITS:
        graph = lower(net, bits=bits)
        codes, fast = run(graph, x.numpy()), TorchExecutor(graph).edges(x)
        with torch.no_grad(), at_bits(net, bits):
            values = net.values(x, keep=net.names)
            pixels = net(x) * 64 + 128
        for name, expected in codes.items():
            assert torch.equal(fast[name], torch.from_numpy(expected)), name
            if name in values:
                assert torch.equal(values[name].codes.int(), torch.from_numpy(expected)), name
        assert torch.equal(pixels.int(), torch.from_numpy(codes[graph.output]) + 128)
        assert graph.edges[graph.output].scale == 1 / 64


def test_what_lies_beside_codewords_has_8_bits_at_every_width() -> None:
    net = prepared(autoencoder(codewords()))
    graph = lower(net, bits=3)
    (book,) = (node for node in graph.nodes if isinstance(node, Codebook))
    widths = {node.name: getattr(node, "weight_bits", None) for node in graph.nodes}
    assert widths == {"pixels": 8, "0": 8, "3": 8, "4": 8, "5": 8, "7": None, "8": 8} | {
        node.name: None for node in graph.nodes if node.name.endswith("narrow")
    }
    words = codewords().words
    assert graph.edges["4"].scale == pytest.approx(float(words.abs().max()) / 127)
    assert abs(book.weight * graph.edges["4"].scale - words.numpy()).max() <= 0.501 * graph.edges["4"].scale
    assert set(net.grids).isdisjoint({"4", "8"})  # codewords and pixels have steps of their own: nothing to calibrate


def test_the_choice_is_the_nearest_rounded_codeword() -> None:
    net, x = prepared(autoencoder(codewords())), images()
    for bits in BITS:
        with torch.no_grad(), at_bits(net, bits):
            values = net.values(x, keep=("3", "4"))
        latent, chosen = values["3"].real.double(), values["4"].real.double()
        unit = net.units["4"]
        assert isinstance(unit, CodebookUnit) and values["3"].step is not None and values["4"].step is not None
        words = unit.scored(values["3"].step)[0] * float(values["4"].step)
        distances = (latent.permute(0, 2, 3, 1)[..., None, :] - words).square().sum(-1)
        found = (latent - chosen).square().sum(1)
        # the rounded bias moves a distance by one unit of the scores at most
        assert (found - distances.amin(-1)).max() <= 2 * float(values["3"].step) * float(values["4"].step)


def test_gradients_pass_the_choice_straight_through() -> None:
    latent = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    nearest(latent, codewords().words).sum().backward()
    assert latent.grad is not None and torch.equal(latent.grad, torch.ones_like(latent))
    net = prepared(autoencoder(codewords()))
    for training in (False, True):
        x = (images().float() / 255).requires_grad_()
        with at_bits(net.train(training), 3):
            net(x).square().sum().backward()
        assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_the_float_width_draws_what_the_model_draws() -> None:
    model, x = autoencoder(codewords()), images()
    net = prepared(model)
    with torch.no_grad(), at_bits(net, 32):
        torch.testing.assert_close(net(x) * 64 + 128, model(x / 127.5 - 1) * 127.5 + 127.5, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "plain convolution with 3 channels"),
        (nn.Conv2d(3, 4, 1), "of shape"),
    ],
)
def test_what_is_no_image_is_not_drawn(last: nn.Module, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), last)
    with pytest.raises(InputError, match=words):
        multibit(model, image_shape=(3, 8, 8), draws=True)


def test_codewords_are_finite_numbers() -> None:
    for words in (torch.zeros(0, 4), torch.full((2, 2), torch.nan)):
        with pytest.raises(InputError, match="codewords of finite numbers"):
            Codewords(words)
