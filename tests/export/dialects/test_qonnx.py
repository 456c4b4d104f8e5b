from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeq.errors import InputError, MissingExtra
from edgeq.export import save, verify
from edgeq.export.compare import compare
from edgeq.export.dialects import build, writer
from edgeq.export.dialects.pieces import pieces
from edgeq.export.dialects.qonnx import DOMAIN, limits_of, quant_function, quant_range
from edgeq.export.engines import session
from edgeq.export.graph import INPUT, Edge, IntegerGraph, Linear
from edgeq.export.multiplier import FLOAT32_EXACT
from edgeq.export.verify import certify, prove


def assert_exact(graph: IntegerGraph, images: np.ndarray) -> onnx.ModelProto:
    model = build(graph, "qonnx")
    data = model.SerializeToString()
    runs = compare(graph, data, images, slow_images=2, target="qonnx")
    assert [run.engine for run in runs if run.engine.startswith("onnxruntime")] == [
        "onnxruntime:disabled:edges",
        "onnxruntime:disabled:logits",
    ]
    for run in runs:
        assert run.exact, (run.engine, run.first, run.error)
    assert not [proof for proof in prove(graph, data, "qonnx") if not proof.exact]
    return model


def quants(model: onnx.ModelProto) -> dict[str, tuple[int, int, int]]:
    """Return (signed, narrow, bits) of the Quant behind every tensor."""
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Quant":
            assert node.domain == DOMAIN and values[node.input[1]] == 1 and values[node.input[2]] == 0
            flags = {attribute.name: attribute.i for attribute in node.attribute}
            found[node.output[0]] = (flags["signed"], flags["narrow"], int(values[node.input[3]]))
    return found


@settings(max_examples=4)
@given(data=st.data())
def test_all_executors_agree_on_any_graph(graphs, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    assert_exact(graph, graphs.images(graph, 3))


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_the_qonnx_package_computes_every_code(graphs, bits: int) -> None:
    pytest.importorskip("qonnx")
    graph = graphs.resnet(bits, width=4, blocks=1, size=8)
    data = build(graph, "qonnx").SerializeToString()
    (run,) = compare(graph, data, graphs.images(graph, 2), engines=("qonnx",), target="qonnx")
    assert run.exact and run.tensors == len(graph.nodes), (run.first, run.error)


@settings(max_examples=4)
@given(data=st.data())
def test_the_qonnx_package_agrees_on_any_graph(graphs, data: st.DataObject) -> None:
    pytest.importorskip("qonnx")
    graph = graphs.draw(data.draw)
    model = build(graph, "qonnx").SerializeToString()
    (run,) = compare(graph, model, graphs.images(graph, 2), engines=("qonnx",), target="qonnx")
    assert run.exact, (run.first, run.error)


def test_our_walk_through_the_operators_is_the_packages(graphs) -> None:
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    from edgeq.export import qonnx_engine

    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    model, images = build(graph, "qonnx"), graphs.images(graph, 3)
    ours = qonnx_engine.execute(model.SerializeToString(), images)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = len(images)
    with qonnx_engine._ir_version(model.ir_version):
        wrapped = ModelWrapper(model).transform(InferShapes())
        theirs = execute_onnx(wrapped, {INPUT: images}, return_full_exec_context=True)
    outputs = {name for node in model.graph.node for name in node.output}
    assert outputs <= ours.keys() & theirs.keys() and len(outputs) > 40
    for name in outputs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_the_workaround_for_ir_versions_is_still_needed(graphs) -> None:
    """If this fails, ONNX Runtime reads what onnx writes: `qonnx_engine.py` can lose its `_ir_version`."""
    pytest.importorskip("qonnx")
    from edgeq.export.qonnx_engine import execute

    if (onnx.__version__, onnxruntime.__version__) != ("1.23.2", "1.31.1"):
        pytest.skip("the versions that the workaround is for")
    node = helper.make_node("Neg", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "neg", ends[:1], ends[1:]))
    with pytest.raises(Exception, match="Unsupported model IR version"):
        session(model.SerializeToString())
    graph = graphs.Builder().graph(INPUT)
    images = graphs.images(graph, 1)
    tensors = execute(build(graph, "qonnx").SerializeToString(), images)
    np.testing.assert_array_equal(tensors["logits"], graph.run(images))


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_widths_are_stated(graphs, bits: int) -> None:
    graph = graphs.resnet(bits, width=4, blocks=1, size=8)
    found = quants(build(graph, "qonnx"))
    top = graphs.TOPS[bits].bit_length()
    assert found[f"{INPUT}:codes"] == (1, 0, 8)
    assert found["layer1.0.conv1"] == (0, 0, top)
    assert found["layer1.0.conv2"] == (1, 0, 8)
    assert found["layer1.0.conv1:acc:0:weight"] == (1, 1, bits)


