"""Float engines on wide layers of the `trt` dialect: with the sums in integers they give the interpreter's codes."""

from dataclasses import replace

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgeq.export.compare import compare
from edgeq.export.dialects import build
from edgeq.export.exactsums import exact_sums, ordered, partial_reach
from edgeq.export.graph import INPUT, Conv, Edge, IntegerGraph, Linear
from edgeq.export.multiplier import Requant
from edgeq.export.verify import certify

ONE = ("onnxruntime",)


def wide(graphs) -> IntegerGraph:
    """Sums that climb over 2^24 by the first half of the channels and come back by the second; a Linear layer."""
    b = graphs.Builder((3, 12, 12))
    x = b.conv(INPUT, 64, (1, 1))
    x = b.conv(x, 32, bits=8, stride=(2, 2))
    node = b.nodes[-1]
    assert isinstance(node, Conv)
    up_and_down = abs(node.weight) * np.repeat([1, -1], 32)[:, None, None]
    b.nodes[-1] = replace(node, weight=up_and_down.astype(np.int8), bias=np.zeros(32, np.int32))
    return b.graph(b.linear(b.flatten(x), 9))


def model_of(graph: IntegerGraph) -> bytes:
    return build(graph, "trt").SerializeToString()


def test_wide_layers_agree_with_their_sums_in_integers_and_not_without(graphs) -> None:
    graph, model = wide(graphs), model_of(wide(graphs))
    images = graphs.images(graph, 60)
    assert {"conv1", "linear3"} <= set(ordered(graph))
    plain = compare(graph, model, images, engines=ONE, target="trt")
    summed = compare(graph, exact_sums(graph, model), images, engines=ONE, target="trt")
    assert any(run.mismatches for run in plain), "float32 summed these exactly: the test shows nothing"
    assert {run.first.largest for run in plain if run.first and run.first.layer == "conv1"} == {1}  # beside a tie
    assert all(run.exact for run in summed)
    found = certify(graph, model, target="trt", inputs=images, engines=ONE, quick=True)
    assert not [run for run in found.runs if not run.exact] and set(found.ordered) == set(ordered(graph))


def test_narrow_layers_stay_as_they_are(graphs) -> None:
    b = graphs.Builder()
    x = b.conv(INPUT, 4, (1, 1), bits=2)
    b.nodes[-1] = replace(b.nodes[-1], requant=Requant(np.ones(4, np.int32), 2, 0, 127))
    graph = b.graph(x, weight_bits=2)
    assert ordered(graph) == ()
    model = model_of(graph)
    assert exact_sums(graph, model) is model


def test_it_is_the_file_that_is_run(graphs) -> None:
    """A weight that was changed in the file is changed in its sums too."""
    graph = wide(graphs)
    model = onnx.load_from_string(model_of(graph))
    (operator,) = (node for node in model.graph.node if node.output[0] == "conv1:weight")
    weight = next(value for value in model.graph.initializer if value.name == operator.input[0])
    changed = numpy_helper.to_array(weight).copy()
    changed[5] = -changed[5]
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    given = exact_sums(graph, model.SerializeToString())
    for run in compare(graph, given, graphs.images(graph, 2), engines=ONE, target="trt"):
        assert run.first is not None and run.first.layer in ("conv1", graph.output)


@given(data=st.data())
def test_no_subset_of_the_products_passes_the_bound(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 16)))
    lo, hi = data.draw(st.sampled_from([(0, 127), (-128, 127), (-31, 31), (0, 3)]))
    weight = rng.integers(-127, 128, (3, 12)).astype(np.int8)
    bias = rng.integers(-4000, 4000, 3).astype(np.int32)
    bound = partial_reach(Linear("fc", "x", weight, bias, None, 8), Edge(lo, hi, 1.0, (12,)))
    products = weight * rng.integers(lo, hi + 1, 12)
    products = np.where(rng.random(products.shape) < 0.5, products, 0)
    sums = np.cumsum(products, 1)
    assert (abs(sums) <= bound[:, None]).all() and (abs(sums + bias[:, None]) <= bound[:, None]).all()
    ends = weight.astype(np.int64) * lo, weight.astype(np.int64) * hi  # one of them is not negative, one not positive
    highest, lowest = np.maximum(*ends).sum(1), np.minimum(*ends).sum(1)
    assert np.array_equal(bound, np.maximum(highest + np.maximum(bias, 0), -(lowest + np.minimum(bias, 0))))  # reached


def test_a_convolution_has_the_bound_of_its_window() -> None:
    weight = np.array([[[[1, -2], [3, -4]]]], np.int8)
    node = Conv("c", INPUT, weight, np.array([5], np.int32), None, 8)
    assert partial_reach(node, Edge(0, 10, 1.0, (1, 4, 4))) == [max(5 + 40, 60)]
    assert partial_reach(node, Edge(-10, 10, 1.0, (1, 4, 4))) == [105]
