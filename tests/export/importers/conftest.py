"""A small float network as ONNX, and ONNX Runtime's own static quantization of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 16, 16)


def floats(seed: int = 0) -> onnx.ModelProto:
    """Two stages, a residual addition, both kinds of pooling, a classifier."""
    rng = np.random.default_rng(seed)
    nodes, constants = [], []

    def const(value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, f"c{len(constants)}"))
        return constants[-1].name

    def conv(name: str, source: str, channels: tuple[int, int], **attributes) -> str:
        weight = rng.normal(0, (2 / (9 * channels[0])) ** 0.5, (channels[1], channels[0], 3, 3)).astype(np.float32)
        bias = rng.normal(0, 0.1, channels[1]).astype(np.float32)
        inputs = [source, const(weight), const(bias)]
        nodes.append(helper.make_node("Conv", inputs, [name], name, pads=[1, 1, 1, 1], **attributes))
        return name

    def op(kind: str, name: str, *sources: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, list(sources), [name], name, **attributes))
        return name

    x = op("Relu", "relu0", conv("conv0", "x", (3, 8), strides=[2, 2]))
    y = conv("conv2", op("Relu", "relu1", conv("conv1", x, (8, 8))), (8, 8))
    x = op("Relu", "relu2", op("Add", "add", x, y))
    x = op("MaxPool", "max", x, kernel_shape=[2, 2], strides=[2, 2])
    x = op("Flatten", "flat", op("GlobalAveragePool", "mean", x))
    weight = rng.normal(0, 0.5, (5, 8)).astype(np.float32)
    op("Gemm", "logits", x, const(weight), const(rng.normal(0, 0.1, 5).astype(np.float32)), transB=1)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SHAPE])]
    ends.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5]))
    graph = helper.make_graph(nodes, "floats", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(folder: Path, kind: str) -> Path:
    """Quantize with ONNX Runtime's tools, U8S8 or S8S8, one scale per channel of a weight."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": images(16, seed).astype(np.float32) / 255} for seed in range(3)])

        def get_next(self):
            return next(self.batches, None)

    source, target = folder / "float.onnx", folder / f"{kind}.onnx"
    onnx.save(floats(), str(source))
    activation = QuantType.QUInt8 if kind == "U8S8" else QuantType.QInt8
    options = {"activation_type": activation, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, **options)
    return target


def images(count: int, seed: int = 0) -> np.ndarray:
    """Return smooth images, as unlike noise as a few lines allow."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, SHAPE[0], 4, 4))
    return coarse.repeat(4, 2).repeat(4, 3).astype(np.uint8)


class Tools:
    """What the tests of this folder share."""

    floats = staticmethod(floats)
    images = staticmethod(images)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture(scope="session", params=["U8S8", "S8S8"])
def static(request, tmp_path_factory) -> Path:
    return quantized(tmp_path_factory.mktemp(request.param), request.param)
