"""A `trt` model whose wide layers add in integers, for engines that run Q/DQ in float.

TensorRT runs such a layer on int8 codes and adds in int32. Where no such kernel is at hand, an engine convolves in
float32, with each channel's multiplier inside the weights: products are multiples of that multiplier, and a partial sum
of a wide layer may need more than 24 bits. Its last bit then hangs on the order of summation, and beside a tie so does
a code. Here the multiplier of these layers comes after the sum, which is the same real number: weights and products are
integers, in pieces that float32 holds in any order, and the pieces meet in int32. Not for OpenVINO: it draws a
multiplication into the QuantizeLinear behind it and then rounds twice (2026.4), so it runs the file as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .dialects.pieces import pieces
from .graph import Conv, Edge, IntegerGraph, Linear
from .multiplier import FLOAT32_EXACT
from .sweep import Model

if TYPE_CHECKING:
    import onnx

FLOAT, INT32 = 1, 6  # of onnx.TensorProto


def ordered(graph: IntegerGraph) -> tuple[str, ...]:
    """Return the layers of which float32 holds the whole sum but maybe not every partial sum, in some order.

    All products of a channel are multiples of the multiplier's odd part times a power of two, so sums below
    2^24 / odd(m) are exact in any order of summation. The `trt` dialect itself cuts logits beyond 2^24 into pieces.
    """
    found = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear) and node.requant is not None:
            m = node.requant.m.astype(np.int64)
            odd = m // (m & -m)
            if (odd * partial_reach(node, graph.edges[node.input]) > FLOAT32_EXACT).any():
                found.append(node.name)
    return tuple(found)


def partial_reach(node: Conv | Linear, edge: Edge) -> np.ndarray:
    """Bound |sum| per channel over all inputs and all subsets of the products, with the bias or without it."""
    weight = node.weight.reshape(len(node.weight), -1).astype(np.int64)
    ends = np.stack([weight * edge.lo, weight * edge.hi, np.zeros_like(weight)])
    bias = node.bias.astype(np.int64)
    return np.maximum(ends.max(0).sum(1) + np.maximum(bias, 0), -ends.min(0).sum(1) - np.minimum(bias, 0))


def exact_sums(graph: IntegerGraph, model: bytes) -> bytes:
    """Return the `trt` model with the multiplier of each `ordered` layer after its sum; the model itself if none is."""
    import onnx

    layers = set(ordered(graph))
    if not layers:
        return model
    changed = onnx.load_from_string(model)
    found = Model(changed)
    rewrite = _Rewrite(changed, found)
    nodes: list[onnx.NodeProto] = []
    by_output = {f"{node.name}:acc": node for node in graph.nodes if node.name in layers}
    for operator in changed.graph.node:
        node = by_output.get(operator.output[0])
        weight = found.producer.get(operator.input[1]) if node is not None else None
        if isinstance(node, Conv | Linear) and weight is not None and weight.op_type == "DequantizeLinear":
            nodes += rewrite.apart(operator, weight, node, graph.edges[node.input])
        else:
            nodes.append(operator)
    read = {name for operator in nodes for name in operator.input}
    del changed.graph.node[:]
    changed.graph.node.extend(n for n in nodes if n.op_type != "DequantizeLinear" or n.output[0] in read)
    return changed.SerializeToString()


@dataclass(frozen=True)
class _Rewrite:
    """Writes the operators of one layer, and its constants into the model."""

    model: "onnx.ModelProto"
    found: Model

    def apart(
        self, operator: "onnx.NodeProto", weight: "onnx.NodeProto", node: Conv | Linear, edge: Edge
    ) -> "Iterator[onnx.NodeProto]":
        """Return what computes the layer's sum, from the constants of the file."""
        from onnx import helper

        codes, scale = (self.found.array(name) for name in weight.input[:2])
        acc, axes = operator.output[0], (-1, 1, 1) if isinstance(node, Conv) else (-1,)
        shape = (len(codes), *axes[1:])
        scale = np.broadcast_to(scale, (len(codes),))
        bias = np.zeros(len(codes))
        if len(operator.input) > 2:
            bias = np.clip(np.rint(self.found.array(operator.input[2]) / scale.astype(np.float64)), -(2**31), 2**31 - 1)
        total = self._const(f"{acc}:bias", bias.astype(np.int32).reshape(shape))
        for index, part in enumerate(pieces(replace(node, weight=codes), edge.reach)):
            product = f"{acc}:{index}"
            given = self._const(f"{product}:codes", part), self._const(f"{product}:one", np.ones((), np.float32))
            yield helper.make_node("DequantizeLinear", given, [f"{product}:weight"])  # a model ends at 2 GiB
            whole = helper.make_node(operator.op_type, [operator.input[0], f"{product}:weight"], [product])
            whole.attribute.extend(operator.attribute)
            yield whole
            yield helper.make_node("Cast", [product], [f"{product}:int"], to=INT32)
            yield helper.make_node("Add", [f"{product}:int", total], [f"{product}:sum"])
            total = f"{product}:sum"
        yield helper.make_node("Cast", [total], [f"{acc}:sum"], to=FLOAT)
        factor = self._const(f"{acc}:scale", scale.reshape(shape))
        yield helper.make_node("Mul", [f"{acc}:sum", factor], [acc])

    def _const(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name
