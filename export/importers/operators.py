"""The float operators between quantizers: what each makes of the meanings of its inputs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import InputError

from ..graph import Concat, Flatten, MaxPool, Node
from .build import Builder
from .meaning import Codes, Joined, Layer, Mean, Pending, Sum, Weight

if TYPE_CHECKING:
    import onnx


def refused(node: "onnx.NodeProto", expected: str, remedy: str, got: str = "") -> InputError:
    """Return the error that names an operator which has no integer form."""
    where = f"{node.op_type} {(node.name or node.output[0])!r}"
    return InputError(f"expected {expected}, got {got + ' at ' if got else ''}{where}; {remedy}")


def attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    """Return the attributes of an operator."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def clip_ends(node: "onnx.NodeProto", inputs: list[Any]) -> tuple[float, float]:
    """Return the limits of a Clip."""
    given = attributes(node)
    ends = [*inputs[1:], None, None][:2]
    low, high = (
        float(np.asarray(end).reshape(-1)[0]) if end is not None else given.get(key, default)
        for end, key, default in zip(ends, ("min", "max"), (-np.inf, np.inf), strict=True)
    )
    return low, high


def codes_of(node: "onnx.NodeProto", value: Any) -> Codes:
    """Return an operand that has been quantized, or refuse the operator."""
    if isinstance(value, Codes):
        return value
    got = f"the float result of {value.name!r}" if isinstance(value, Pending) else "a float tensor"
    raise refused(node, "quantized inputs", "put a quantizer before it", got)


