"""Models of the `qonnx` dialect in the qonnx package.

Its `execute_onnx` walks through the operators and hands each to `execute_node`. Around that it checks shapes, order and
types by searching all tensors for every operator, which takes a quarter of an hour for the 2,300 operators of a
DenseNet; here the walk is our own, and the operators are still the package's (the tests compare the two).

`execute_node` makes one model per standard operator and runs it in ONNX Runtime, of the newest IR version that onnx can
write, which ONNX Runtime may not read yet (onnx 1.23 writes 14, ONNX Runtime 1.31 reads 13). While a model runs here,
these small models get the IR version of the large one; `tests/export/dialects/test_qonnx.py` tells when that is not
needed.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .graph import INPUT


def execute(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return every tensor of a model for a batch of images, as the qonnx package computes it."""
    import onnx
    from onnx import helper, numpy_helper, shape_inference
    from qonnx.core.onnx_exec import execute_node

    read = onnx.load_from_string(model)
    for value in [*read.graph.input, *read.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = len(images)  # qonnx wants every shape known
    graph = shape_inference.infer_shapes(read).graph
    known = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    values: dict[str, Any] = {INPUT: images}  # Any: an array
    for item in graph.initializer:
        known[item.name] = helper.make_tensor_value_info(item.name, item.data_type, item.dims)
        values[item.name] = numpy_helper.to_array(item)
    opsets = {item.domain: item.version for item in read.opset_import}
    with _ir_version(read.ir_version):
        for node in graph.node:
            around = onnx.GraphProto(value_info=[known[name] for name in {*node.input, *node.output} & known.keys()])
            values |= {name: np.zeros(_shape(known.get(name))) for name in node.output}
            execute_node(node, values, around, opsets[node.domain], True)
    return values


def _shape(value: Any) -> tuple[int, ...]:  # Any: a ValueInfoProto or None
    return () if value is None else tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def version() -> str:
    """Return the version of the package."""
    return importlib.metadata.version("qonnx")


@contextmanager
def _ir_version(number: int) -> Iterator[None]:
    from qonnx.core import onnx_exec

    make = onnx_exec.qonnx_make_model

    def make_older(graph: Any, **options: Any) -> Any:  # Any: a function of another package
        return make(graph, **{"ir_version": number, **options})

    onnx_exec.qonnx_make_model = make_older
    try:
        yield
    finally:
        onnx_exec.qonnx_make_model = make
