"""ONNX Runtime's own requantizers, tables and adders, tried wherever a code can change.

A 1x1 QLinearConv with weight 0 and the bias set to an accumulator returns that accumulator's code. Requantization
is monotone, so the accumulators beside each threshold of each channel decide all of them. The scales are those of the
model under test, not of the graph. Sums, products, rescalings and tables are tried on every pair or every single code.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .certificate import Proof
from .dialects import ort
from .dialects.writer import MICROSOFT, TYPED_BITS
from .engines import session
from .graph import Add, AvgPool, Conv, Edge, IntegerGraph, Linear, Mul, Rescale, Table, reach
from .multiplier import Requant, requantize
from .reference import step

if TYPE_CHECKING:
    import onnx

LIMIT = 1 << 20  # accumulators per session, which bounds the memory
INT32 = (1 << 31) - 1


def sweep(graph: IntegerGraph, model: "onnx.ModelProto") -> list[Proof]:
    """Return one proof per requantizing node, adder, product, rescaling and table of the model."""
    found = Model(model)
    proofs = []
    for node in graph.nodes:
        if isinstance(node, Add | Mul | Rescale | Table):
            proofs.append(_table(graph, node, found))
        elif isinstance(node, Conv | Linear | AvgPool) and node.requant is not None:
            proofs.append(_requantizer(graph, node, found))
    return proofs


def thresholds(rq: Requant, limit: np.ndarray) -> np.ndarray:
    """Return (channels, cases) accumulators beside every change of code, at 0 and at both ends, within +-limit."""
    k = np.arange(rq.lo + 1, rq.hi + 1, dtype=np.int64)
    edges = ((2 * k - 1) << rq.n)[None, :] // (2 * rq.m.astype(np.int64))[:, None]
    beside = (edges[:, :, None] + np.array([-1, 0, 1])).reshape(len(rq.m), -1)
    ends = np.broadcast_to(np.array([0, 1, -1, INT32, -INT32]), (len(rq.m), 5))
    bound = np.minimum(limit, INT32)[:, None]
    return np.clip(np.concatenate([beside, ends], 1), -bound, bound)


class Model:
    """Look-ups in the model under test: `producer` of a tensor, `array` of a constant."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        from onnx import numpy_helper

        self.values = {value.name: value for value in model.graph.initializer}
        self.producer = {output: node for node in model.graph.node for output in node.output}
        self._array = numpy_helper.to_array

    def array(self, name: str) -> np.ndarray:
        """Return the value of an initializer."""
        return self._array(self.values[name])

    def operator(self, layer: str) -> "onnx.NodeProto | None":
        """Return the node that computes a layer, before its clamps."""
        return self.producer.get(f"{layer}:raw", self.producer.get(layer))


def _requantizer(graph: IntegerGraph, node: Conv | Linear | AvgPool, model: Model) -> Proof:
    edge, rq = graph.edges[node.inputs[0]], node.requant
    assert rq is not None
    operator = model.operator(node.name)
    if operator is None or operator.op_type not in ("QLinearConv", "QGemm", "QLinearGlobalAveragePool"):
        return Proof(node.name, "requantizer", 0, False, "the model has no quantized operator for it")
    if isinstance(node, AvgPool):
        height, width = node.kernel or edge.shape[1:]
        limit = np.full(len(rq.m), edge.reach * height * width, np.int64)
    else:
        limit = reach(node, edge)
    acc = thresholds(rq, limit)
    if operator.op_type == "QLinearGlobalAveragePool":
        area = edge.shape[1] * edge.shape[2]
        acc = np.clip(acc, edge.lo * area, edge.hi * area)
        got = _run_average(operator, model, acc, edge)
    else:
        got = _run_requantizer(operator, model, acc)
    zero = ort.zero_point(graph.edges[node.name])
    return compared(node.name, np.clip(got - zero, rq.lo, rq.hi), requantize(acc[None], rq)[0], acc)


def compared(layer: str, got: np.ndarray, expected: np.ndarray, acc: np.ndarray) -> Proof:
    """Return the proof that each (channel, case) accumulator got the expected code."""
    wrong = np.argwhere(got != expected)
    detail = ""
    if len(wrong):
        channel, case = wrong[0]
        detail = (
            f"channel {channel}: accumulator {acc[channel, case]} gives code {got[channel, case]} instead of "
            f"{expected[channel, case]} ({len(wrong)} of {acc.size} cases differ)"
        )
    return Proof(layer, "requantizer", acc.size, not len(wrong), detail)


