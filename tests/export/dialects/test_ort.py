from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import InputError
from edgeq.export.compare import compare
from edgeq.export.dialects import TARGETS, build
from edgeq.export.dialects.ort import observe
from edgeq.export.graph import INPUT, Add, Edge, IntegerGraph
from edgeq.export.verify import prove

INTEGER = {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "MatMulInteger", "Clip", "Add", "Flatten"}


def assert_exact(graph: IntegerGraph, images: np.ndarray) -> onnx.ModelProto:
    """All engines on all edges, and the engine's own requantizers at all thresholds."""
    model = build(graph, "ort")
    data = model.SerializeToString()
    for run in compare(graph, data, images, slow_images=2):
        assert run.exact, (run.engine, run.first, run.error)
        assert run.codes
    failed = [proof for proof in prove(graph, data) if not proof.exact]
    assert not failed
    return model


@settings(max_examples=15)
@given(data=st.data())
def test_all_executors_agree_on_any_graph(graphs, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    assert_exact(graph, graphs.images(graph, 3))


NODES = {
    "conv": (lambda b: b.conv(INPUT, 4), {"QLinearConv": 1}),
    "conv with a ceiling": (lambda b: b.conv(INPUT, 4, hi=31), {"QLinearConv": 1, "Clip": 1}),
    "conv, full signed range": (lambda b: b.conv(INPUT, 4, lo=-128), {"QLinearConv": 1, "Clip": 0}),
    "conv, full unsigned range": (lambda b: b.conv(INPUT, 4, hi=255), {"QLinearConv": 1, "Clip": 0}),
    "conv, -127 to 127": (lambda b: b.conv(INPUT, 4, lo=-127), {"QLinearConv": 1, "Clip": 1}),
    "add, odd floor": (lambda b: b.add(b.conv(INPUT, 4), b.conv(INPUT, 4), lo=-5, hi=9), {"QLinearAdd": 1}),
    "conv, symmetric": (lambda b: b.conv(INPUT, 4, lo=-31, hi=31), {"QLinearConv": 1, "Clip": 1}),
    "grouped, dilated, odd": (
        lambda b: b.conv(b.conv(INPUT, 4), 6, (3, 2), groups=2, dilation=(2, 1), stride=(1, 2), padding=(2, 0, 1, 1)),
        {"QLinearConv": 2},
    ),
    "depthwise": (lambda b: b.conv(b.conv(INPUT, 4), 4, groups=4), {"QLinearConv": 2}),
    "hidden linear": (lambda b: b.linear(b.flatten(INPUT), 6), {"QGemm": 1}),
    "hidden linear, signed": (lambda b: b.linear(b.flatten(INPUT), 6, lo=-128), {"QGemm": 1}),
    "add": (lambda b: b.add(b.conv(INPUT, 4, lo=-128), b.conv(INPUT, 4)), {"QLinearAdd": 1}),
    "add to itself": (lambda b: b.add(INPUT, INPUT, lo=-128), {"QLinearAdd": 1}),
    "rescale": (lambda b: b.rescale(b.conv(INPUT, 4), 15, 127, hi=15), {"QLinearAdd": 1}),
    "rescale to unsigned": (lambda b: b.rescale(INPUT, 3, 127, hi=3), {"QLinearAdd": 1}),
    "rescale at ties": (lambda b: b.rescale(INPUT, 1, 2, lo=-64, hi=64), {"QLinearAdd": 1}),
    "rescale by a table": (lambda b: b.rescale(INPUT, 3, 10, lo=-128, hi=127), {"Gather": 1}),
    "relu": (lambda b: b.rescale(INPUT, 1, 1), {"QLinearAdd": 1}),
    "clamp": (lambda b: b.rescale(b.conv(INPUT, 4), 1, 1, hi=6), {"QLinearAdd": 0}),
    "clamp that does nothing": (lambda b: b.rescale(b.conv(INPUT, 4), 1, 1), {"Identity": 1}),
    "max pool, padded": (lambda b: b.max_pool(INPUT, (3, 3), (2, 2), (1, 1, 1, 1)), {"MaxPool": 1}),
    "global average": (lambda b: b.average(INPUT), {"QLinearGlobalAveragePool": 1}),
    "global average, then conv": (
        lambda b: b.conv(b.average(b.conv(INPUT, 4)), 4, (1, 1)),
        {"QLinearGlobalAveragePool": 1, "QLinearConv": 2},
    ),
    "windowed average": (lambda b: b.average(INPUT, (3, 2), (2, 1), (1, 1, 0, 0)), {"QLinearConv": 1}),
    "concat": (lambda b: b.concat(b.conv(INPUT, 4), b.conv(INPUT, 3)), {"Concat": 1, "QLinearAdd": 0}),
    "concat of two zero points": (
        lambda b: b.concat(b.conv(INPUT, 4), b.conv(INPUT, 3, lo=-100), b.conv(INPUT, 4)),
        {"Concat": 1, "QLinearAdd": 2},
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_node(graphs, name: str) -> None:
    make, operators = NODES[name]
    b = graphs.Builder((3, 7, 8))
    graph = b.graph(make(b))
    model = assert_exact(graph, graphs.images(graph, 4))
    counts = Counter(node.op_type for node in model.graph.node)
    assert {op: counts[op] for op in operators} == operators


@pytest.mark.parametrize(
    ("bits", "opset", "ir_version"),
    [(8, 18, 8), (7, 18, 8), (6, 18, 8), (5, 18, 8), (4, 21, 10), (3, 18, 8), (2, 25, 13)],
)
def test_weights_of_every_width(graphs, bits: int, opset: int, ir_version: int) -> None:
    b = graphs.Builder((3, 5, 5))
    x = b.conv(b.conv(INPUT, 5, bits=bits), 3, bits=bits)  # 255 weights: the planes end inside a byte
    graph = b.graph(b.linear(b.flatten(x), 3, bits=bits), weight_bits=bits)
    model = assert_exact(graph, graphs.images(graph, 4))
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)
    stored = sum(len(value.raw_data) for value in model.graph.initializer if value.data_type not in (1, 6, 7))
    assert stored < (135 + 135 + 9 + 15) * bits / 8 + 40


@pytest.fixture(scope="module")
def sizes(graphs) -> dict[int, int]:
    return {bits: len(build(graphs.resnet(bits), "ort").SerializeToString()) for bits in (8, 5, 4, 2)}


@pytest.mark.parametrize(("bits", "most"), [(5, 0.70), (4, 0.58), (2, 0.34)])
def test_file_shrinks_with_the_width(sizes: dict[int, int], bits: int, most: float) -> None:
    assert sizes[bits] <= most * sizes[8]


@pytest.mark.parametrize("bits", [8, 5, 2])
def test_optimised_residual_network_is_integer_throughout(graphs, bits: int, tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = build(graphs.resnet(bits), "ort").SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    counts = Counter(node.op_type for node in optimised.graph.node)
    assert set(counts) == INTEGER | {"Transpose"}  # no Cast, no unpacking, no float left
    assert (counts["QLinearConv"], counts["QLinearAdd"]) == (21, 9 if bits == 8 else 18)
    transposes = [node for node in optimised.graph.node if node.op_type == "Transpose"]
    assert [node.input[0] for node in transposes] == ["image"]
    produced = {output for node in optimised.graph.node for output in node.output}
    assert not any(name in produced for n in optimised.graph.node if n.op_type == "QLinearConv" for name in n.input[1:])


def test_layers_keep_their_names(graphs) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    produced = {output for node in build(graph, "ort").graph.node for output in node.output}
    assert {tensor for tensor, _ in observe(graph).values()} <= produced
    assert {"layer1.0.add", "stem", "logits"} <= produced


def test_ties_of_an_adder_with_an_odd_floor_go_to_even_codes(graphs) -> None:
    """QLinearAdd adds the zero point before it rounds; 1/2 + 1 would become 2 and the code 1."""
    b = graphs.Builder((3, 16, 16))
    half = b.put(Add("half", INPUT, INPUT, 1, 1, 2, -127, 127), -127, 127, (3, 16, 16))
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1)
    assert_exact(b.graph(half), ramp)


def test_codes_beyond_a_byte_are_refused(graphs) -> None:
    b = graphs.Builder()
    x = b.conv(INPUT, 4)
    graph = b.graph(x)
    edges = {**graph.edges, x: Edge(-1, 255, 1.0, graph.edges[x].shape)}
    with pytest.raises(InputError, match=r"fit into a byte, got -1\.\.255 on 'conv0'"):
        build(IntegerGraph("wide", 8, graph.nodes, edges), "ort")


def test_a_graph_without_logits_is_refused(graphs) -> None:
    b = graphs.Builder()
    b.conv(INPUT, 4)
    with pytest.raises(InputError, match="gives int32 sums or, as a Conv, an image, got Conv 'conv0'; end in a plain"):
        build(IntegerGraph("open", 8, tuple(b.nodes), b.edges), "ort")


def test_the_name_of_the_output_is_taken(graphs) -> None:
    b = graphs.Builder()
    with pytest.raises(InputError, match="the name 'logits'"):
        build(b.graph(b.conv(INPUT, 4, name="logits")), "ort")


def test_unknown_targets_are_refused(graphs) -> None:
    assert TARGETS[0] == "ort"
    with pytest.raises(InputError, match=r"expected a target of ort.*got 'tflite'"):
        build(graphs.resnet(8, width=4, blocks=1, size=8), "tflite")
