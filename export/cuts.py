"""What `sweep.py` does, for models that have no quantized operators: the model itself, cut open.

In the `proof`, `trt` and `qonnx` dialects a layer is a chain of operators from its accumulators (`LAYER:acc`) to its
edge. The chain is cut out of the model, with the model's own constants, and fed with accumulators beside every
threshold of every channel; Add, Mul, Rescale and Table are fed with all their codes.

In `trt` the accumulators are float32 and already multiplied: `acc * scale`, rounded once, with the scale of the model's
weights. That a convolution arrives at them is a matter of its sums: `bias` shows that the float bias is the integer
one, and `inequality` (in `verify.py`) that the sum is exact; for partial sums see `exactsums.py`. In `qonnx` they are
the accumulators themselves, in float32: `sums` shows that the model's weights and biases keep every partial sum below
2^24.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .certificate import Proof
from .dialects import dialect
from .dialects.trt import codes_of
from .engines import session
from .graph import INPUT, Add, AvgPool, Conv, IntegerGraph, Linear, Mul, Rescale, Table, reach
from .multiplier import FLOAT32_EXACT, Requant, requantize, saturations
from .reference import step
from .sweep import Model, compared, thresholds

if TYPE_CHECKING:
    import onnx

Feed = Callable[[Conv | Linear | AvgPool, np.ndarray], np.ndarray]
Weighted = Conv | Linear | AvgPool


def sweep_cuts(graph: IntegerGraph, model: "onnx.ModelProto", target: str) -> list[Proof]:
    """Return one proof per requantizing node, adder and rescaling, and per layer for what is float in its model."""
    found, observed = Model(model), dialect(target).observe(graph)
    proofs = []
    for node in graph.nodes:
        zero = observed[node.name][1] if target == "proof" else 0  # of the layer's own edge, also where pixels follow
        if isinstance(node, Add | Mul | Rescale | Table):
            zeros = {INPUT: 128 if target == "proof" else 0, **{name: value[1] for name, value in observed.items()}}
            proofs.append(_table(graph, node, model, target, zeros))
        elif isinstance(node, Weighted):
            if target == "trt" and isinstance(node, Conv | Linear):
                proofs += _float_layer(graph, node, found)
            if target == "qonnx":
                proofs.append(_sums(graph, node, found))
            if node.requant is not None:
                feed = {"trt": _scaled(found), "qonnx": _whole(graph)}.get(target, _plain)
                proofs.append(_requantizer(graph, node, model, feed, zero))
    return proofs


def extract(model: "onnx.ModelProto", feeds: dict[str, np.ndarray], output: str) -> "onnx.ModelProto | None":
    """Return the part of a model between some tensors and another one, or None where there is none."""
    import onnx
    from onnx import helper

    producer = {name: node for node in model.graph.node for name in node.output}
    chain: dict[int, onnx.NodeProto] = {}
    constants = {value.name: value for value in model.graph.initializer}
    wanted, used = [output], set()
    while wanted:
        name = wanted.pop()
        if name in feeds or not name:
            continue
        if name in constants:
            used.add(name)
        elif name in producer:
            chain[id(producer[name])] = producer[name]
            wanted += producer[name].input
        else:
            return None
    nodes = [node for node in model.graph.node if id(node) in chain]
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()
    ]
    graph = helper.make_graph(
        nodes, "cut", inputs, [onnx.ValueInfoProto(name=output)], [constants[k] for k in sorted(used)]
    )
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def _plain(node: Weighted, acc: np.ndarray) -> np.ndarray:
    return acc.astype(np.int32)


def _whole(graph: IntegerGraph) -> Feed:
    """Return what the tensor LAYER:acc of the `qonnx` dialect holds: int32 only where float32 is too short."""

    def feed(node: Weighted, acc: np.ndarray) -> np.ndarray:
        small = isinstance(node, AvgPool) or reach(node, graph.edges[node.input]).max() <= FLOAT32_EXACT
        return acc.astype(np.float32 if small else np.int32)

    return feed


def _scaled(model: Model) -> Feed:
    """Return what the tensor LAYER:acc of the `trt` dialect holds for an accumulator."""

    def feed(node: Weighted, acc: np.ndarray) -> np.ndarray:
        if isinstance(node, AvgPool) and node.kernel is None:
            return acc.astype(np.float32)  # the multiplier comes after the sum
        return (acc * _weight_scale(node.name, model).astype(np.float64)[:, None]).astype(np.float32)

    return feed


def _weight_scale(layer: str, model: Model) -> np.ndarray:
    return model.array(model.producer[f"{layer}:weight"].input[1])


def _requantizer(graph: IntegerGraph, node: Weighted, model: "onnx.ModelProto", feed: Feed, zero: int) -> Proof:
    edge, rq = graph.edges[node.inputs[0]], node.requant
    assert rq is not None
    if isinstance(node, AvgPool):
        height, width = node.kernel or edge.shape[1:]
        rq = Requant(np.broadcast_to(rq.m, (edge.shape[0],)), rq.n, rq.lo, rq.hi)
        limit = np.full(len(rq.m), edge.reach * height * width, np.int64)
    else:
        limit = reach(node, edge)
    acc = thresholds(rq, limit)
    if isinstance(node, AvgPool):  # sums of non-negative codes are not negative, and the model may rely on it
        acc = np.clip(acc, min(0, edge.lo * height * width), max(0, edge.hi * height * width))
    fed = feed(node, acc)
    fed = np.ascontiguousarray(fed.T) if isinstance(node, Linear) else fed[None, :, :, None]
    got = _run(model, {f"{node.name}:acc": fed}, node.name)
    if got is None:
        return Proof(node.name, "requantizer", 0, False, "the model has no operators for it")
    codes = (got.T if isinstance(node, Linear) else got[0, :, :, 0]).astype(np.int32) - zero
    return compared(node.name, codes, requantize(acc[None], rq)[0], acc)


def _table(
    graph: IntegerGraph, node: Add | Mul | Rescale | Table, model: "onnx.ModelProto", target: str, zeros: dict[str, int]
) -> Proof:
    codes = [np.arange(graph.edges[name].lo, graph.edges[name].hi + 1, dtype=np.int32) for name in node.inputs]
    if isinstance(node, Add | Mul) and node.a == node.b:  # one tensor: only equal codes meet
        grid = [codes[0].reshape(1, -1)] * 2
    else:
        grid = [axis.reshape(1, -1) for axis in np.meshgrid(*codes, indexing="ij")]
    dtype = dialect(target).dtype
    tensors = [name if target == "proof" else codes_of(name) for name in node.inputs]
    feeds = {
        tensor: (value + zeros[name]).astype(dtype)
        for tensor, name, value in zip(tensors, node.inputs, grid, strict=True)
    }
    got, expected = _run(model, feeds, node.name), step(node, grid)
    if got is None:
        return Proof(node.name, "table", 0, False, "the model has no operators for it")
    wrong = np.argwhere(got.astype(np.int32) - zeros[node.name] != expected)
    if not len(wrong):
        return Proof(node.name, "table", expected.size, True)
    at = tuple(wrong[0])
    given, code = ", ".join(str(value[at]) for value in grid), int(got[at]) - zeros[node.name]
    detail = f"codes {given} give {code} instead of {expected[at]} ({len(wrong)} of {expected.size} differ)"
    return Proof(node.name, "table", expected.size, False, detail)


def _run(model: "onnx.ModelProto", feeds: dict[str, np.ndarray], output: str) -> np.ndarray | None:
    part = extract(model, feeds, output)
    return None if part is None else np.asarray(session(part.SerializeToString()).run([output], feeds)[0])


def _sums(graph: IntegerGraph, node: Weighted, model: Model) -> Proof:
    """Show that no float32 sum of a layer, in any order, passes 2^24 in the model."""
    edge = graph.edges[node.inputs[0]]
    if isinstance(node, AvgPool):
        bounds = [edge.reach * int(np.prod(node.kernel or edge.shape[1:]))]
    else:
        products = [name for name in (f"{node.name}:acc", f"{node.name}:acc:0") if _is_product(model, name)]
        while _is_product(model, f"{node.name}:acc:{len(products)}") and f"{node.name}:acc" not in products:
            products.append(f"{node.name}:acc:{len(products)}")
        sums = [_float_reach(model, name, edge.reach) for name in products]
        operator = model.producer.get(f"{node.name}:acc")
        if operator is not None and f"{node.name}:bias" in operator.input and sums:
            bias = np.abs(model.array(model.producer[f"{node.name}:bias"].input[0]).astype(np.float64))
            sums[0] = sums[0] + bias.reshape(-1)  # channel by channel: a dead one has no products but a large bias
        bounds = [int(each.max()) for each in sums]
    if not bounds:
        return Proof(node.name, "sums", 0, False, "the model has no operator for it")
    fits = max(bounds) <= FLOAT32_EXACT
    detail = "" if fits else f"sums of up to {max(bounds)} do not fit into float32"
    return Proof(node.name, "sums", len(bounds), fits, detail)


def _is_product(model: Model, tensor: str) -> bool:
    return tensor in model.producer and model.producer[tensor].op_type in ("Conv", "MatMul")


def _float_reach(model: Model, tensor: str, codes: int) -> np.ndarray:
    operator = model.producer[tensor]
    weight = np.abs(model.array(model.producer[operator.input[1]].input[0]).astype(np.float64))
    sums = weight.sum(0) if operator.op_type == "MatMul" else weight.reshape(len(weight), -1).sum(1)
    return codes * sums


def _pieces(graph: IntegerGraph, node: Conv | Linear, model: Model) -> list[Proof]:
    """Show that float32 holds every sum of each piece of a layer, and that the int32 bias is the graph's."""
    bounds = []
    while {product := f"{node.name}:acc:{len(bounds)}", f"{product}:weight"} <= model.producer.keys():
        weight = np.abs(model.array(model.producer[f"{product}:weight"].input[0]).astype(np.int64))
        bounds.append(graph.edges[node.input].reach * int(weight.reshape(len(weight), -1).sum(1).max()))
    if not bounds:
        return [Proof(node.name, "inequality", 0, False, "the model has no operator for it")]
    fits = max(bounds) <= FLOAT32_EXACT
    detail = "" if fits else f"sums of up to {max(bounds)} do not fit into float32"
    proof = Proof(node.name, "inequality", len(node.bias) * len(bounds), fits, detail)
    adds = [o for o in model.producer.values() if o.op_type == "Add" and o.input[0] == f"{node.name}:acc:0:int"]
    same = bool(adds) and np.array_equal(model.array(adds[0].input[1]).reshape(-1), node.bias)
    return [proof, Proof(node.name, "bias", len(node.bias), same, "" if same else "another int32 bias")]