def _conv(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    given = attributes(node)
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        raise refused(node, "explicit pads", "export it with pads")
    source, (weight, scale) = codes_of(node, inputs[0]), _layer_weight(node, inputs[1], 0)
    if weight.ndim != 4:
        raise refused(node, "a two-dimensional convolution", "replace it")
    geometry = {
        "stride": tuple(given.get("strides", (1, 1))),
        "padding": tuple(given.get("pads", (0, 0, 0, 0))),
        "dilation": tuple(given.get("dilations", (1, 1))),
        "groups": given.get("group", 1),
    }
    bias = _bias(node, inputs[2] if len(inputs) > 2 else None, len(weight))
    return Pending(Layer(source, weight, scale, bias, geometry), _title(node))


def _gemm(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    given = attributes(node)
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
        raise refused(node, "a Gemm with alpha = beta = 1 and transA = 0", "export it as a Linear layer")
    source = codes_of(node, inputs[0])
    weight, scale = _layer_weight(node, inputs[1], 0 if given.get("transB", 0) else 1)
    bias = _bias(node, inputs[2] if len(inputs) > 2 else None, len(weight))
    return Pending(Layer(source, weight, scale, bias), _title(node))


def _matmul(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    weight, scale = _layer_weight(node, inputs[1], 1)
    source = codes_of(node, inputs[0])
    return Pending(Layer(source, weight, scale, np.zeros(len(weight))), _title(node))


def _layer_weight(node: "onnx.NodeProto", value: Any, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers, output channels first, and their scale per channel."""
    if not isinstance(value, Weight):
        raise refused(node, "quantized constant weights", "quantize them")
    if value.scale.size > 1 and value.axis != axis:
        raise refused(node, f"weight scales along axis {axis}", "quantize per output channel")
    codes = value.codes if axis == 0 else value.codes.T
    return codes, np.broadcast_to(value.scale.astype(np.float64), (len(codes),))


def _bias(node: "onnx.NodeProto", value: Any, channels: int) -> np.ndarray:
    if value is None:
        return np.zeros(channels)
    if not isinstance(value, Weight | np.ndarray):
        raise refused(node, "a constant bias", "replace it")
    return _per_channel(node, value.real() if isinstance(value, Weight) else value, channels, 2)


def _per_channel(node: "onnx.NodeProto", value: np.ndarray, channels: int, axes: int) -> np.ndarray:
    """Return a constant that is added to a layer's result of some axes, as one number a channel."""
    shape = (1,) * (axes - value.ndim) + value.shape
    if len(shape) != axes or shape[1] not in (1, channels) or value.size != shape[1]:
        raise refused(node, "one number for each channel", "write it as the layer's bias", f"the shape {value.shape}")
    return np.broadcast_to(value.reshape(-1), (channels,))


def _add(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    constants = [value for value in inputs if isinstance(value, Weight | np.ndarray)]
    rest = [value for value in inputs if not isinstance(value, Weight | np.ndarray)]
    if constants and isinstance(rest[0], Pending) and isinstance(rest[0].what, Layer):
        layer, free = rest[0].what, not rest[0].after and np.isinf([rest[0].low, rest[0].high]).all()
        bias = constants[0].real() if isinstance(constants[0], Weight) else constants[0]
        if free:
            bias = layer.bias + _per_channel(node, bias, len(layer.bias), 2 if layer.geometry is None else 4)
            return Pending(Layer(layer.source, layer.weight, layer.scale, bias, layer.geometry), rest[0].name)
    if constants:
        raise refused(node, "two quantized tensors, or a bias right behind its layer", "fold the constant")
    a, b = (codes_of(node, value) for value in inputs)
    return Pending(Sum(a, b), _title(node))


def _relu(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    return _limited(node, inputs[0], 0.0, np.inf)


def _clip(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    low, high = clip_ends(node, inputs)
    return _limited(node, inputs[0], low, high)


def _limited(node: "onnx.NodeProto", value: Any, low: float, high: float) -> Pending:
    if not low <= 0 < high:
        raise refused(node, "a range around 0", "replace it", f"{low}..{high}")
    if isinstance(value, Pending):
        return value.clipped(low, high)
    return Pending(codes_of(node, value), _title(node), low, high)


def _moved(builder: Builder, node: "onnx.NodeProto", value: Any, make: Callable[[str, str], Node]) -> "Pending | Codes":
    """Append an operator that moves values, now or behind the quantizer that is still to come."""
    if isinstance(value, Pending):
        return Pending(value.what, value.name, value.low, value.high, (*value.after, make))
    return builder.moved(codes_of(node, value), make, _title(node))


def _max_pool(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> "Pending | Codes":
    kernel, stride, padding = _window(node)
    return _moved(builder, node, inputs[0], lambda name, edge: MaxPool(name, edge, kernel, stride, padding))


def _average_pool(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    kernel, stride, padding = _window(node)
    if any(padding) and not attributes(node).get("count_include_pad", 0):
        raise refused(node, "padding that counts as zeros", "set count_include_pad or use no padding")
    return Pending(Mean(codes_of(node, inputs[0]), kernel, stride, padding), _title(node))


def _global_average(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    return Pending(Mean(codes_of(node, inputs[0]), None, (1, 1), (0, 0, 0, 0)), _title(node))


def _reduce_mean(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> Pending:
    given = attributes(node)
    axes = given.get("axes") or (np.asarray(inputs[1]).tolist() if len(inputs) > 1 else [])
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise refused(node, "a mean over height and width", "replace it")
    pending = _global_average(builder, node, inputs)
    return pending if given.get("keepdims", 1) else Pending(pending.what, pending.name, after=(Flatten,))


def _window(node: "onnx.NodeProto") -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    given = attributes(node)
    plain = not given.get("ceil_mode", 0) and set(given.get("dilations", [1])) == {1}
    if not plain or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"") or len(given["kernel_shape"]) != 2:
        raise refused(node, "windows without ceil_mode, dilation and auto_pad", "export it with plain windows")
    kernel, stride = given["kernel_shape"], given.get("strides", [1, 1])
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    return (kernel[0], kernel[1]), (stride[0], stride[1]), (top, left, bottom, right)


def _flatten(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> "Pending | Codes":
    error = refused(node, "all axes but the batch in one", "flatten before the linear layers only")
    width = -1
    if node.op_type == "Reshape":
        target = np.asarray(inputs[1]).reshape(-1).tolist()
        if len(target) != 2 or target[0] not in (-1, 0, builder.batch or 0) or target == [-1, -1]:
            raise error
        width = target[1]
    elif attributes(node).get("axis", 1) != 1:
        raise error

    def flatten(name: str, edge: str) -> Node:
        if width not in (-1, int(np.prod(builder.edges[edge].shape))):
            raise error
        return Flatten(name, edge)

    shape = builder.edges[inputs[0].edge].shape if isinstance(inputs[0], Codes) else ()
    if len(shape) == 1 and width in (-1, *shape):
        return inputs[0]
    return _moved(builder, node, inputs[0], flatten)


def _concat(builder: Builder, node: "onnx.NodeProto", inputs: list[Any]) -> "Pending | Codes":
    if attributes(node).get("axis", 1) not in (1, -3):
        raise refused(node, "a concatenation of channels", "replace it")
    parts = tuple(codes_of(node, value) for value in inputs)
    if len({np.float32(part.scale) for part in parts}) > 1:
        return Pending(Joined(parts), _title(node))
    edges = [builder.edges[part.edge] for part in parts]
    joined = Concat(builder.name(_title(node)), tuple(part.edge for part in parts))
    return builder.put(joined, min(e.lo for e in edges), max(e.hi for e in edges), parts[0].scale)


def _title(node: "onnx.NodeProto") -> str:
    return node.name or node.output[0]


OPERATORS: dict[str, Callable[[Builder, "onnx.NodeProto", list[Any]], Pending | Codes]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
    "Relu": _relu,
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduce_mean,
    "Flatten": _flatten,
    "Reshape": _flatten,
    "Concat": _concat,
}