def test_the_qonnx_package_knows_the_widths(graphs) -> None:
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_datatypes import InferDataTypes

    graph = graphs.resnet(5, width=4, blocks=1, size=8)
    model = ModelWrapper(build(graph, "qonnx")).transform(InferDataTypes())
    assert model.get_tensor_datatype("layer1.0.conv1").name == "UINT5"
    assert model.get_tensor_datatype("layer1.0.conv1:acc:0:weight").name == "INT5"


NODES = {
    "conv": (lambda b: b.conv(INPUT, 4), {"Conv": 1, "Relu": 1, "Clip": 0}),
    "conv, a ceiling of 100": (lambda b: b.conv(INPUT, 4, hi=100), {"Relu": 0, "Clip": 1}),
    "conv, one bit": (lambda b: b.conv(INPUT, 4, hi=1), {"Relu": 1, "Clip": 0}),
    "grouped": (
        lambda b: b.conv(b.conv(INPUT, 4), 6, (3, 2), groups=2, dilation=(2, 1), stride=(1, 2), padding=(2, 0, 1, 1)),
        {"Conv": 2},
    ),
    "hidden linear": (lambda b: b.linear(b.flatten(INPUT), 6, lo=-128), {"MatMul": 2}),
    "add to itself": (lambda b: b.add(INPUT, INPUT, lo=-128), {"Mul": 2}),
    "add": (lambda b: b.add(b.conv(INPUT, 4, lo=-128), b.conv(INPUT, 4), lo=-5, hi=9), {"Clip": 1}),
    "rescale at ties": (lambda b: b.rescale(INPUT, 1, 2, lo=-64, hi=64), {"Mul": 1, "Div": 0}),
    "rescale by 3/10": (lambda b: b.rescale(INPUT, 3, 10, lo=-128, hi=127), {}),
    "relu": (lambda b: b.rescale(INPUT, 1, 1), {"Mul": 0, "Relu": 1}),
    "max pool, padded": (lambda b: b.max_pool(INPUT, (3, 3), (2, 2), (1, 1, 1, 1)), {"MaxPool": 1}),
    "global average": (lambda b: b.average(INPUT), {"ReduceSum": 1}),
    "windowed average": (lambda b: b.average(INPUT, (3, 2), (2, 1), (1, 1, 0, 0)), {"Conv": 1}),
    "concat": (lambda b: b.concat(b.conv(INPUT, 4), b.conv(INPUT, 3, lo=-100), b.conv(INPUT, 4)), {"Concat": 1}),
}


@pytest.mark.parametrize("name", NODES)
def test_node(graphs, name: str) -> None:
    make, operators = NODES[name]
    b = graphs.Builder((3, 7, 8))
    graph = b.graph(make(b))
    counts = Counter(node.op_type for node in assert_exact(graph, graphs.images(graph, 4)).graph.node)
    assert {op: counts[op] for op in operators} == operators


@pytest.mark.parametrize("hidden", [True, False])
def test_sums_beyond_2_to_the_24_are_cut_into_pieces(graphs, hidden: bool) -> None:
    b = graphs.Builder((3, 40, 40))
    flat = b.flatten(INPUT)
    b.rng = np.random.default_rng(1)
    weight = b.rng.choice(np.array([-127, 127], np.int8), (6, 4800))
    weight[0] = 127  # reaches 78,028,800 where every pixel is black
    bias = b.rng.integers(-99, 99, 6).astype(np.int32)
    requant = graphs.short(np.full(6, 2.0**-17), -128, 127)
    x = b.put(Linear("wide", flat, weight, bias, requant, 8), -128, 127, (6,)) if hidden else flat
    graph = b.graph(x)
    if not hidden:
        last = Linear("fc", flat, weight, bias, None, 8)
        graph = IntegerGraph("test", 8, (*b.nodes[:-1], last), {**b.edges, "fc": Edge(0, 1, 1.0, (6,))})
    images = np.concatenate([graphs.images(graph, 3), np.zeros((1, 3, 40, 40), np.uint8)])
    counts = Counter(node.op_type for node in assert_exact(graph, images).graph.node)
    assert counts["MatMul"] == 5 + hidden


def test_a_dead_channel_with_a_large_bias_needs_no_pieces(graphs) -> None:
    b = graphs.Builder((3, 8, 8))
    flat = b.flatten(INPUT)
    weight = b.rng.integers(-127, 128, (2, 192)).astype(np.int8)
    weight[1] = 0
    bias = np.array([3, FLOAT32_EXACT], np.int32)
    b.put(Linear("dead", flat, weight, bias, graphs.short(np.full(2, 2.0**-10), -128, 127), 8), -128, 127, (2,))
    graph = b.graph("dead")
    assert_exact(graph, graphs.images(graph, 2))


@given(seed=st.integers(0, 99), codes=st.integers(1, 255))
@settings(max_examples=20)
def test_pieces_add_up_and_stay_small(seed: int, codes: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (3, 3000)).astype(np.int8)
    node = Linear("x", INPUT, weight, np.zeros(3, np.int32), None, 8)
    parts = np.stack(pieces(node, codes)).astype(np.int64)
    np.testing.assert_array_equal(parts.sum(0), weight)
    assert (np.abs(parts).sum(2) * codes).max() <= 1 << 24


