"""A `trt` model in PyTorch: each ONNX operator as the torch function of that name, nothing fused, on a CPU or a GPU.

It knows the operators of the built-in networks' `trt` files and refuses others. It shares no code with edgeq's torch
executor, which runs the integer graph and not the file.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

Attributes = dict[str, Any]  # of an ONNX operator
TYPES = {1: torch.float32, 3: torch.int8, 6: torch.int32}  # of onnx.TensorProto


def quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.clamp(torch.round(x / scale), -128, 127).to(zero.dtype)


def dequantize(a: Attributes, x: Tensor, scale: Tensor, *zero: Tensor) -> Tensor:
    shape = [1] * x.ndim
    if scale.ndim:
        shape[a.get("axis", 1)] = -1
    return x.to(torch.float32) * scale.reshape(shape)


def padded(a: Attributes, x: Tensor, value: float) -> Tensor:
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    return functional.pad(x, (left, right, top, bottom), value=value)


def conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    stride, dilation = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    return functional.conv2d(padded(a, x, 0.0), weight, bias, tuple(stride), 0, tuple(dilation), a.get("group", 1))


def gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight if a.get("transB") else weight.T, bias)


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    return functional.max_pool2d(padded(a, x, -torch.inf), tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1))))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, x, y: x + y,
    "Cast": lambda a, x: x.to(TYPES[a["to"]]),
    "Clip": lambda a, x, low, high: torch.clamp(x, low, high),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Conv": conv,
    "DequantizeLinear": dequantize,
    "Div": lambda a, x, y: x / y,
    "Flatten": lambda a, x: x.flatten(1),
    "Gemm": gemm,
    "MaxPool": max_pool,
    "Mul": lambda a, x, y: x * y,
    "QuantizeLinear": quantize,
    "ReduceSum": lambda a, x, axes: x.sum(axes.tolist(), keepdim=bool(a.get("keepdims", 1))),
    "Relu": lambda a, x: torch.relu(x),
    "Sub": lambda a, x, y: x - y,
}


class TorchModel:
    """An ONNX model that torch runs, operator by operator."""

    def __init__(self, model: bytes, device: str) -> None:
        read = onnx.load_from_string(model)
        unknown = sorted({node.op_type for node in read.graph.node} - OPERATORS.keys())
        if unknown:
            raise NotImplementedError(f"expected operators of {', '.join(OPERATORS)}, got {', '.join(unknown)}")
        self.device = torch.device(device)
        self.constants = {
            value.name: torch.from_numpy(numpy_helper.to_array(value).copy()).to(self.device)
            for value in read.graph.initializer
        }
        self.steps = [
            (node, {item.name: helper.get_attribute_value(item) for item in node.attribute}) for node in read.graph.node
        ]

    @torch.no_grad()
    def run(self, feed: str, images: np.ndarray, wanted: list[str]) -> list[np.ndarray]:
        """Return some tensors for a batch; TF32 is off."""
        tensors = {**self.constants, feed: torch.from_numpy(images).to(self.device)}
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for node, attributes in self.steps:
                inputs = [tensors[name] if name else None for name in node.input]
                tensors[node.output[0]] = OPERATORS[node.op_type](attributes, *inputs)
        return [tensors[name].cpu().numpy() for name in wanted]
