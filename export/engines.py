"""The executors that a verification compares, behind one function each: images -> codes of every edge.

ONNX Runtime runs at its four optimisation levels, on one thread, twice each: a copy of the model that gives out every
edge, and the model as it is, because extra outputs change what is fused. Models of the `qonnx` dialect run without
optimisation only, for it may fold their multipliers into the weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import InputError, require

from .dialects import dialect
from .graph import INPUT, IntegerGraph
from .signalstack import kept_signal_stack

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Codes = dict[str, np.ndarray]
LEVELS = ("disabled", "basic", "extended", "all")
QONNX_IMAGES = 4  # it makes a session of ONNX Runtime for every operator
ENGINES = ("torch", "onnx.reference", "onnxruntime")  # those that are always there
OPTIONAL = ("openvino", "tensorrt", "qonnx")
# By default OpenVINO may compute in bfloat16 and quantizes the inputs of linear layers anew (ACCURACY ends both), and
# its low-precision transformations do not round a convolution's result before an addition, though a QuantizeLinear
# stands there (tests/export/test_guards.py tells when that is over).
OPENVINO_EXACT = {"EXECUTION_MODE_HINT": "ACCURACY", "LP_TRANSFORMS_MODE": "NO"}


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
    graph: IntegerGraph, model: bytes, names: tuple[str, ...], slow_images: int, target: str
) -> list[tuple[str, Callable[[], Engine]]]:
    """Return the name of each engine and what makes it; making one may fail, which is a finding of its own.

    Raises:
        InputError: There is no engine of some name.
    """
    for name in names:
        if name not in ENGINES + OPTIONAL:
            raise InputError(f"expected engines of {', '.join(ENGINES + OPTIONAL)}, got {name!r}; leave it out")
    view = View(graph, dialect(target).observe(graph), dialect(target).dtype)
    makers: list[tuple[str, Callable[[], Engine]]] = []
    if "torch" in names:
        makers.append(("torch", lambda: _torch(graph)))
    if "onnx.reference" in names and slow_images:
        makers.append(("onnx.reference", lambda: _onnx_reference(view, model, slow_images)))
    if "onnxruntime" in names:
        for level in LEVELS[:1] if target == "qonnx" else LEVELS:
            for every in (True, False):
                label = f"onnxruntime:{level}:{'edges' if every else 'logits'}"
                makers.append((label, lambda at=level, every=every, label=label: _ort(view, model, at, every, label)))
    if "openvino" in names:
        makers += openvino_makers(graph, model, target)
    if "qonnx" in names:
        makers.append(("qonnx", lambda: _qonnx(view, model)))
    if "tensorrt" in names:
        for every in (True, False):
            label = f"tensorrt:{'edges' if every else 'logits'}"
            makers.append((label, lambda every=every, label=label: _tensorrt(view, model, every, label)))
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


@dataclass(frozen=True)
class View:
    """How to read the edges of a graph from a model of it.

    Attributes:
        graph: The definition.
        observed: For each edge the tensor that carries it, and the number that stands for code 0.
        dtype: Type of these tensors.
    """

    graph: IntegerGraph
    observed: dict[str, tuple[str, int]]
    dtype: type[np.integer] | type[np.floating]

    def tensors(self, edges: list[str]) -> list[str]:
        """Return the names of the tensors."""
        return [self.observed[edge][0] for edge in edges]

    def with_all_edges(self, model: bytes) -> "onnx.ModelProto":
        """Return a copy of the model that also outputs every edge."""
        import onnx
        from onnx import helper

        copy = onnx.load_from_string(model)
        present = {value.name for value in copy.graph.output}
        names = [tensor for tensor, _ in self.observed.values() if tensor not in present]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        copy.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in names)
        return copy

    def decoded(self, edges: list[str], values: Iterable[object]) -> Codes:
        """Turn tensors into codes: subtract the zero point, give every edge its shape."""
        return {
            edge: np.asarray(value).astype(np.int32).reshape(-1, *self.graph.edges[edge].shape) - self.observed[edge][1]
            for edge, value in zip(edges, values, strict=True)
        }


def _ort(view: View, model: bytes, level: str, every: bool, label: str) -> Engine:
    import onnxruntime

    edges = list(view.observed) if every else [view.graph.output]
    running = session(view.with_all_edges(model).SerializeToString() if every else model, level)
    tensors = view.tensors(edges)

    def run(images: np.ndarray) -> Codes:
        return view.decoded(edges, running.run(tensors, {INPUT: images}))

    return Engine(label, onnxruntime.__version__, run)


def _onnx_reference(view: View, model: bytes, most: int) -> Engine:
    import onnx
    from onnx.reference import ReferenceEvaluator

    from .reference_ops import OPERATORS

    evaluator = ReferenceEvaluator(view.with_all_edges(model), new_ops=list(OPERATORS))
    edges = list(view.observed)

    def run(images: np.ndarray) -> Codes:
        return view.decoded(edges, evaluator.run(view.tensors(edges), {INPUT: images}))

    return Engine("onnx.reference", onnx.__version__, run, most)


def openvino_makers(
    graph: IntegerGraph, model: bytes, target: str, settings: Mapping[str, str] = OPENVINO_EXACT, note: str = ""
) -> list[tuple[str, Callable[[], Engine]]]:
    """Return what makes OpenVINO's CPU plug-in run a model, with and without all edges as outputs.

    Args:
        graph: The definition.
        model: The ONNX model.
        target: Its dialect.
        settings: Properties of the compiled model; by default those that keep a Q/DQ model's own meaning.
        note: What to say about them in the engine's name.
    """
    view = View(graph, dialect(target).observe(graph), dialect(target).dtype)
    makers: list[tuple[str, Callable[[], Engine]]] = []
    for every in (True, False):
        label = ":".join(["openvino", *([note] if note else []), "edges" if every else "logits"])
        makers.append((label, lambda every=every, label=label: _openvino(view, model, every, (label, settings))))
    return makers


def _openvino(view: View, model: bytes, every: bool, how: tuple[str, Mapping[str, str]]) -> Engine:
    openvino = require("openvino", "openvino")
    label, settings = how
    core, edges = openvino.Core(), list(view.observed) if every else [view.graph.output]
    read = core.read_model(view.with_all_edges(model).SerializeToString() if every else model)
    with kept_signal_stack():
        compiled = core.compile_model(read, "CPU", {"INFERENCE_NUM_THREADS": 1, **settings})

    def run(images: np.ndarray) -> Codes:
        results = compiled({INPUT: images})
        return view.decoded(edges, [results[tensor] for tensor in view.tensors(edges)])

    return Engine(label, openvino.__version__.split("-")[0], run)


def _tensorrt(view: View, model: bytes, every: bool, label: str) -> Engine:
    """TensorRT, for models of the `trt` dialect; int8 outputs end up where TensorRT lets them."""
    from .trt_engine import TrtRunner, build_engine, load_tensorrt

    version = load_tensorrt().__version__
    edges = list(view.observed) if every else [view.graph.output]
    runner = TrtRunner(build_engine(view.with_all_edges(model).SerializeToString() if every else model))

    def run(images: np.ndarray) -> Codes:
        results = runner.run(images)
        return view.decoded(edges, [results[tensor] for tensor in view.tensors(edges)])

    return Engine(label, version, run)


def _qonnx(view: View, model: bytes) -> Engine:
    """The qonnx package's own execution of models of the `qonnx` dialect, operator by operator."""
    require("qonnx", "qonnx")
    from .qonnx_engine import execute, version

    edges = list(view.observed)

    def run(images: np.ndarray) -> Codes:
        tensors = execute(model, images)
        return view.decoded(edges, [tensors[tensor] for tensor in view.tensors(edges)])

    return Engine("qonnx", version(), run, QONNX_IMAGES)


def _torch(graph: IntegerGraph) -> Engine:
    import torch

    from .executor import TorchExecutor

    executor = TorchExecutor(graph, batch=32)

    def run(images: np.ndarray) -> Codes:
        return {name: value.numpy() for name, value in executor.edges(torch.from_numpy(images)).items()}

    return Engine("torch", torch.__version__, run)
