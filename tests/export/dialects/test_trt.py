import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgeq.errors import InputError
from edgeq.export import save, verify
from edgeq.export.compare import compare, compare_with
from edgeq.export.dialects import build
from edgeq.export.dialects.trt_lint import lint
from edgeq.export.exactsums import exact_sums
from edgeq.export.graph import INPUT, Conv, IntegerGraph, Linear, reach
from edgeq.export.verify import certify, prove


def assert_exact(graph: IntegerGraph, images: np.ndarray) -> onnx.ModelProto:
    """Unfused (ONNX Runtime without optimisation, onnx.reference) and fused, on all edges; and TensorRT's rules."""
    model = build(graph, "trt")
    assert not lint(model)
    data = model.SerializeToString()
    for run in compare(graph, data, images, slow_images=2, target="trt"):
        assert run.exact, (run.engine, run.first, run.error)
    assert not [proof for proof in prove(graph, data, "trt") if not proof.exact]
    return model


@settings(max_examples=10)
@given(data=st.data())
def test_all_executors_agree_on_any_graph_of_signed_bytes(graphs, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    if any(edge.hi > 127 for name, edge in graph.edges.items() if name != graph.output):
        with pytest.raises(InputError, match=r"codes within -128\.\.127"):
            build(graph, "trt")
        return
    assert_exact(graph, graphs.images(graph, 3))


NODES = {
    "conv": (lambda b: b.conv(INPUT, 4), {"Relu": 1, "Clip": 0}),
    "conv with a ceiling": (lambda b: b.conv(INPUT, 4, hi=31), {"Relu": 0, "Clip": 1}),
    "conv, signed": (lambda b: b.conv(INPUT, 4, lo=-128), {"Relu": 0, "Clip": 0}),
    "conv, symmetric": (lambda b: b.conv(INPUT, 4, lo=-15, hi=15), {"Relu": 0, "Clip": 1}),
    "depthwise": (lambda b: b.conv(b.conv(INPUT, 4), 4, groups=4), {"Conv": 2}),
    "hidden linear": (lambda b: b.linear(b.flatten(INPUT), 6), {"Gemm": 2, "Relu": 1}),
    "add": (lambda b: b.add(b.conv(INPUT, 4, lo=-128), b.conv(INPUT, 4)), {"Add": 1, "Relu": 2}),
    "add to itself": (lambda b: b.add(INPUT, INPUT, lo=-128), {"Add": 1}),
    "rescale": (lambda b: b.rescale(b.conv(INPUT, 4), 15, 127, hi=15), {"Mul": 0, "Clip": 0, "Relu": 1}),
    "rescale to unsigned": (lambda b: b.rescale(INPUT, 3, 127, hi=3), {"Relu": 1, "Clip": 0}),
    "rescale at ties": (lambda b: b.rescale(INPUT, 3, 10, lo=-128, hi=127), {"Mul": 1, "Div": 1}),
    "relu": (lambda b: b.rescale(INPUT, 1, 1), {"Relu": 1}),
    "max pool, padded": (lambda b: b.max_pool(INPUT, (3, 3), (2, 2), (1, 1, 1, 1)), {"MaxPool": 1}),
    "global average": (lambda b: b.average(INPUT), {"ReduceSum": 1, "Mul": 1}),
    "windowed average": (lambda b: b.average(INPUT, (3, 2), (2, 1), (1, 1, 0, 0)), {"Conv": 1}),
    "concat": (lambda b: b.concat(b.conv(INPUT, 4), b.conv(INPUT, 3, lo=-100)), {"Concat": 1}),
}


@pytest.mark.parametrize("name", NODES)
def test_node(graphs, name: str) -> None:
    make, operators = NODES[name]
    b = graphs.Builder((3, 7, 8))
    graph = b.graph(make(b))
    counts = Counter(node.op_type for node in assert_exact(graph, graphs.images(graph, 4)).graph.node)
    assert {op: counts[op] for op in operators} == operators


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_residual_networks(graphs, bits: int) -> None:
    graph = graphs.resnet(bits, width=4, blocks=1, size=8)
    model = assert_exact(graph, graphs.images(graph))
    assert (model.opset_import[0].version, model.ir_version) == (19, 9)
    stored = {value.data_type for value in model.graph.initializer if len(value.dims) == 4}
    assert stored == {onnx.TensorProto.INT8}  # no convolution below 8 bits


def assert_openvino_agrees(graph: IntegerGraph, images: np.ndarray, target: str) -> None:
    pytest.importorskip("openvino", reason="needs pip install 'edgeq[openvino]'")
    every, logits = compare(
        graph, build(graph, target).SerializeToString(), images, engines=("openvino",), target=target
    )
    assert every.exact and every.tensors == len(graph.nodes), (every.first, every.error)
    assert logits.exact and logits.tensors == 1, (logits.first, logits.error)


@pytest.mark.parametrize("target", ["trt", "proof"])
@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_openvino_agrees(graphs, bits: int, target: str) -> None:
    graph = graphs.resnet(bits, width=4, blocks=1, size=8)
    assert_openvino_agrees(graph, graphs.images(graph, 8), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["trt", "proof"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_openvino_agrees_on_any_graph(graphs, target: str, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    assume(target == "proof" or all(edge.hi <= 127 for name, edge in graph.edges.items() if name != graph.output))
    assert_openvino_agrees(graph, graphs.images(graph, 3), target)


def test_an_artefact_verifies_and_says_how_to_run_it(graphs, tmp_path: Path) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    certificate = verify(save(graph, path=tmp_path / "art", target="trt"))
    assert certificate.exact and certificate.target == "trt"
    claims = {proof.claim for proof in certificate.proofs}
    assert claims == {"translation", "inequality", "int32", "requantizer", "table", "bias", "lint"}
    runtime = json.loads((tmp_path / "art" / "manifest.json").read_text())["runtime"]
    assert runtime["run_in_tensorrt"] is False
    assert "--stronglyTyped --noTF32 --minShapes=image:1x3x8x8" in runtime["trtexec"]


def changed(model: onnx.ModelProto, layer: str, position: int, change) -> bytes:
    """Give the operator before a layer's `:acc`, or its weights (position 1), another constant."""
    producer = {name: node for node in model.graph.node for name in node.output}
    node = producer[f"{layer}:weight"] if position == 1 else producer[f"{layer}:acc"]
    old = next(value for value in model.graph.initializer if value.name == node.input[position])
    new = numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(old).copy()), np.float32), "changed")
    model.graph.initializer.append(new)
    node.input[position] = "changed"
    return model.SerializeToString()


@pytest.mark.parametrize("layer", ["stem", "layer2.0.conv2"])
def test_changed_constants_are_found(graphs, layer: str) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    scaled = changed(build(graph, "trt"), layer, 1, lambda scale: scale * np.float32(1 - 1e-4))
    failed = {(p.layer, p.claim) for p in prove(graph, scaled, "trt") if not p.exact}
    assert failed == {(layer, "translation"), (layer, "requantizer"), (layer, "bias")}
    shifted = changed(build(graph, "trt"), layer, 2, lambda bias: bias + np.float32(2.0**-17))
    certificate = certify(graph, shifted, target="trt", quick=True)
    assert [(p.layer, p.claim) for p in certificate.proofs if not p.exact] == [(layer, "translation"), (layer, "bias")]


def test_a_bias_that_float32_cannot_hold_is_found(graphs) -> None:
    b = graphs.Builder()
    graph = b.graph(b.conv(INPUT, 4))
    node = graph.nodes[0]
    assert isinstance(node, Conv) and node.requant is not None
    rq = dataclasses.replace(node.requant, m=node.requant.m | 1)
    for bias, exact in [((1 << 24) + 1, True), (-(1 << 30) - 1, True), (12345, True)]:  # always saturated; or held
        wide = dataclasses.replace(node, bias=np.full(4, bias, np.int32), requant=rq)
        other = dataclasses.replace(graph, nodes=(wide, *graph.nodes[1:]))
        proofs = prove(other, build(other, "trt").SerializeToString(), "trt")
        assert next(p.exact for p in proofs if p.claim == "bias") is exact


def wide_logits(graphs, *, dense: bool) -> IntegerGraph:
    """Logits whose first channel passes 2^24 several times over where every pixel is black."""
    b = graphs.Builder((3, 40, 40))
    weight = np.where(np.random.default_rng(1).random((6, 4800)) < 0.5, -127, 127).astype(np.int8)
    weight[0] = 127
    bias = np.arange(-3, 3, dtype=np.int32) * 1001
    if dense:
        node: Conv | Linear = Conv("last", INPUT, weight.reshape(6, 3, 40, 40), bias, None, 8)
    else:
        node = Linear("last", b.flatten(INPUT), weight, bias, None, 8)
    bound = int(reach(node, b.edges[INPUT]).max())
    b.put(node, -bound, bound, (6, 1, 1) if dense else (6,))
    return IntegerGraph("test", 8, tuple(b.nodes), dict(b.edges))


@pytest.mark.parametrize("dense", [False, True])
def test_logits_beyond_float32_are_added_in_int32(graphs, dense: bool) -> None:
    graph = wide_logits(graphs, dense=dense)
    black = np.zeros((1, 3, 40, 40), np.uint8)
    assert int(graph.run(black)[0].ravel()[0]) == 127 * 128 * -4800 - 3003 < -(1 << 24)
    model = assert_exact(graph, np.concatenate([graphs.images(graph, 3), black]))
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Conv" if dense else "Gemm"] == counts["Add"] == 5


@pytest.mark.parametrize(
    ("output", "value", "claims"),
    [
        ("last:acc:0:sum", np.zeros(6, np.int32), {"translation", "bias"}),
        ("last:acc:1:weight", np.full((6, 4800), 127, np.int8), {"translation", "inequality"}),
    ],
)
def test_changed_pieces_are_found(graphs, output: str, value: np.ndarray, claims: set[str]) -> None:
    graph = wide_logits(graphs, dense=False)
    model = build(graph, "trt")
    node = next(node for node in model.graph.node if node.output[0] == output)
    replaced(model, node, 0 if output.endswith("weight") else 1, value)
    assert {p.claim for p in prove(graph, model.SerializeToString(), "trt") if not p.exact} == claims


def edit(graph: IntegerGraph, change) -> list[str]:
    """Return the rules that a changed model breaks."""
    model = build(graph, "trt")
    change(model)
    return [finding.rule for finding in lint(model)]


def first(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def replaced(model: onnx.ModelProto, node: onnx.NodeProto, position: int, value: np.ndarray | np.generic) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "planted"))
    node.input[position] = "planted"


