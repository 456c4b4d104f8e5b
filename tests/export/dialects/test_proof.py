import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, shape_inference

from edgeq.errors import InputError
from edgeq.export import save, verify
from edgeq.export.compare import compare
from edgeq.export.dialects import build
from edgeq.export.engines import session
from edgeq.export.graph import INPUT, Add, IntegerGraph
from edgeq.export.verify import certify, prove

INTEGERS = {TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32}


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Return a graph and the graphs inside its operators (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []:
                yield from bodies(inner)


def types(model: onnx.ModelProto) -> set[int]:
    """Return every type of number in a model: tensors, constants, targets of casts, attributes, in all subgraphs."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert not inferred.functions and not inferred.graph.sparse_initializer
    found = set()
    for graph in bodies(inferred.graph):
        values = [*graph.value_info, *graph.input, *graph.output]
        found |= {value.type.tensor_type.elem_type for value in values}
        found |= {value.data_type for value in graph.initializer}
        known = {value.name for value in values}
        for node in graph.node:
            assert set(node.output) <= known
            for attribute in node.attribute:
                assert attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.GRAPH)
                if attribute.name == "to":
                    found.add(attribute.i)
    return found


def assert_exact(graph: IntegerGraph, images: np.ndarray) -> onnx.ModelProto:
    model = build(graph, "proof")
    assert types(model) <= INTEGERS and {item.domain for item in model.opset_import} == {""}
    data = model.SerializeToString()
    for run in compare(graph, data, images, slow_images=2, target="proof"):
        assert run.exact, (run.engine, run.first, run.error)
    assert not [proof for proof in prove(graph, data, "proof") if not proof.exact]
    return model


@settings(max_examples=8)
@given(data=st.data())
def test_all_executors_agree_on_any_graph(graphs, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    assert_exact(graph, graphs.images(graph, 3))


NODES = {
    "conv": (lambda b: b.conv(INPUT, 4), {"ConvInteger": 1, "Min": 1, "Max": 1, "Mod": 1, "Div": 2}),
    "conv, signed": (lambda b: b.conv(INPUT, 4, lo=-128), {"ConvInteger": 1}),
    "grouped": (
        lambda b: b.conv(b.conv(INPUT, 4), 6, (3, 2), groups=2, dilation=(2, 1), stride=(1, 2), padding=(2, 0, 1, 1)),
        {"ConvInteger": 2},
    ),
    "hidden linear": (lambda b: b.linear(b.flatten(INPUT), 6, lo=-128), {"MatMulInteger": 2}),
    "add": (lambda b: b.add(b.conv(INPUT, 4, lo=-128), b.conv(INPUT, 4)), {"ConvInteger": 2}),
    "add to itself": (lambda b: b.add(INPUT, INPUT, lo=-128), {"ConvInteger": 0}),
    "rescale, no ties": (lambda b: b.rescale(b.conv(INPUT, 4), 15, 127, hi=15), {"Mod": 1}),
    "rescale at ties": (lambda b: b.rescale(INPUT, 1, 2, lo=-64, hi=64), {"Mod": 1}),
    "rescale by 3/10": (lambda b: b.rescale(INPUT, 3, 10, lo=-128, hi=127), {"Mod": 1}),
    "rescale upwards, long": (lambda b: b.rescale(INPUT, (1 << 23) - 1, 1 << 17, lo=-128, hi=127), {"Min": 1}),
    "relu": (lambda b: b.rescale(INPUT, 1, 1), {"Div": 0}),
    "max pool, padded": (lambda b: b.max_pool(INPUT, (3, 3), (2, 2), (1, 1, 1, 1)), {"MaxPool": 1}),
    "global average": (lambda b: b.average(INPUT), {"ConvInteger": 1}),
    "windowed average": (lambda b: b.average(INPUT, (3, 2), (2, 1), (1, 1, 0, 0)), {"ConvInteger": 1}),
    "concat of two zero points": (
        lambda b: b.concat(b.conv(INPUT, 4), b.conv(INPUT, 3, lo=-100), b.conv(INPUT, 4)),
        {"Concat": 1},
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_node(graphs, name: str) -> None:
    make, operators = NODES[name]
    b = graphs.Builder((3, 7, 8))
    graph = b.graph(make(b))
    counts = Counter(node.op_type for node in assert_exact(graph, graphs.images(graph, 4)).graph.node)
    assert {op: counts[op] for op in operators} == operators


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_residual_networks_hold_no_float(graphs, bits: int) -> None:
    assert types(build(graphs.resnet(bits, width=4, blocks=1, size=8), "proof")) == INTEGERS


@pytest.mark.parametrize("bits", [8, 2])
def test_float32_holds_every_number_behind_the_limits(graphs, bits: int) -> None:
    """Engines that compute int32 operators in float32 (OpenVINO's division) get them right for this reason alone."""
    graph = graphs.resnet(bits, width=4, blocks=1, size=8)
    model = build(graph, "proof")
    names = [name for node in model.graph.node for name in node.output if ":" in name and ":acc" not in name]
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in shape_inference.infer_shapes(model).graph.value_info
    }
    names = [name for name in names if kinds[name] == TensorProto.INT32]
    assert {name.rpartition(":")[2] for name in names} >= {"sum", "limited", "top", "tie", "half", "quotient"}
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.INT32, None) for name in names)
    values = session(model.SerializeToString()).run(names, {INPUT: graphs.images(graph, 8)})
    largest = dict(zip(names, (int(np.abs(np.asarray(value)).max()) for value in values), strict=True))
    assert max(largest.values()) <= 1 << 24, largest
    ends = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Clip":
            assert all(abs(int(ends[name])) <= 1 << 24 for name in node.input[1:])