def _run_requantizer(operator: "onnx.NodeProto", model: Model, acc: np.ndarray) -> np.ndarray:
    """Return the uint8 output of the operator's requantizer for (channels, cases) accumulators."""
    gemm = operator.op_type == "QGemm"
    scale = np.broadcast_to(model.array(operator.input[4]), (len(acc),))
    x_scale = model.array(operator.input[1])
    y_scale, y_zero = (model.array(name) for name in (operator.input[7:9] if gemm else operator.input[6:8]))
    rows = max(1, LIMIT // acc.shape[1])
    parts = []
    for start in range(0, len(acc), rows):
        bias = acc[start : start + rows].astype(np.int32).reshape(-1)
        scales = np.repeat(scale[start : start + rows], acc.shape[1])
        weight = np.zeros((1, len(bias)) if gemm else (len(bias), 1, 1, 1), np.int8)
        values = {"xs": x_scale, "xz": np.uint8(0), "w": weight, "ws": scales, "b": bias}
        values["wz"] = np.zeros(len(bias), np.int8) if gemm else np.int8(0)
        values |= {"ys": y_scale, "yz": y_zero}
        order = ["x", "xs", "xz", "w", "ws", "wz"] + (["b", "ys", "yz"] if gemm else ["ys", "yz", "b"])
        x = np.zeros((1, 1) if gemm else (1, 1, 1, 1), np.uint8)
        out = _run_one(operator.op_type, order, values, {"x": x}, domain=operator.domain)
        parts.append(out.reshape(-1, acc.shape[1]))
    return np.concatenate(parts).astype(np.int32)


def _run_average(operator: "onnx.NodeProto", model: Model, acc: np.ndarray, edge: Edge) -> np.ndarray:
    """Feed planes whose codes add up to each accumulator."""
    _, height, width = edge.shape
    area, zero = height * width, ort.zero_point(edge)
    total = acc.reshape(-1) + zero * area
    planes = (total // area)[:, None] + (np.arange(area) < (total % area)[:, None])
    x = planes.astype(np.uint8).reshape(1, -1, height, width)
    names = list(operator.input)[1:]
    values = {name: model.array(name) for name in names}
    last = next((attribute.i for attribute in operator.attribute if attribute.name == "channels_last"), 0)
    x = np.ascontiguousarray(np.moveaxis(x, 1, 3)) if last else x
    out = _run_one(operator.op_type, ["x", *names], values, {"x": x}, domain=operator.domain, channels_last=last)
    return out.reshape(acc.shape).astype(np.int32)


def _table(graph: IntegerGraph, node: Add | Mul | Rescale | Table, model: Model) -> Proof:
    """Try an elementwise node on all its inputs, through the model's own operators."""
    codes = [np.arange(graph.edges[name].lo, graph.edges[name].hi + 1, dtype=np.int32) for name in node.inputs]
    grid = [axis.reshape(1, -1) for axis in np.meshgrid(*codes, indexing="ij")]
    chain = _chain(node, model)
    if not chain:
        return Proof(node.name, "table", 0, False, "the model has no operator for it")
    values = {name: model.array(name) for copy in chain for name in copy.input if name in model.values}
    feeds = {
        f"in:{index}": (value + ort.zero_point(graph.edges[name])).astype(np.uint8)
        for index, (name, value) in enumerate(zip(node.inputs, grid, strict=True))
    }
    expected, zero = step(node, grid), ort.zero_point(graph.edges[node.name])
    attempts = {"the engine": _run_nodes(chain, values, feeds, node.name).astype(np.int32) - zero}
    if isinstance(node, Add):
        attempts |= _float32_sums(node, chain, values, feeds, zero)
    for who, got in attempts.items():
        wrong = np.argwhere(got != expected)
        if len(wrong):
            at = tuple(wrong[0])
            given = ", ".join(str(value[at]) for value in grid)
            detail = (
                f"{who}: codes {given} give {got[at]} instead of {expected[at]} ({len(wrong)} of {got.size} differ)"
            )
            return Proof(node.name, "table", got.size, False, detail)
    return Proof(node.name, "table", expected.size, True)


def _float32_sums(
    node: Add, chain: "list[onnx.NodeProto]", values: Mapping, feeds: Mapping, zero: int
) -> dict[str, np.ndarray]:
    """Return QLinearAdd as any processor may compute it in float32, with and without a fused multiply-add."""
    names = list(chain[0].input)
    scale_a, zero_a, scale_b, zero_b, scale, zero_c = (values[names[i]].astype(np.float32) for i in (1, 2, 4, 5, 6, 7))
    a, b = feeds["in:0"].astype(np.float32), feeds["in:1"].astype(np.float32)
    factor_a, factor_b = scale_a / scale, scale_b / scale
    offset = zero_c - (factor_a * zero_a + factor_b * zero_b)

    part = (b.astype(np.float64) * factor_b + offset).astype(np.float32)  # rounded once, as a fused operation does
    sums = {
        "float32 with fused multiply-add": (a.astype(np.float64) * factor_a + part).astype(np.float32),
        "float32": factor_a * a + (factor_b * b + offset),
    }
    return {who: np.clip(np.rint(total).astype(np.int32) - zero, node.lo, node.hi) for who, total in sums.items()}


def _chain(node: Add | Mul | Rescale | Table, model: Model) -> "list[onnx.NodeProto]":
    """Return copies of the operators from a node's inputs, renamed in:0 and in:1, to its output."""
    from onnx import NodeProto

    source = node.inputs[0]
    chain, tensor = [], node.name
    while tensor in model.producer:
        copy = NodeProto()
        copy.CopyFrom(model.producer[tensor])
        chain.insert(0, copy)
        data = 1 if copy.op_type == "Gather" else 0  # the table comes first there
        tensor = copy.input[data]
        if tensor == source or copy.op_type in ("QLinearAdd", "QLinearMul"):
            copy.input[data] = "in:0"
            if isinstance(node, Add | Mul):
                copy.input[3] = "in:1"
            return chain
    return []


def _run_one(op: str, order: list[str], values: Mapping, feeds: Mapping, *, domain: str, **attributes: Any):
    from onnx import helper

    node = helper.make_node(op, order, ["out"], domain=domain, **attributes)
    return _run_nodes([node], values, feeds, "out")


def _run_nodes(nodes: "list[onnx.NodeProto]", values: Mapping, feeds: Mapping, output: str) -> np.ndarray:
    from onnx import TensorProto, helper, numpy_helper

    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, value.shape) for name, value in feeds.items()]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    result = helper.make_tensor_value_info(output, TensorProto.UINT8, None)
    opset, ir_version = TYPED_BITS[8]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph(nodes, "sweep", inputs, [result], constants)
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    return np.asarray(session(model.SerializeToString()).run([output], dict(feeds))[0])
