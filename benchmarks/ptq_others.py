"""Other tools' post-training quantization, for `ptq.py`: the float network as ONNX, quantized and run by each."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgeq.export.engines import session
from edgeq.quant.bits import FLOAT_BITS, at_bits
from edgeq.quant.network import MultiBitNet

Floats = np.ndarray
BATCH = 64
IMAGE, LOGITS = "image", "logits"


class _Float(nn.Module):
    def __init__(self, net: MultiBitNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with at_bits(self.net, FLOAT_BITS):
            return self.net(image)


def float_model(net: MultiBitNet, path: Path) -> Path:
    """Write the network at 32 bits as ONNX that takes pixels in [0, 1], prepared as ONNX Runtime's tools want it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    example = torch.zeros(1, *net.image_shape)
    raw = path.with_suffix(".raw.onnx")
    names = {"input_names": [IMAGE], "output_names": [LOGITS], "dynamic_axes": {IMAGE: {0: "n"}, LOGITS: {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(_Float(net).eval(), (example,), str(raw), dynamo=False, opset_version=17, **names)
    quant_pre_process(str(raw), str(path), skip_symbolic_shape=True)
    onnx.save(with_flat_biases(onnx.load(path)), path)
    return path


def with_flat_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make biases of linear layers vectors: of a (1, n) matrix `quantize_static` writes a model that does not run."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) == 3}
    for value in model.graph.initializer:
        if value.name in biases:
            value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value).reshape(-1), value.name))
    return model


def ort_static(model: Path, images: Floats, calibration: str, activations: str, weights: str) -> bytes:
    """Return ONNX Runtime's own quantized model: Q/DQ, weights per channel."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.items: Iterator[dict] = ({IMAGE: images[i : i + BATCH]} for i in range(0, len(images), BATCH))

        def get_next(self) -> dict:
            return next(self.items, {})  # empty: the end

    nodes = list(onnx.load(model).graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul"))
    target = model.with_suffix(".static.onnx")
    logging.getLogger().setLevel(logging.ERROR)
    quantization.quantize_static(
        str(model),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType[activations],
        weight_type=quantization.QuantType[weights],
        per_channel=True,
        calibrate_method=quantization.CalibrationMethod[calibration],
        nodes_to_exclude=[node.name for node in nodes[:first]],  # the pixels' normalisation stays in float
    )
    return target.read_bytes()


def ort_logits(model: bytes) -> Callable[[Floats], Floats]:
    """Return what runs a model in ONNX Runtime."""
    running = session(model)
    return lambda images: np.asarray(running.run([LOGITS], {IMAGE: images})[0])


def nncf_quantized(model: Path, images: Floats, preset: str, accurate: bool, bits: int) -> Any:  # an OpenVINO model
    """Return NNCF's quantized OpenVINO model; other widths than 8 through its advanced parameters."""
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino  # pyright: ignore[reportMissingImports]
    from nncf.quantization.advanced_parameters import (  # pyright: ignore[reportMissingImports]
        AdvancedQuantizationParameters,
        QuantizationParameters,
    )

    nncf.set_log_level(logging.ERROR)
    width = QuantizationParameters(num_bits=bits)
    advanced = AdvancedQuantizationParameters(activations_quantization_params=width, weights_quantization_params=width)
    return nncf.quantize(
        openvino.Core().read_model(str(model)),
        nncf.Dataset([images[i : i + 1] for i in range(len(images))]),
        preset=nncf.QuantizationPreset(preset),
        subset_size=len(images),
        fast_bias_correction=not accurate,
        advanced_parameters=advanced if bits != 8 else None,
    )


def openvino_logits(model: Any) -> Callable[[Floats], Floats]:
    """Return what runs a model in OpenVINO."""
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda images: np.asarray(compiled({IMAGE: images})[LOGITS])
