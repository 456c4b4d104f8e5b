import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import InputError
from edgeq.export import graphfile
from edgeq.export.graph import Conv, IntegerGraph, Linear


def assert_equal(a: object, b: object) -> None:
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple):
        assert isinstance(b, tuple) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b and type(a) is type(b)


@settings(max_examples=30)
@given(data=st.data())
def test_round_trip(graphs, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    back = graphfile.from_bytes(*graphfile.to_bytes(graph))
    assert_equal(graph, dataclasses.replace(back, edges=dict(back.edges)))


def test_classes_and_size(graphs) -> None:
    graph = graphs.resnet(2, width=8)
    graph = IntegerGraph("named", 2, graph.nodes, graph.edges, tuple("abcdefghij"))
    record, tensors = graphfile.to_bytes(graph)
    assert graphfile.from_bytes(record, tensors).classes == tuple("abcdefghij")
    weights = sum(node.weight.size for node in graph.nodes if isinstance(node, Conv | Linear))
    assert len(tensors) < weights * 2 / 8 + 12_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record | {"format": 99},
        lambda record: {key: value for key, value in record.items() if key != "edges"},
        lambda record: record | {"nodes": [{"kind": "Softmax"}]},
        lambda record: record | {"nodes": [record["nodes"][0] | {"weight": {"packed": "none", "shape": [1]}}]},
        lambda record: record | {"nodes": [record["nodes"][0] | {"input": "nowhere"}, *record["nodes"][1:]]},
        lambda record: record | {"nodes": record["nodes"][::-1]},
        lambda record: record | {"nodes": []},
    ],
)
def test_another_record_is_refused(graphs, damage) -> None:
    record, tensors = graphfile.to_bytes(graphs.resnet(4, width=4, blocks=1, size=8))
    with pytest.raises(InputError, match="export the model again"):
        graphfile.from_bytes(json.dumps(damage(json.loads(record))).encode(), tensors)
