"""The stack for signals survives what an engine does to it."""

import ctypes
import sys

import numpy as np
import pytest

from edgeq.export.dialects import build
from edgeq.export.engines import openvino_makers
from edgeq.export.signalstack import Stack, exchanged, kept_signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")


def _place() -> int | None:
    stack = exchanged()
    assert stack is not None
    return stack.pointer


def test_a_stack_that_was_taken_is_put_back() -> None:
    before, memory = _place(), ctypes.create_string_buffer(1 << 16)
    with kept_signal_stack():
        exchanged(Stack(ctypes.addressof(memory), 0, len(memory)))
        assert _place() == ctypes.addressof(memory) != before
    assert _place() == before


def test_openvino_leaves_the_stack_where_it_was(graphs) -> None:
    pytest.importorskip("openvino", reason="needs pip install 'edgeq[openvino]'")
    graph, before = graphs.resnet(8, width=4, blocks=1, size=8), _place()
    model = build(graph, "trt").SerializeToString()
    engines = [make() for _, make in openvino_makers(graph, model, "trt")]
    for engine in engines:
        engine.run(np.zeros((1, *graph.input_shape), np.uint8))
        assert _place() == before
    while engines:
        engines.pop(0)  # in this order each would leave the next one's stack behind, freed
    assert _place() == before
