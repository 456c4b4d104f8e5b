"""Why ONNX Runtime left operators in float, and what to change: one rule per cause, tried in this order.

Fusion on the CPU wants, for each operator: every input from a DequantizeLinear (weights: of an 8-bit constant), an
operator that has an integer kernel, and a QuantizeLinear right behind it. A Relu between vanishes if the zero point is
the smallest number of its type, for then saturation is the Relu; no other activation does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
LAYERS = {"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
SUMS = {"Add", "Sum"}
PLAIN = {"Relu", "Clip", "Min", "Max"}  # activations that an integer output can express
MOVES = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Concat", "MaxPool"}
SUB_BYTE = {"INT4", "UINT4", "INT2", "UINT2"}
AVERAGES = {"ReduceMean": "GlobalAveragePool", "ReduceSum": "GlobalAveragePool"}
EIGHT_BITS = "Cast the packed weights to INT8 before their DequantizeLinear; the Cast is evaluated while loading"
BEHIND = "put a QuantizeLinear right behind it, with a DequantizeLinear for each reader"
BOTH_SIDES = "put QuantizeLinear and DequantizeLinear between the two"


@dataclass(frozen=True)
class Cause:
    """Why operators run in float.

    Attributes:
        rule: weights, input, residual, relu, clip, activation, types, output, operator or refused.
        operator: The first operator that it concerns.
        op_type: Its type.
        reason: What blocks the integer kernel.
        change: What removes it.
        count: How many operators of the island it concerns.
    """

    rule: str
    operator: str
    op_type: str
    reason: str
    change: str
    count: int = 1


class View:
    """Look-ups in an optimised graph.

    Args:
        graph: The graph.
        kinds: NumPy's name of the type of each tensor.
    """

    def __init__(self, graph: "onnx.GraphProto", kinds: Mapping[str, str]) -> None:
        self.kinds = kinds
        self.nodes = list(graph.node)
        self.values = {value.name: value for value in graph.initializer}
        self.shapes = {name: tuple(value.dims) for name, value in self.values.items()}
        self.outputs = {value.name for value in graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.constant = set(self.values)
        for node in self.nodes:  # in the order of execution
            if all(name in self.constant or not name for name in node.input):
                self.constant |= set(node.output)

    @cached_property
    def active(self) -> "list[onnx.NodeProto]":
        """The operators that work on activations."""
        return [node for node in self.nodes if not set(node.output) <= self.constant]

    @cached_property
    def readers(self) -> "dict[str, list[onnx.NodeProto]]":
        """Who reads a tensor."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def attribute(self, node: "onnx.NodeProto", name: str, default: Any) -> Any:  # Any: of the operator
        """Return an attribute's value."""
        from onnx import helper

        return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)

    def source(self, tensor: str) -> "onnx.NodeProto | None":
        """Return the operator that a tensor comes from, through operators that only move numbers."""
        node = self.producer.get(tensor)
        while node is not None and node.op_type in MOVES:
            node = self.producer.get(node.input[0])
        return node

    def is_quantized(self, tensor: str) -> bool:
        """Whether a tensor comes out of a DequantizeLinear."""
        source = self.source(tensor)
        return source is not None and source.op_type == DEQUANTIZE

    def next(self, node: "onnx.NodeProto") -> "onnx.NodeProto | None":
        """Return the only reader of an operator's output, if there is one."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None


def causes(view: View, group: "list[onnx.NodeProto]", *, refused: bool = False) -> tuple[Cause, ...]:
    """Return the causes of an island, those of one rule and type of operator together.

    Args:
        view: The graph.
        group: Its operators.
        refused: The engine refused to fuse the model; then only weights that it cannot take are causes.
    """
    found: dict[tuple[str, str], Cause] = {}
    members = {id(node) for node in group}
    for node in group:
        cause = _cause(view, node, members)
        if cause is None or (refused and cause.rule != "weights"):
            continue
        key = (cause.rule, cause.op_type)
        first = found.get(key, cause)
        count = found[key].count + 1 if key in found else 1
        found[key] = Cause(first.rule, first.operator, first.op_type, first.reason, first.change, count)
    if refused and not found:
        return (_made("refused", group[0], "the engine refuses to fuse this model", "remove what it names first"),)
    return tuple(found.values())


def _cause(view: View, node: "onnx.NodeProto", members: set[int]) -> Cause | None:
    if node.op_type in LAYERS:
        return _weights(view, node) or _input(view, node) or _after(view, node)
    if node.op_type in SUMS and not any(name in view.constant for name in node.input):
        return _residual(view, node) or _after(view, node)
    if node.op_type in PLAIN and _belongs(view, node, members):
        return None  # said of the operator before it
    if node.op_type in MOVES and node.op_type != "Concat":
        return None
    if node.op_type in PLAIN:
        return _made(
            "activation", node, f"{node.op_type} alone has no fused form", f"{node.op_type} on the 8-bit codes"
        )
    if node.op_type in AVERAGES:
        reason = f"{node.op_type} has no integer kernel"
        return _made("operator", node, reason, f"use {AVERAGES[node.op_type]}, which has one")
    return _made("operator", node, f"{node.op_type} has no integer kernel", _replace(view, node))


def _belongs(view: View, node: "onnx.NodeProto", members: set[int]) -> bool:
    source = view.producer.get(node.input[0])
    return source is not None and id(source) in members and source.op_type in LAYERS | SUMS


def _replace(view: View, node: "onnx.NodeProto") -> str:
    source = view.producer.get(node.input[0]) if node.input else None
    if source is not None and source.op_type in LAYERS:
        return f"replace it, or {BOTH_SIDES} so that the {source.op_type} before it is fused"
    if view.outputs & set(node.output):
        return "leave it to the caller: the integer output decides the class"
    return "replace it, or keep QuantizeLinear and DequantizeLinear tight around it"


def _made(rule: str, node: "onnx.NodeProto", reason: str, change: str) -> Cause:
    return Cause(rule, node.name or node.output[0], node.op_type, reason, change)


def _weights(view: View, node: "onnx.NodeProto") -> Cause | None:
    from onnx import TensorProto

    source = view.producer.get(node.input[1])
    if node.input[1] not in view.constant:
        if view.is_quantized(node.input[1]):
            return None
        return _made("input", node, f"input {node.input[1]!r} is not quantized", "quantize both factors")
    if source is None or source.op_type != DEQUANTIZE:
        return _made("weights", node, "its weights are float", "store them as INT8 with a DequantizeLinear")
    value = view.values.get(source.input[0])
    kind = TensorProto.DataType.Name(value.data_type) if value is not None else ""
    if kind in SUB_BYTE:
        reason = f"{kind} weights are dequantized at every run: no {node.op_type} takes {kind}"
        return _made("weights", node, reason, EIGHT_BITS)
    return None


def _input(view: View, node: "onnx.NodeProto") -> Cause | None:
    if view.is_quantized(node.input[0]):
        return None
    source = view.source(node.input[0])
    before = f"{source.op_type} {source.name or source.output[0]!r}" if source is not None else "the model's input"
    return _made("input", node, f"its input is float, from {before}", BOTH_SIDES)


def _residual(view: View, node: "onnx.NodeProto") -> Cause | None:
    for name in node.input:
        if not view.is_quantized(name):
            source = view.source(name)
            before = f"{source.op_type} {source.name or source.output[0]!r}" if source is not None else repr(name)
            return _made("residual", node, f"its input from {before} is not quantized", BOTH_SIDES)
    return None


def _after(view: View, node: "onnx.NodeProto") -> Cause | None:
    """Look at the activation and the QuantizeLinear behind an operator."""
    activation = view.attribute(node, "activation", b"").decode()
    behind = view.next(node)
    if not activation and behind is not None and behind.op_type in PLAIN:
        activation, behind = behind.op_type, view.next(behind)
    kind = node.op_type.removeprefix("Fused")
    if activation == "Relu":
        return _relu(view, node, kind, behind)
    if activation in PLAIN:
        reason = f"{activation} in float stands between {kind} and its QuantizeLinear"
        return _made(
            "clip", node, reason, f"put the QuantizeLinear right behind the {kind}, and the Clip on its 8 bits"
        )
    if activation:
        change = f"put QuantizeLinear and DequantizeLinear between the {kind} and the {activation}"
        return _made("activation", node, f"{activation} is no part of an integer {kind}", change)
    if behind is not None and behind.op_type == QUANTIZE:
        return _types(view, node, kind, behind)
    return _unquantized(view, node, f"the output of the {kind} is not quantized")


def _unquantized(view: View, node: "onnx.NodeProto", reason: str) -> Cause | None:
    """Blame the operator for its output, unless float operators read it, which are blamed themselves."""
    last = view.next(node) if view.attribute(node, "activation", b"") == b"" else None
    tensor = last.output[0] if last is not None and last.op_type in PLAIN else node.output[0]
    readers = view.readers.get(tensor, [])
    quantized = any(reader.op_type == QUANTIZE for reader in readers)
    return _made("output", node, reason, BEHIND) if quantized or not readers or tensor in view.outputs else None


def _relu(view: View, node: "onnx.NodeProto", kind: str, behind: "onnx.NodeProto | None") -> Cause | None:
    if behind is None or behind.op_type != QUANTIZE:
        return _unquantized(view, node, f"the Relu behind the {kind} is not quantized")
    zero = _zero_point(view, behind)
    if zero != np.iinfo(zero.dtype).min:
        moved = behind.input[2].startswith("qdq_s8_to_u8")  # ONNX Runtime does that on x86
        shown = f"{int(zero) - 128 if moved else zero} of {'int8' if moved else zero.dtype}"
        reason = f"Relu behind the {kind} with zero point {shown}: saturation is no Relu there"
        return _made("relu", node, reason, "quantize the output to UINT8 with zero point 0")
    return _types(view, node, kind, behind)


def _types(view: View, node: "onnx.NodeProto", kind: str, behind: "onnx.NodeProto") -> Cause:
    """Blame the types where everything else is in place: inputs and output must be of one.

    On x86, ONNX Runtime moves int8 activations to uint8, except those that several operators read.
    """
    sources = [view.source(name) for name in node.input if name not in view.constant]
    given = {view.kinds.get(source.input[0], "") for source in sources if source is not None}
    made = view.kinds.get(behind.output[0], "")
    if given != {made}:
        shown = " and ".join(sorted(given))
        reason = f"its inputs are {shown}, its output {made}: ONNX Runtime moves int8 to uint8, not where two read it"
        return _made("types", node, reason, "quantize all activations to UINT8")
    weight = view.producer.get(node.input[1])
    constant = weight is not None and weight.output[0] in view.constant
    if weight is not None and constant and weight.op_type == DEQUANTIZE and len(weight.input) < 3:
        reason = "the DequantizeLinear of its weights has no zero point"
        return _made("weights", node, reason, "give it zero points, INT8 zeros")
    between = view.producer.get(node.input[0])
    if between is not None and between.op_type in MOVES:
        reason = f"{between.op_type} {between.name or between.output[0]!r} stands between it and its DequantizeLinear"
        return _made("input", node, reason, f"put QuantizeLinear and DequantizeLinear behind the {between.op_type}")
    return _made("operator", node, f"ONNX Runtime did not fuse this {kind}", "quantize all activations to UINT8")


def _zero_point(view: View, node: "onnx.NodeProto") -> np.integer:
    from onnx import numpy_helper

    if len(node.input) < 3 or node.input[2] not in view.values:
        return np.uint8(0)
    return numpy_helper.to_array(view.values[node.input[2]]).reshape(-1)[0]
