"""What a float network sees of the pixels, and the layer that shows it just that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeq import calib, runs
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.graph import Conv
from edgeq.export.reference import run
from edgeq.models import build
from edgeq.pixels import OWN, Pixels, is_own
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import QuantConfig
from edgeq.quant.weighted import WeightedUnit

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGES = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8", classes=10).eval()


@given(mean=st.floats(-1, 1), std=st.floats(0.01, 2))
def test_the_line_is_the_normalisation(mean: float, std: float) -> None:
    pixels, every = Pixels((mean,), (std,)), np.arange(256, dtype=np.uint8)
    gain, shift = pixels.line(1)[:, 0]
    np.testing.assert_allclose(gain * every + shift, pixels.floats(every.reshape(1, 1, 1, -1))[0, 0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((), (1.0,)),
        ((0.5,), ()),
        ((0.5,), (0.0,)),
        ((0.5,), (-1.0,)),
        ((0.5,), (1e-9,)),
        ((0.5,), (float("inf"),)),
        ((float("nan"),), (1.0,)),
        ((float("inf"),), (1.0,)),
    ],
)
def test_numbers_that_are_none_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="means and positive standard deviations"):
        Pixels(mean, std)


@pytest.mark.parametrize("pixels", [Pixels((0.5, 0.5), (0.5,)), Pixels((0.5,), (0.5, 0.5, 0.5, 0.5))])
def test_as_many_numbers_as_channels(pixels: Pixels) -> None:
    with pytest.raises(InputError, match="one for each of 3 channels"):
        multibit(network(), pixels=pixels)


@pytest.mark.parametrize("pixels", [IMAGENET, Pixels(), Pixels((0.5,), (0.5,)), Pixels((0.0,), (1 / 255,))])
def test_the_float_network_is_the_one_that_was_given(pixels: Pixels) -> None:
    """The border too: zeros stand there for the mean, which is no pixel of value 128."""
    model = network()
    net = multibit(model, bits=(32, 8), pixels=pixels)
    with torch.no_grad(), at_bits(net.eval(), 32):
        expected = model(torch.from_numpy(pixels.floats(IMAGES.numpy())))
        np.testing.assert_allclose(net(IMAGES), expected, atol=1e-5 * float(expected.abs().amax()))


def test_the_layer_shows_each_pixel_what_it_should_within_half_a_code() -> None:
    net = multibit(network(), bits=(32, 4), pixels=IMAGENET)
    calib.calibrate(net, IMAGES, method=calib.MinMax(), bn=False)
    graph = lower(net.eval(), bits=4)
    step = graph.edges["pixels"].scale
    off = run(graph, IMAGES.numpy())["pixels"] * step - IMAGENET.floats(IMAGES.numpy())
    assert np.abs(off).max() <= 1.5 * step  # half of it rounding, the rest eight bits of weight and multiplier


@pytest.mark.parametrize("edge_bits", [8, 0])
def test_pixels_have_eight_bits_and_the_first_layer_is_the_networks(edge_bits: int) -> None:
    net = multibit(network(), config=QuantConfig(bits=(32, 2), edge_bits=edge_bits), pixels=IMAGENET)
    layers = {name: unit for name, unit in net.units.items() if isinstance(unit, WeightedUnit)}
    first, second = list(layers)[:2]
    assert first == "pixels" and (layers[first].weight_bits[2], layers[first].input_bits[2]) == (8, 8)
    assert (layers[second].weight_bits[2], layers[second].input_bits[2]) == (edge_bits or 2, 8)
    assert not any(
        parameter.requires_grad for parameter in (layers[first].weight, layers[first].bias) if parameter is not None
    )


@pytest.mark.parametrize("pixels", [OWN, Pixels((0.501961,), (0.250980,)), Pixels((0.50196,) * 3, (0.25098,) * 3)])
def test_what_the_network_sees_anyway_needs_no_layer(pixels: Pixels) -> None:
    assert is_own(pixels, 3)
    assert not any(isinstance(node, Conv) and node.groups == 3 for node in lowered(pixels).nodes)
    assert not is_own(Pixels((0.5,), (0.25,)), 3)


def lowered(pixels: Pixels):
    net = multibit(network(), bits=(32, 8), pixels=pixels)
    calib.calibrate(net, IMAGES, method=calib.MinMax(), bn=False)
    return lower(net.eval(), bits=8)


def test_a_layer_of_that_name_keeps_it() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pixels = nn.Conv2d(3, 4, 1)
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.pixels(x).relu().mean((2, 3)))

    units = multibit(Named(), bits=(32, 8), pixels=IMAGENET).units
    assert units["pixels"].get_parameter("weight").shape[0] == 4 and sum("pixels" in name for name in units) == 2


def test_a_run_knows_its_pixels(tmp_path: Path) -> None:
    quant = QuantConfig(bits=(32, 8))
    info = runs.RunInfo("resnet8", "signs", quant, tuple("abcdefghij"), (3, 32, 32), {}, IMAGENET)
    net = runs.new_network(info)
    runs.write_info(tmp_path, info)
    runs.save_weights(tmp_path, net)
    read, again = runs.load_run(tmp_path)
    assert read.pixels == IMAGENET and "pixels" in again.units


def test_a_run_from_before_sees_what_it_was_trained_on(tmp_path: Path) -> None:
    info = runs.RunInfo("resnet8", "signs", QuantConfig(bits=(32, 8)), tuple("abcdefghij"), (3, 32, 32), {})
    runs.write_info(tmp_path, info)
    config = tmp_path / runs.CONFIG
    text = config.read_text()
    config.write_text(text[: text.index('"pixels"')] + text[text.index('"versions"') :])
    assert runs.read_info(tmp_path).pixels == OWN