def test_an_artefact_verifies(graphs, tmp_path: Path) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    certificate = verify(save(graph, path=tmp_path / "art", target="proof"))
    assert certificate.exact and certificate.target == "proof" and not certificate.needs_vnni
    assert {proof.claim for proof in certificate.proofs} == {
        "translation",
        "inequality",
        "int32",
        "requantizer",
        "table",
    }
    edges = next(run for run in certificate.runs if run.engine == "onnxruntime:all:edges")
    assert edges.tensors == len(graph.nodes)


@pytest.mark.parametrize(
    ("layer", "suffix", "claim"), [("stem", ":times", "requantizer"), ("layer1.0.add", "", "table")]
)
def test_a_changed_constant_is_found(graphs, layer: str, suffix: str, claim: str) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    model = build(graph, "proof")
    node = next(n for n in model.graph.node if n.op_type == "Mul" and n.output[0].startswith(layer))
    old = next(value for value in model.graph.initializer if value.name == node.input[1])
    changed = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(old) + np.int32(1), "changed")
    model.graph.initializer.append(changed)
    node.input[1] = "changed"
    certificate = certify(graph, model.SerializeToString(), target="proof", quick=True)
    assert [(p.layer, p.claim) for p in certificate.proofs if not p.exact] == [(layer, "translation"), (layer, claim)]


def test_sums_beyond_int32_are_refused(graphs) -> None:
    b = graphs.Builder()
    x = b.conv(INPUT, 4)
    b.put(Add("wide", x, x, 1 << 23, 1 << 23, 24, 0, 127), 0, 127, b.edges[x].shape)
    graph = b.graph("wide")
    with pytest.raises(InputError, match="layer 'wide' that fits into int32"):
        build(graph, "proof")


IMAGES = 5000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", [8, 2])
def test_resnet20_holds_no_float_and_names_what_the_ort_model_names(bits: int) -> None:
    """On test images of EDGEQ_DATA (`cifar10:PATH`, `folder:PATH`), or on drawn signs."""
    from edgeq import calib, models
    from edgeq.data import batches, load
    from edgeq.export.lower import lower
    from edgeq.quant.convert import multibit

    torch.manual_seed(3)  # untrained, it names one class for all images with most seeds
    dataset = load(os.environ.get("EDGEQ_DATA", f"signs:train=64,test={IMAGES}"), seed=0)
    train = next(iter(batches(dataset.train, 64)))[0]
    side = int(train.shape[2])
    net = multibit(models.build("resnet20", classes=len(dataset.classes)), image_shape=(3, side, side), bits=(32, bits))
    calib.reestimate(net, train, bits=32)
    calib.calibrate(net, train, bits=(bits,), weights="minmax")
    graph = lower(net.eval(), bits=bits)
    model = build(graph, "proof")
    assert types(model) <= INTEGERS
    sessions = [session(m.SerializeToString()) for m in (model, build(graph, "ort"))]
    seen, classes = 0, set()
    for images, _ in batches(dataset.test, 100):
        images = images[: IMAGES - seen].numpy()
        proof, ort = (np.asarray(running.run(None, {INPUT: images})[0]) for running in sessions)
        np.testing.assert_array_equal(proof.argmax(1), ort.argmax(1))
        np.testing.assert_array_equal(proof, ort)
        seen, classes = seen + len(images), classes | set(proof.argmax(1).tolist())
        if seen == IMAGES:
            break
    assert seen == IMAGES and len(classes) > 1