@given(lo=st.integers(-128, 100), span=st.integers(1, 255))
def test_quant_range_holds_the_codes(lo: int, span: int) -> None:
    hi = min(255, lo + span)
    signed, narrow, bits = quant_range(lo, hi)
    low, high = limits_of(signed, narrow, bits)
    assert low <= lo and hi <= high and signed == (lo < 0)
    if bits > 1 + signed:  # one bit less would not do
        shorter = limits_of(signed, False, bits - 1)
        assert lo < shorter[0] or hi > shorter[1]


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("bits", [2, 3, 5, 8, 16])
def test_the_function_in_the_file_is_quant(signed: int, narrow: int, bits: int) -> None:
    attributes = {"signed": signed, "narrow": narrow, "rounding_mode": "ROUND"}
    node = helper.make_node("Quant", ["x", "s", "z", "b"], ["y"], domain=DOMAIN, **attributes)
    low, high = limits_of(bool(signed), bool(narrow), bits)
    x = np.concatenate([np.arange(-20, 20), [low, high]])[:, None] + np.array([-0.75, -0.5, -0.25, 0, 0.25, 0.5, 1])
    x = np.float32(x)
    values = {"s": np.float32(1), "z": np.float32(0), "b": np.float32(bits)}
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "quant", ends[:1], ends[1:], constants)
    imports = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[quant_function()])
    got = np.asarray(session(model.SerializeToString()).run(None, {"x": x})[0])
    np.testing.assert_array_equal(got, np.rint(np.clip(x, low, high)))
    package = pytest.importorskip("qonnx.custom_op.general.intquant")
    args = (*values.values(), signed, narrow, "ROUND")
    np.testing.assert_array_equal(got, package.int_quant(x, *[np.asarray(a) for a in args[:3]], *args[3:]))


def test_an_artefact_verifies(graphs, tmp_path: Path) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    certificate = verify(save(graph, path=tmp_path / "art", target="qonnx"))
    assert certificate.exact and certificate.target == "qonnx"
    claims = {"translation", "inequality", "int32", "requantizer", "table", "sums"}
    assert {proof.claim for proof in certificate.proofs} == claims


@pytest.mark.parametrize(
    ("layer", "suffix", "claims"),
    [
        ("stem", ":acc:scaled", ["translation", "requantizer"]),
        ("layer1.0.add", ":0", ["translation", "table"]),
    ],
)
def test_a_changed_constant_is_found(graphs, layer: str, suffix: str, claims: list[str]) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    model = build(graph, "qonnx")
    node = next(n for n in model.graph.node if n.output[0] == layer + suffix)
    old = next(value for value in model.graph.initializer if value.name == node.input[1])
    model.graph.initializer.append(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(old) * 2, "changed"))
    node.input[1] = "changed"
    certificate = certify(graph, model.SerializeToString(), target="qonnx", quick=True)
    assert [(p.layer, p.claim) for p in certificate.proofs if not p.exact] == [(layer, claim) for claim in claims]


def test_heavier_weights_break_the_bound_on_sums(graphs) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    model = build(graph, "qonnx")
    node = next(n for n in model.graph.node if n.output[0] == "stem:acc:0:weight")
    value = next(value for value in model.graph.initializer if value.name == node.input[0])
    value.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value) * 1000, value.name))
    failed = [(p.layer, p.claim) for p in prove(graph, model.SerializeToString(), "qonnx") if not p.exact]
    assert failed == [("stem", "translation"), ("stem", "sums")]


def test_a_changed_function_is_found(graphs) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    model = build(graph, "qonnx")
    next(n for n in model.functions[0].node if n.op_type == "Round").op_type = "Floor"
    certificate = certify(graph, model.SerializeToString(), target="qonnx", quick=True)
    assert ("model", "translation") in [(p.layer, p.claim) for p in certificate.proofs if not p.exact]
    assert certificate.mismatches


def test_without_the_package_the_extra_is_named(graphs, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "qonnx", None)
    graph = graphs.Builder().graph(INPUT)
    data = build(graph, "qonnx").SerializeToString()
    (run,) = compare(graph, data, graphs.images(graph, 1), engines=("qonnx",), target="qonnx")
    assert "pip install 'edgeq[qonnx]'" in run.error and MissingExtra.__name__ in run.error


def test_a_file_beyond_2_gib_is_refused(graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_MODEL", 1000)
    with pytest.raises(InputError, match=r"which ends at 2 GiB, got 0\.0 GiB in this dialect; choose another target"):
        build(graphs.resnet(4, width=4, blocks=1, size=8), "qonnx")


def test_a_network_without_logits_is_refused(graphs) -> None:
    b = graphs.Builder()
    b.conv(INPUT, 4)
    with pytest.raises(InputError, match="expected a last layer that gives int32 sums"):
        build(IntegerGraph("none", 8, tuple(b.nodes), b.edges), "qonnx")
