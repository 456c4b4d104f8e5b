"""What an engine really runs in integers: ONNX Runtime's own optimised graph, counted.

Quantized models are often faster on paper only: one operator that the engine cannot fuse leaves a convolution, or
half of the network, in float32 between DequantizeLinear and QuantizeLinear. Nothing says so at run time. Here ONNX
Runtime optimises the model and writes down the graph that it would execute; every multiplication (MAC) and every
element of an addition of two activations is counted as integer or float by the kernel that runs it, and each
connected group of float operators (*island*) is reported with its cause and its remedy (`audit_causes.py`).

The graph is that of level `extended`, where fusion ends; the level above changes memory layouts alone. It holds for the
processor at hand, as fusion depends on it. Any ONNX file can be audited, whoever made it. Of TensorRT, its own report
of an engine's layers is read (`trt_report.py`).
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import InputError

from .audit_causes import Cause, View, causes

if TYPE_CHECKING:
    import onnx
    import onnxruntime

CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "QLinearConv": 3, "ConvInteger": 1}  # weight's position
CONVOLUTIONS |= {"DeformConv": 1, "ConvTranspose": 1}
PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "QLinearMatMul", "QGemm"}
PRODUCTS |= {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}
FACTORS = {"Mul": (0, 1), "QLinearMul": (0, 3)}  # positions of the two factors
INTEGER = {"QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul", "QGemm"}
INTEGER |= {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
UNCOUNTED = {"Einsum", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "If", "Loop", "Scan"}
BORDERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
MOVES = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "ReorderInput", "ReorderOutput"}


@dataclass(frozen=True)
class Island:
    """Connected operators that run in float.

    Attributes:
        operators: Names of the operators, in the order of execution.
        kinds: How many of each type.
        macs: Multiplications in it.
        adds: Elements of additions of two activations in it.
        causes: What keeps it in float, and what to change.
    """

    operators: tuple[str, ...]
    kinds: Mapping[str, int]
    macs: int
    adds: int
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Audit:
    """The result for one image (batch 1).

    Attributes:
        engine: Name and version.
        macs: Multiplications.
        integer_macs: Those in integer kernels.
        adds: Elements of additions of two activations.
        integer_adds: Those in integer kernels.
        islands: Float islands, in the order of execution.
        uncounted: Types of operators whose multiplications are not counted.
        refused: Why the engine does not run the model as it optimises by default; empty where it does.
    """

    engine: str
    macs: int
    integer_macs: int
    adds: int
    integer_adds: int
    islands: tuple[Island, ...] = ()
    uncounted: tuple[str, ...] = ()
    refused: str = ""

    @property
    def macs_percent(self) -> float:
        """Share of the multiplications that run in integers."""
        return 100.0 * self.integer_macs / self.macs if self.macs else 100.0

    @property
    def adds_percent(self) -> float:
        """Share of the additions that run in integers."""
        return 100.0 * self.integer_adds / self.adds if self.adds else 100.0

    @property
    def integer(self) -> bool:
        """Whether all that computes runs in integers, counted or not, in a model that the engine runs."""
        counted = (self.integer_macs, self.integer_adds) == (self.macs, self.adds)
        return counted and not (self.refused or self.islands or self.uncounted)

    def as_dict(self) -> dict[str, Any]:  # Any: JSON
        """Return the audit as plain JSON."""
        shares = {"macs_percent": self.macs_percent, "adds_percent": self.adds_percent, "integer": self.integer}
        return {"kind": "edgeq audit", **shares, **asdict(self)}


def audit(source: str | os.PathLike[str] | bytes, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Audit:
    """Count what ONNX Runtime runs in integers, and explain the rest.

    Args:
        source: An artefact folder, an ONNX file, or the bytes of one; or a .json file with TensorRT's report of the
            layers of an engine (`trt_report.py`).
        shapes: Shapes of inputs by name; needed where another axis than the first has no fixed size.

    Raises:
        InputError: There is no model there, ONNX Runtime does not run it, or a shape is missing or wrong.
    """
    if not isinstance(source, bytes) and Path(source).suffix == ".json":
        from edgeq.files import read_json

        from .trt_report import audit_report

        return audit_report(read_json(source))
    model = _model(source)
    with tempfile.TemporaryDirectory() as folder:
        optimised, refused = _optimised(model, Path(folder) / "optimised.onnx")
    arrays = _arrays(optimised, shapes or {})
    return _Counter(optimised, arrays).result(refused)


def _model(source: str | os.PathLike[str] | bytes) -> "bytes | str":
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if path.is_dir():
        from .artefact import load

        return load(path).model
    if not path.is_file():
        raise InputError(f"expected an artefact folder or an ONNX file, got {path}; check the path")
    return str(path)  # ONNX Runtime then finds external data beside it


def _session(model: "bytes | str", level: str, save_to: Path | None = None) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _optimised(model: "bytes | str", path: Path) -> "tuple[onnx.ModelProto, str]":
    """Return the graph that the engine executes, and why it refuses to fuse the model, if it does."""
    import onnx

    refused = ""
    try:
        _session(model, "ORT_ENABLE_EXTENDED", path)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        refused = " ".join(str(error).split())
        try:
            _session(model, "ORT_ENABLE_BASIC", path)  # without fusion
        except Exception as error:
            reason = " ".join(str(error).split())[-300:]
            raise InputError(f"expected a model that ONNX Runtime runs, got '{reason}'; check the file") from error
    return onnx.load(path), refused


def _arrays(model: "onnx.ModelProto", shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and the type of every tensor, by running the optimised model once on zeros."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {value.name for value in copy.graph.output}
    names = [name for node in copy.graph.node for name in node.output if name and name not in have]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    running = _session(copy.SerializeToString(), "ORT_DISABLE_ALL")
    given = {value.name: value for value in running.get_inputs()}
    for name in shapes:
        if name not in given:
            raise InputError(f"expected shapes of inputs {', '.join(given)}, got one of {name!r}; correct the name")
    feeds = {name: _zeros(value, shapes.get(name)) for name, value in given.items()}
    try:
        values = running.run(None, feeds)
    except Exception as error:
        reason = " ".join(str(error).split())[-300:]
        raise InputError(f"expected shapes that the model takes, got '{reason}'; give others") from error
    found = dict(zip((value.name for value in running.get_outputs()), values, strict=True)) | feeds
    return {name: (value.shape, str(value.dtype)) for name, value in found.items() if isinstance(value, np.ndarray)}


def _zeros(value: "onnxruntime.NodeArg", shape: tuple[int, ...] | None) -> np.ndarray:
    kinds = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    if shape is None:
        free = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
        if any(axis for axis in free):
            raise InputError(
                f"expected a fixed shape but for the batch, got {value.shape} at input {value.name!r}; "
                f"give its shape, for example {value.name}=1,3,224,224"
            )
        shape = tuple(size if isinstance(size, int) else 1 for size in value.shape)
    return np.zeros(shape, kinds.get(kind, kind))


@dataclass
class _Counter:
    """Walks the optimised graph."""

    model: "onnx.ModelProto"
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    view: View = field(init=False)

    def __post_init__(self) -> None:
        self.view = View(self.model.graph, {name: kind for name, (_, kind) in self.arrays.items()})

    def result(self, refused: str) -> Audit:
        import onnxruntime

        totals: Counter[str] = Counter()
        for node in self.view.active:
            whole = "integer_" if self._is_integer(node) else "float_"
            totals[f"{whole}macs"] += self._macs(node)
            totals[f"{whole}adds"] += self._adds(node)
        groups = [group for group in self._groups() if any(node.op_type not in MOVES for node in group)]
        return Audit(
            engine=f"onnxruntime {onnxruntime.__version__}",
            macs=totals["integer_macs"] + totals["float_macs"],
            integer_macs=totals["integer_macs"],
            adds=totals["integer_adds"] + totals["float_adds"],
            integer_adds=totals["integer_adds"],
            islands=tuple(self._island(group, bool(refused)) for group in groups),
            uncounted=tuple(sorted({node.op_type for node in self.view.active} & UNCOUNTED)),
            refused=refused,
        )

    def _size(self, tensor: str) -> int:
        return int(np.prod(self.arrays[tensor][0], dtype=np.int64))

    def _shape(self, tensor: str) -> tuple[int, ...]:
        return self.view.shapes.get(tensor) or self.arrays[tensor][0]

    def _macs(self, node: "onnx.NodeProto") -> int:
        if node.op_type in CONVOLUTIONS:
            weight = self._shape(node.input[CONVOLUTIONS[node.op_type]])
            places = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
            return self._size(places) * int(np.prod(weight[1:], dtype=np.int64))
        if node.op_type in PRODUCTS:
            turned = self.view.attribute(node, "transA", 0)
            return self._size(node.output[0]) * self._shape(node.input[0])[-2 if turned else -1]
        if node.op_type in FACTORS:  # a product with a constant is a scale
            both = all(node.input[i] not in self.view.constant for i in FACTORS[node.op_type])
            return self._size(node.output[0]) * both
        return 0

    def _adds(self, node: "onnx.NodeProto") -> int:
        """Return the elements of additions of activations; what is added to a constant is a bias."""
        positions = {"Add": (0, 1), "Sub": (0, 1), "QLinearAdd": (0, 3), "FusedConv": (0, 3)}.get(node.op_type, ())
        if node.op_type == "Sum":
            positions = tuple(range(len(node.input)))
        given = [node.input[i] for i in positions if i < len(node.input) and node.input[i] not in self.view.constant]
        return max(0, len(given) - 1) * self._size(node.output[0])

    def _is_integer(self, node: "onnx.NodeProto") -> bool:
        if node.op_type == "MatMulNBits":
            return self.view.attribute(node, "accuracy_level", 0) == 4
        return node.op_type in INTEGER or not self._is_float(node)

    def _is_float(self, node: "onnx.NodeProto") -> bool:
        """Whether an operator computes on float activations."""
        names = [name for name in (*node.input, *node.output) if name and name not in self.view.constant]
        touches = any(self.view.kinds.get(name, "").startswith(("float", "bfloat")) for name in names)
        return touches and node.op_type not in BORDERS | INTEGER

    def _groups(self) -> "list[list[onnx.NodeProto]]":
        """Return the connected groups of float operators, each in the order of execution."""
        root: dict[str, str] = {}  # first output of a float operator -> that of another one of its group

        def find(name: str) -> str:
            while root[name] != name:
                name = root[name]
            return name

        floats = [node for node in self.view.active if self._is_float(node) and not self._is_integer(node)]
        for node in floats:
            own = root[node.output[0]] = node.output[0]
            for name in node.input:
                source = self.view.producer.get(name)
                if source is not None and source.output[0] in root:
                    root[find(own)] = find(source.output[0])
        groups: dict[str, list[onnx.NodeProto]] = {}
        for node in floats:
            groups.setdefault(find(node.output[0]), []).append(node)
        return list(groups.values())

    def _island(self, group: "list[onnx.NodeProto]", refused: bool) -> Island:
        return Island(
            operators=tuple(node.name or node.output[0] for node in group),
            kinds=dict(Counter(node.op_type for node in group)),
            macs=sum(self._macs(node) for node in group),
            adds=sum(self._adds(node) for node in group),
            causes=causes(self.view, group, refused=refused),
        )
