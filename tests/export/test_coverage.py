"""docs/coverage.md: every network of its table in every dialect, and every refusal."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeq.calib import MinMax, calibrate
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.dialects import build
from edgeq.export.executor import TorchExecutor
from edgeq.export.reference import run
from edgeq.export.verify import certify
from edgeq.models import build as network
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet
from edgeq.quant.tables import FUNCTIONS
from edgeq.quant.trace_functions import MODULES, NO_INTEGER_FORM

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
BITS = (8, 5, 4, 2)
EVERY_CHANGE = ("resnet8", "torchvision/shufflenet_v2_x0_5", "torchvision/mobilenet_v3_small")
NETWORKS = (
    ("resnet8", 32),
    ("resnet20", 32),
    ("mobilenet_v2", 32),
    ("vgg16_bn", 32),
    ("torchvision/alexnet", 64),
    ("torchvision/densenet121", 32),
    ("torchvision/efficientnet_b0", 32),
    ("torchvision/mnasnet0_5", 32),
    ("torchvision/mobilenet_v2", 32),
    ("torchvision/mobilenet_v3_small", 32),
    ("torchvision/regnet_y_400mf", 32),
    ("torchvision/resnet18", 32),
    ("torchvision/resnet50", 32),
    ("torchvision/shufflenet_v2_x0_5", 32),
    ("torchvision/squeezenet1_1", 32),
    ("torchvision/vgg11", 32),
)
TOO_LARGE = ("torchvision/vgg11",)  # for a qonnx file, at 8 bits
REFUSED = (
    ("torchvision/vit_b_16", "MultiheadAttention"),
    ("torchvision/swin_t", "LayerNorm"),
    ("torchvision/convnext_tiny", "LayerNorm"),
)


def stirred(name: str) -> nn.Module:
    """Return an untrained network with the irregular statistics of a trained one."""
    torch.manual_seed(0)
    model, generator = network(name, classes=10).eval(), torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.3, generator=generator)
    return model


def prepared(name: str, side: int, bits: tuple[int, ...]) -> MultiBitNet:
    net = multibit(stirred(name), bits=(32, *bits), image_shape=(3, side, side))
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator)
    calibrate(net, images, method=MinMax(), weights="minmax", bn=False)
    return net.eval()


def inputs(side: int, flat: int) -> np.ndarray:
    """Return random images, and flat ones (smallest and largest bytes among them), at which many codes meet ties."""
    rng = np.random.default_rng(3)
    levels = np.linspace(0, 255, flat).astype(np.uint8)
    return np.concatenate(
        [rng.integers(0, 256, (3, 3, side, side), np.uint8), np.tile(levels[:, None, None, None], (1, 3, side, side))]
    )


def assert_exact(net: MultiBitNet, bits: int, targets: tuple[str, ...], *, flat: int) -> None:
    graph, images = lower(net, bits=bits), inputs(net.image_shape[1], flat)
    codes, fast = run(graph, images), TorchExecutor(graph).edges(torch.from_numpy(images))
    with torch.no_grad(), at_bits(net, bits):
        values = net.values(torch.from_numpy(images), keep=net.names)
    for name, expected in codes.items():
        np.testing.assert_array_equal(fast[name].numpy(), expected, err_msg=name)
        if name in values:
            np.testing.assert_array_equal(values[name].codes.double().numpy(), expected, err_msg=name)
    for target in targets:
        model = build(graph, target).SerializeToString()
        engines = ("onnxruntime", "qonnx") if target == "qonnx" else ("onnxruntime",)
        found = certify(graph, model, target=target, inputs=images, engines=engines, quick=True)
        assert found.exact and not found.mismatches, (target, found.failures()[:3])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("name", "side"),
    [pytest.param(*n, marks=pytest.mark.ci_slow if n[0] in EVERY_CHANGE else pytest.mark.slow) for n in NETWORKS],
)
def test_networks_are_exact_in_every_dialect(name: str, side: int, bits: int) -> None:
    net, targets = prepared(name, side, (bits,)), ("ort", "proof", "qonnx", "trt")
    if name in TOO_LARGE and bits == 8:
        with pytest.raises(InputError, match="2 GiB"):
            build(lower(net, bits=8), "qonnx")
        targets = ("ort", "proof", "trt")
    assert_exact(net, bits, targets, flat=16)


@pytest.mark.parametrize(("name", "operator"), REFUSED)
def test_networks_without_an_integer_form_are_refused_by_name(name: str, operator: str) -> None:
    with torch.device("meta"):
        model = network(name, classes=10)
    with pytest.raises(InputError, match=f"expected operators with an exact integer form, got {operator} at .*;"):
        multibit(model, image_shape=(3, 64, 64))


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not shipped with the tests")
def test_the_page_lists_what_is_tested() -> None:
    page = PAGE.read_text()
    rows = re.findall(r"^\| (\S+) \| (\d+) \| yes \| yes \| (yes|below 8 bits) \| yes \|$", page, re.MULTILINE)
    assert {(name, int(side)) for name, side, _ in rows} == set(NETWORKS)
    assert {name for name, _, qonnx in rows if qonnx != "yes"} == set(TOO_LARGE)
    assert set(re.findall(r"^\| (torchvision/\S+) \| ([A-Za-z]+) \|$", page, re.MULTILINE)) == set(REFUSED)
    for module in (*MODULES, *NO_INTEGER_FORM):
        assert re.search(rf"\b{module.__name__}\b", page), module
    assert {name for name, _ in MODULES.values()} == set(FUNCTIONS)