def _float_layer(graph: IntegerGraph, node: Conv | Linear, model: Model) -> list[Proof]:
    """Show that the float bias is the integer one, and that float32 holds the logits, or those of each piece."""
    bounds = reach(node, graph.edges[node.input])
    proofs = []
    if node.requant is None and f"{node.name}:acc:0" in model.producer:
        return _pieces(graph, node, model)
    if node.requant is None:
        fits = bounds <= FLOAT32_EXACT
        detail = "" if fits.all() else f"logits of up to {int(bounds.max())} do not fit into float32"
        proofs.append(Proof(node.name, "inequality", len(fits), bool(fits.all()), detail))
    operator = model.producer.get(f"{node.name}:acc")
    if operator is None or f"{node.name}:weight" not in model.producer:
        return [*proofs, Proof(node.name, "bias", 0, False, "the model has no operator for it")]
    scale = _weight_scale(node.name, model).astype(np.float64)
    given = model.array(operator.input[2]) if len(operator.input) > 2 else np.zeros(len(node.bias), np.float32)
    same = given.astype(np.float64) == node.bias * scale
    if node.requant is not None:  # a bias so large that its channel always saturates may be rounded
        magnitude = np.abs(node.bias.astype(np.int64))
        same |= 2 * magnitude - bounds >= saturations(node.requant) + 1
    channel = int(np.argmin(same))
    detail = (
        ""
        if same.all()
        else f"channel {channel}: bias {given[channel]} instead of {node.bias[channel] * scale[channel]}"
    )
    return [*proofs, Proof(node.name, "bias", len(same), bool(same.all()), detail)]