def int4(model: onnx.ModelProto) -> None:
    import ml_dtypes

    node = next(n for n in model.graph.node if n.output[0] == "stem:weight")
    replaced(model, node, 0, np.ones((4, 3, 3, 3), ml_dtypes.int4))
    model.opset_import[0].version, model.ir_version = 21, 10
    zeros = numpy_helper.from_array(np.zeros(4, ml_dtypes.int4), "zeros4")
    model.graph.initializer.append(zeros)
    node.input[2] = "zeros4"


def unquantized_residual(model: onnx.ModelProto) -> None:
    node = first(model, "Add")
    node.input[0] = "layer1.0.conv2:acc"


def unquantized_input(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.output[0] == "stem:acc")
    node.input[0] = "image:centred"


BROKEN = {
    "zero point": (lambda m: replaced(m, first(m, "QuantizeLinear"), 2, np.int8(-128)), {"zero-point"}),
    "uint8 zero point": (lambda m: replaced(m, first(m, "QuantizeLinear"), 2, np.uint8(0)), {"zero-point", "type"}),
    "no zero point": (lambda m: first(m, "QuantizeLinear").input.pop(), {"zero-point", "type"}),
    "negative scale": (lambda m: replaced(m, first(m, "QuantizeLinear"), 1, np.float32(-1)), {"scale"}),
    "axis": (
        lambda m: next(n for n in m.graph.node if n.output[0] == "stem:weight").attribute[0].__setattr__("i", 1),
        {"axis"},
    ),
    "operator": (lambda m: first(m, "Relu").__setattr__("op_type", "Erf"), {"operator"}),
    "opset": (lambda m: m.opset_import[0].__setattr__("version", 25), {"version"}),
    "ir": (lambda m: m.__setattr__("ir_version", 13), {"version"}),
    "int4 convolution": (int4, {"type", "version", "zero-point"}),
    "unquantized residual": (unquantized_residual, {"placement"}),
    "unquantized input": (unquantized_input, {"placement"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_lint_finds(graphs, name: str) -> None:
    change, rules = BROKEN[name]
    assert set(edit(graphs.resnet(8, width=4, blocks=1, size=8), change)) == rules


def test_lint_passes_what_is_sound(graphs) -> None:
    assert edit(graphs.resnet(2, width=4, blocks=1, size=8), lambda model: None) == []


NAMES = [
    "resnet8",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet20", "resnet32", "resnet56", "vgg16_bn")),
    pytest.param("mobilenet_v2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NAMES)
def test_built_in_networks_pass_the_lint_and_run_unfused(name: str) -> None:
    from edgeq import models
    from edgeq.export.engines import engine_makers
    from edgeq.export.lower import lower
    from edgeq.quant.convert import multibit

    torch.manual_seed(0)
    net = multibit(models.build(name, classes=10), bits=(8, 5, 4, 2)).eval()
    for bits in (8, 5, 4, 2):
        graph = lower(net, bits=bits)
        model = build(graph, "trt")
        assert not lint(model), (name, bits)
        summed = exact_sums(graph, model.SerializeToString())  # the file itself, where no layer's order matters
        unfused = engine_makers(graph, summed, ("onnxruntime",), 0, "trt")[:2]
        images = np.random.default_rng(bits).integers(0, 256, (2, 3, 32, 32), np.uint8)
        for run in compare_with(graph, images, unfused):
            assert run.exact and run.engine.startswith("onnxruntime:disabled"), (name, bits, run.first, run.error)
