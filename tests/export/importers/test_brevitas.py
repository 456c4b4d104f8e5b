"""Networks trained with Brevitas, through both of its exports to ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeq.export.dialects import build
from edgeq.export.graph import Conv
from edgeq.export.importers import agreement, import_onnx, onnx_original
from edgeq.export.verify import prove

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # they warn of their own plans


def trained(bits: int, steps: int = 6) -> nn.Module:
    """Train a residual network of `bits` bits a little; its outer layers have 8."""
    qnn = pytest.importorskip("brevitas.nn")
    quant = pytest.importorskip("brevitas.quant")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"weight_bit_width": bits, "weight_quant": quant.Int8WeightPerChannelFloat, "bias": False}
            self.image = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
            self.first = qnn.QuantConv2d(3, 8, 3, padding=1, stride=2, weight_bit_width=8, return_quant_tensor=True)
            self.relu0 = qnn.QuantReLU(bit_width=bits, return_quant_tensor=True)
            self.a = qnn.QuantConv2d(8, 8, 3, padding=1, **options)
            self.relu1 = qnn.QuantReLU(bit_width=bits, return_quant_tensor=True)
            self.b = qnn.QuantConv2d(8, 8, 3, padding=1, **options)
            self.narrow = qnn.QuantIdentity(bit_width=8)
            self.relu2 = qnn.QuantReLU(bit_width=bits, return_quant_tensor=True)
            self.pool, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
            self.grid = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
            self.last = qnn.QuantLinear(8, 5, bias=True, weight_bit_width=8)

        def forward(self, x):
            x = self.relu0(self.first(self.image(x)))
            y = self.narrow(self.b(self.relu1(self.a(x))))
            x = self.relu2(x.value + y if hasattr(x, "value") else x + y)
            return self.last(self.grid(self.mean(self.pool(x))).flatten(1))

    torch.manual_seed(0)
    model, images, labels = Network(), torch.rand(16, 3, 16, 16), torch.randint(0, 5, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("bits", "kind"), [(4, "qcdq"), (4, "qonnx"), (8, "qcdq"), (2, "qonnx")])
def test_a_network_trained_with_brevitas_keeps_its_codes_up_to_ties(
    bits: int, kind: str, tmp_path: Path, tools
) -> None:
    pytest.importorskip("onnxoptimizer")
    pytest.importorskip("onnxscript")
    export = pytest.importorskip("brevitas.export")
    model, path = trained(bits), str(tmp_path / f"{kind}.onnx")
    {"qcdq": export.export_onnx_qcdq, "qonnx": export.export_qonnx}[kind](
        model, torch.rand(1, 3, 16, 16), export_path=path
    )
    imported, images = import_onnx(path), tools.images(30, 3)
    exact = agreement(imported, onnx_original(path), images, graph=imported.long)
    price = agreement(imported, onnx_original(path), images)
    assert exact.differ <= exact.codes // 200 and exact.same_class >= 29
    assert price.differ <= price.codes // 5 and price.same_class >= 28
    assert all(proof.exact for proof in prove(imported.graph, build(imported.graph, "ort").SerializeToString()))
    with torch.no_grad():  # Brevitas's own simulation, not its export
        logits = model(torch.from_numpy(imported.pixels.floats(images)))
    value = logits if isinstance(logits, torch.Tensor) else logits.value
    ours = imported.long.run(images) * imported.long.edges[imported.long.output].scale
    close = np.abs(ours - value.numpy()) < 0.05 * float(value.std())
    assert close.mean() > 0.95 and (ours.argmax(1) == value.numpy().argmax(1)).sum() >= 29
    assert bits in {node.weight_bits for node in imported.graph.nodes if isinstance(node, Conv)}
