"""Models of the `qonnx` dialect in the qonnx package.

It makes one model per standard operator and runs it in ONNX Runtime, of the newest IR version that onnx can write,
which ONNX Runtime may not read yet (onnx 1.23 writes 14, ONNX Runtime 1.31 reads 13). While a model runs here, these
small models get the IR version of the large one; `tests/export/dialects/test_qonnx.py` tells when that is not needed.
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
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    read = onnx.load_from_string(model)
    for value in [*read.graph.input, *read.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = len(images)  # qonnx wants every shape known
    with _ir_version(read.ir_version):
        wrapped = ModelWrapper(read).transform(InferShapes())
        return execute_onnx(wrapped, {INPUT: images}, return_full_exec_context=True)


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
