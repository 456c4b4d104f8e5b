"""The executors that a verification compares, behind one function each: images -> codes of every edge.

ONNX Runtime runs at its four optimisation levels, on one thread, twice each: a copy of the model that gives out every
edge, and the model as it is, because extra outputs change what is fused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import InputError

from .dialects import ort
from .graph import IntegerGraph

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Codes = dict[str, np.ndarray]
LEVELS = ("disabled", "basic", "extended", "all")
ENGINES = ("torch", "onnx.reference", "onnxruntime")


@dataclass(frozen=True)
class Engine:
    """One executor.

    Attributes:
        name: Name and setting.
        version: Version of its package.
        run: From uint8 images to the codes of the edges that it shows.
        most: Number of images that it is given at most, because it is slow.
    """

    name: str
    version: str
    run: Callable[[np.ndarray], Codes]
    most: int | None = None


def engine_makers(
    graph: IntegerGraph, model: bytes, names: tuple[str, ...], slow_images: int
) -> list[tuple[str, Callable[[], Engine]]]:
    """Return the name of each engine and what makes it; making one may fail, which is a finding of its own.

    Raises:
        InputError: There is no engine of some name.
    """
    for name in names:
        if name not in ENGINES:
            raise InputError(f"expected engines of {', '.join(ENGINES)}, got {name!r}; leave it out")
    makers: list[tuple[str, Callable[[], Engine]]] = []
    if "torch" in names:
        makers.append(("torch", lambda: _torch(graph)))
    if "onnx.reference" in names and slow_images:
        makers.append(("onnx.reference", lambda: _onnx_reference(graph, model, slow_images)))
    if "onnxruntime" in names:
        for level in LEVELS:
            for every in (True, False):
                label = f"onnxruntime:{level}:{'edges' if every else 'logits'}"
                makers.append(
                    (label, lambda level=level, every=every, label=label: _ort(graph, model, level, every, label))
                )
    return makers


def session(model: bytes, level: str = "all") -> "onnxruntime.InferenceSession":
    """Return a quiet one-thread CPU session of ONNX Runtime."""
    import onnxruntime

    levels = {
        "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions; nothing is printed over a progress bar
    options.graph_optimization_level = levels[level]
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def with_all_edges(graph: IntegerGraph, model: bytes) -> "onnx.ModelProto":
    """Return a copy of the model that also outputs every edge."""
    import onnx

    copy = onnx.load_from_string(model)
    present = {value.name for value in copy.graph.output}
    names = [tensor for tensor, _ in ort.observe(graph).values() if tensor not in present]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def _ort(graph: IntegerGraph, model: bytes, level: str, every: bool, label: str) -> Engine:
    import onnxruntime

    observed = ort.observe(graph)
    edges = list(observed) if every else [graph.output]
    running = session(with_all_edges(graph, model).SerializeToString() if every else model, level)
    tensors = [observed[edge][0] for edge in edges]

    def run(images: np.ndarray) -> Codes:
        return _decoded(graph, edges, running.run(tensors, {"image": images}))

    return Engine(label, onnxruntime.__version__, run)


def _onnx_reference(graph: IntegerGraph, model: bytes, most: int) -> Engine:
    import onnx
    from onnx.reference import ReferenceEvaluator

    from .reference_ops import OPERATORS

    observed = ort.observe(graph)
    evaluator = ReferenceEvaluator(with_all_edges(graph, model), new_ops=list(OPERATORS))
    tensors = [tensor for tensor, _ in observed.values()]

    def run(images: np.ndarray) -> Codes:
        return _decoded(graph, list(observed), evaluator.run(tensors, {"image": images}))

    return Engine("onnx.reference", onnx.__version__, run, most)


def _torch(graph: IntegerGraph) -> Engine:
    import torch

    from .executor import TorchExecutor

    executor = TorchExecutor(graph, batch=32)

    def run(images: np.ndarray) -> Codes:
        return {name: value.numpy() for name, value in executor.edges(torch.from_numpy(images)).items()}

    return Engine("torch", torch.__version__, run)


def _decoded(graph: IntegerGraph, edges: list[str], values) -> Codes:
    """Turn the model's tensors into codes: subtract the zero point, give every edge its shape."""
    observed = ort.observe(graph)
    return {
        edge: np.asarray(value).astype(np.int32).reshape(-1, *graph.edges[edge].shape) - observed[edge][1]
        for edge, value in zip(edges, values, strict=True)
    }
