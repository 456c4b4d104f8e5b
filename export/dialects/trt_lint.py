"""TensorRT's rules for explicit quantization, checked on the file alone: no GPU and no TensorRT is needed.

The rules are those of NVIDIA's documentation for 10.x and 11.x (strongly typed networks): symmetric int8 with zero
points 0, per-tensor activations, weights per output channel, DequantizeLinear on every input of a weighted layer and on
both inputs of an addition, no convolution below 8 bits, uint8 for network inputs alone. A model without findings may
still be refused or run slowly by a TensorRT version; only building an engine tells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSETS = range(13, 21)  # per-channel Q/DQ came with 13; TensorRT 10.0 knows 20
IR_VERSIONS = range(7, 11)
FLOAT, UINT8, INT8, INT32, INT64, BOOL = 1, 2, 3, 6, 7, 9  # of onnx.TensorProto
TYPES = {FLOAT, INT8, INT32, INT64, BOOL}
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}  # axis of the output channels in the weight
OPERATORS = {
    *WEIGHTED,
    *(
        "QuantizeLinear",
        "DequantizeLinear",
        "Cast",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Min",
        "Max",
        "Relu",
        "Clip",
        "Sigmoid",
    ),
    *(
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "ReduceSum",
        "ReduceMean",
        "Concat",
        "Flatten",
        "Reshape",
        "Split",
    ),
    *("Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Resize", "Softmax", "Tanh", "Identity", "HardSwish"),
    *("Gather", "Expand", "ReduceMax", "ReduceMin", "Equal", "Where"),
}


@dataclass(frozen=True)
class Finding:
    """One rule that a model breaks.

    Attributes:
        rule: Name of the rule: version, operator, type, zero-point, scale, axis or placement.
        where: Operator or tensor.
        message: What was expected, what came, and what to do.
    """

    rule: str
    where: str
    message: str


def lint(model: "onnx.ModelProto") -> tuple[Finding, ...]:
    """Return every broken rule of a Q/DQ model, in the order of its operators."""
    return (*_versions(model), *_Linter(model).findings())


def _versions(model: "onnx.ModelProto") -> Iterator[Finding]:
    domains = {item.domain: item.version for item in model.opset_import}
    opset = domains.pop("", domains.pop("ai.onnx", 0))
    if opset not in OPSETS:
        wanted = f"{OPSETS.start} to {OPSETS.stop - 1}"
        yield Finding("version", "opset", f"expected opset {wanted}, got {opset}; export with one of them")
    if model.ir_version not in IR_VERSIONS:
        wanted = f"{IR_VERSIONS.start} to {IR_VERSIONS.stop - 1}"
        yield Finding("version", "IR", f"expected IR version {wanted}, got {model.ir_version}; set it explicitly")
    for domain in domains:
        yield Finding("operator", domain, f"expected operators of ONNX alone, got the domain {domain!r}; remove it")


class _Linter:
    """Look-ups in one model, and a rule per method."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        from onnx import numpy_helper, shape_inference

        inferred = shape_inference.infer_shapes(model).graph
        self.graph = model.graph
        self.array = numpy_helper.to_array
        self.constants = {value.name: value for value in model.graph.initializer}
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.outputs = {value.name for value in model.graph.output}
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: value.data_type for name, value in self.constants.items()}

    def findings(self) -> Iterator[Finding]:
        for node in self.graph.node:
            if node.op_type not in OPERATORS:
                yield self._found("operator", node, f"an operator with an int8 path, got {node.op_type}", "replace it")
            yield from self._types(node)
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield from self._quantizer(node)
            if node.op_type in WEIGHTED:
                yield from self._weighted(node)
            if node.op_type == "Add":
                yield from self._addition(node)
            if node.op_type == "Clip" and any(name and name not in self.constants for name in node.input[1:]):
                yield self._found("placement", node, "constant limits", "make them initializers")

    def _found(self, rule: str, node: "onnx.NodeProto", expected: str, remedy: str) -> Finding:
        where = node.name or node.output[0]
        return Finding(rule, where, f"expected {expected} at {node.op_type} {where!r}; {remedy}")

    def _types(self, node: "onnx.NodeProto") -> Iterator[Finding]:
        for name in node.input:
            kind = self.types.get(name, 0)
            if kind == UINT8 and not (node.op_type == "Cast" and name not in self.producer):
                yield self._found(
                    "type", node, f"int8, got uint8 {name!r}", "uint8 is for network inputs before a Cast"
                )
            elif kind == INT8 and node.op_type != "DequantizeLinear" and name not in self._zero_points(node):
                yield self._found("placement", node, f"a float tensor, got int8 {name!r}", "dequantize it first")
            elif kind not in TYPES | {UINT8, 0}:
                text = f"float32, int8 or int32, got ONNX type {kind} at {name!r}"
                yield self._found("type", node, text, "no kernel takes it: store weights below 8 bits as int8")

    def _zero_points(self, node: "onnx.NodeProto") -> list[str]:
        return list(node.input[2:3]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else []

    def _quantizer(self, node: "onnx.NodeProto") -> Iterator[Finding]:
        scale, zero = self.constants.get(node.input[1]), self._zero_points(node)
        if scale is None:
            yield self._found("scale", node, "a constant scale", "calibrate before the export")
            return
        values = self.array(scale)
        if scale.data_type != FLOAT or not (np.isfinite(values).all() and (values > 0).all()):
            yield self._found("scale", node, "positive finite float32 scales", "calibrate again")
        if not zero and node.op_type == "QuantizeLinear":
            yield self._found("zero-point", node, "an int8 zero point of 0, got none", "ONNX would make that uint8")
        for name in zero:
            value = self.constants.get(name)
            if value is None or value.data_type != INT8 or self.array(value).any():
                text = "an int8 zero point of 0"
                yield self._found("zero-point", node, text, "quantize symmetrically to signed bytes")
        if values.size > 1 and node.input[0] not in self.constants:
            yield self._found("scale", node, "one scale for an activation", "quantize activations per tensor")

    def _weighted(self, node: "onnx.NodeProto") -> Iterator[Finding]:
        for position, name in enumerate(node.input[:2]):
            source = self.producer.get(name)
            if source is None or source.op_type != "DequantizeLinear":
                text = f"a DequantizeLinear before input {position}"
                yield self._found("placement", node, text, "quantize every input of the layer, its weights too")
            elif position == 1 and source.input[0] in self.constants:
                yield from self._weight(node, source)
        for name in node.input[2:3]:
            if name and self.types.get(name) != FLOAT:
                yield self._found("type", node, "a float32 bias", "keep biases in float; they are fused")

    def _weight(self, node: "onnx.NodeProto", source: "onnx.NodeProto") -> Iterator[Finding]:
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        expected = 0 if transposed else WEIGHTED[node.op_type]
        axis = next((item.i for item in source.attribute if item.name == "axis"), 1)
        scale = self.constants.get(source.input[1])
        if scale is not None and int(np.prod(scale.dims)) > 1 and axis != expected:
            yield self._found("axis", source, f"axis {expected} (output channels), got {axis}", "quantize along it")
        if self.types.get(source.input[0]) != INT8:
            yield self._found("type", source, "int8 weights", "store weights below 8 bits as int8")

    def _addition(self, node: "onnx.NodeProto") -> Iterator[Finding]:
        for name in node.input:
            source = self.producer.get(name)
            if self.types.get(name) == INT32:
                continue
            if name not in self.constants and (source is None or source.op_type != "DequantizeLinear"):
                text = f"a DequantizeLinear before input {name!r}"
                yield self._found("placement", node, text, "quantize both inputs of an addition, the residual one too")
