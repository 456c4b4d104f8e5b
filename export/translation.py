"""That a model is the graph's translation: every operator, wire and constant, and what its weights unpack to.

The sweeps show that requantization is right for every accumulator; a model whose weights, biases, strides or wiring
differ would still have other accumulators. So the graph is translated anew and compared with the model, operator by
operator and constant by constant (`translation`). Since the translator itself might pack weights wrongly, the model's
own packed weights are unpacked by ONNX Runtime and compared with the graph's integers (`weights`).
"""

from typing import TYPE_CHECKING

import numpy as np

from .certificate import Proof
from .cuts import extract
from .dialects import dialect
from .engines import session
from .graph import Conv, IntegerGraph, Linear
from .sweep import Model

if TYPE_CHECKING:
    import onnx

OPERANDS = {
    "QLinearConv": (3, 8),
    "QGemm": (3, 6),
    "MatMulInteger": (1, None),
    "ConvInteger": (1, None),
}  # where weight and bias are read


def translated(graph: IntegerGraph, model: "onnx.ModelProto", target: str) -> list[Proof]:
    """Return one `translation` proof per layer, and one for what belongs to no layer."""
    want, have = _parts(dialect(target).build(graph)), _parts(model)
    layers = {node.name for node in graph.nodes}
    cases: dict[str, int] = {}
    wrong: dict[str, str] = {}
    for name in {**want, **have}:
        base = name.split(":")[0]
        layer = base if base in layers else "model"
        cases[layer] = cases.get(layer, 0) + 1
        if want.get(name) != have.get(name):
            wrong.setdefault(layer, f"{name!r} is not what the graph translates to")
    return [Proof(layer, "translation", cases[layer], layer not in wrong, wrong.get(layer, "")) for layer in cases]


def unpacked(graph: IntegerGraph, model: "onnx.ModelProto") -> list[Proof]:
    """Return one `weights` proof per layer of the `ort` dialect: its constants, as ONNX Runtime unpacks them."""
    found, tensors = Model(model), dialect("ort").observe(graph)
    proofs = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear):
            tensor = node.name if graph.draws else tensors[node.name][0]  # pixels are a copy of the last layer's codes
            weight = node.weight if isinstance(node, Conv) else node.weight.T
            pairs = {"weight": (_operand(found, model, tensor, 0), weight)}
            if node.bias.any() or node.requant is not None:
                bias = _operand(found, model, tensor, 1)
                pairs["bias"] = (None if bias is None else bias.reshape(-1), node.bias)
            bad = [name for name, (got, want) in pairs.items() if got is None or not np.array_equal(got, want)]
            detail = f"the model's {bad[0]} is not the graph's" if bad else ""
            proofs.append(Proof(node.name, "weights", node.weight.size + node.bias.size, not bad, detail))
    return proofs


def _parts(model: "onnx.ModelProto") -> dict[str, bytes]:
    """Return every operator by its first output and every constant by name, in bytes.

    A constant is listed with each operator that reads it, so that a wrong one is laid at a layer's door.
    """
    constants = {value.name: value.SerializeToString(deterministic=True) for value in model.graph.initializer}
    parts = {"model:inputs": b"".join(v.SerializeToString(deterministic=True) for v in model.graph.input)}
    for function in model.functions:
        parts[f"model:function {function.name}"] = function.SerializeToString(deterministic=True)
    parts["model:outputs"] = b"".join(v.SerializeToString(deterministic=True) for v in model.graph.output)
    for node in model.graph.node:
        read = b"".join(constants.get(name, b"") for name in node.input)
        parts[node.output[0]] = node.SerializeToString(deterministic=True) + read
    return parts


def _operand(found: Model, model: "onnx.ModelProto", tensor: str, which: int) -> np.ndarray | None:
    """Return a layer's weight (0) or bias (1) as the engine computes it from the model's constants."""
    operator = found.operator(tensor)
    if operator is not None and operator.op_type == "Add":  # logits: an integer product, then the bias
        if which == 1:
            return _constant(model, operator.input[1])
        operator = found.producer.get(operator.input[0])
    if operator is None or operator.op_type not in OPERANDS:
        return None
    position = OPERANDS[operator.op_type][which]
    return None if position is None or position >= len(operator.input) else _constant(model, operator.input[position])


def _constant(model: "onnx.ModelProto", name: str) -> np.ndarray | None:
    from onnx import numpy_helper

    for value in model.graph.initializer:
        if value.name == name:
            return numpy_helper.to_array(value)
    cut = extract(model, {}, name)
    if cut is None or not cut.graph.node:
        return None
    try:
        return np.asarray(session(cut.SerializeToString(), "disabled").run(None, {})[0])
    except Exception:  # ONNX Runtime's exceptions have no common base; the runs say what it is about
        return None
