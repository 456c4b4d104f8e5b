import numpy as np
import pytest
import torch
from torch import nn

from edgeq.errors import InputError
from edgeq.export.dialects import build
from edgeq.export.importers import agreement, onnx_original
from edgeq.export.importers.pt2e import import_pt2e, pt2e_original, to_onnx
from edgeq.export.verify import prove

pytestmark = pytest.mark.filterwarnings("ignore")  # torch and torchao warn of their own plans


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.na, self.nb = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.nb(self.b(torch.relu(self.na(self.a(x))))))


class Network(nn.Sequential):
    def __init__(self) -> None:
        first = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), Block()]
        last = [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
        super().__init__(*first, *last)


def converted(model: nn.Module, steps: int) -> torch.fx.GraphModule:
    """Train a model a little, and let PT2E calibrate and convert it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 5, (8,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    exported = torch.export.export(model.eval(), (images,)).module()
    config = get_symmetric_quantization_config(is_per_channel=True)
    prepared = prepare_pt2e(exported, XNNPACKQuantizer().set_global(config))
    prepared(images)
    return convert_pt2e(prepared)


@pytest.mark.slow
def test_a_network_converted_by_pt2e_keeps_its_codes_up_to_ties(tools) -> None:
    torch.manual_seed(0)
    module = converted(Network(), 6)
    imported, images = import_pt2e(module), tools.images(40, 5)
    exact = agreement(imported, pt2e_original(module), images, graph=imported.long)
    assert exact.codes > 100_000 and exact.differ <= exact.codes // 200
    assert exact.same_class >= 38
    price = agreement(imported, pt2e_original(module), images)
    assert price.differ < price.codes // 4 and price.same_class >= 36
    assert all(proof.exact for proof in prove(imported.graph, build(imported.graph, "ort").SerializeToString()))
    written = agreement(imported, onnx_original(to_onnx(module)), images, graph=imported.long)
    assert written.differ <= written.codes // 200  # the ONNX form is the same network


def test_operators_without_an_integer_form_are_named() -> None:
    module = torch.export.export(nn.Sigmoid(), (torch.zeros(1, 3, 2, 2),)).module()
    with pytest.raises(InputError, match=r"got aten\.sigmoid\.default 'sigmoid'"):
        import_pt2e(module)


def test_a_float_graph_is_refused() -> None:
    module = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (torch.zeros(1, 3, 2, 2),)).module()
    with pytest.raises(InputError, match=r"expected quantized inputs|expected quantized constant weights"):
        import_pt2e(module)


def test_the_batch_of_the_graph_is_kept() -> None:
    module = torch.export.export(nn.ReLU(), (torch.zeros(2, 3, 2, 2),)).module()
    run = pt2e_original(module)
    (value,) = run(np.ones((4, 3, 2, 2), np.float32), ["relu"]).values()
    assert value.shape == (4, 3, 2, 2)
    with pytest.raises(InputError, match="expected a multiple of 2 images, got 3"):
        run(np.ones((3, 3, 2, 2), np.float32), ["relu"])


def test_a_view_by_the_batchs_size_is_a_flatten() -> None:
    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], -1)

    free = {"x": {0: torch.export.Dim("n")}}
    module = torch.export.export(View(), (torch.zeros(2, 3, 2, 2),), dynamic_shapes=free).module()
    (node,) = to_onnx(module).graph.node
    assert node.op_type == "Reshape"
