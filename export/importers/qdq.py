"""ONNX files with quantizers (Q/DQ, with a Clip between for fewer bits, or QONNX's Quant) become integer graphs.

Made for what ONNX Runtime's `quantize_static`, Brevitas's `export_onnx_qcdq` and `export_qonnx` and our translation of
PT2E write. The file is read once from front to back; each tensor has a meaning (`build.py`): constants, codes on an
edge, or a layer that waits for its quantizer. What has none is refused by operator and name.
"""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import InputError
from edgeq.pixels import Pixels

from ..graph import IntegerGraph
from ..modelfile import loaded
from .build import SPAN, Builder
from .meaning import Codes, Grid, Pending, Weight
from .operators import OPERATORS, attributes, clip_ends, refused

if TYPE_CHECKING:
    import onnx


SMALLEST = 1e-30  # of an activation's scale: float32 reaches no further with full precision


@dataclass(frozen=True)
class Imported:
    """An integer graph, and what its import did to the network.

    Attributes:
        graph: With short multipliers, ready for export.
        long: With multipliers of 24 bits: the original's arithmetic up to ties, for comparison only.
        observed: For each edge the original's real tensor, and the value of one code there.
        output: The original's real logits.
        change: Largest relative change of a multiplier, per node.
        notes: What differs from the original by more than rounding.
        pixels: How the original sees an image.
    """

    graph: IntegerGraph
    long: IntegerGraph
    observed: dict[str, tuple[str, float]]
    output: str
    change: dict[str, float]
    notes: tuple[str, ...]
    pixels: Pixels


def import_onnx(
    model: "str | os.PathLike[str] | bytes | onnx.ModelProto",
    *,
    pixels: Pixels | None = None,
    classes: tuple[str, ...] = (),
    name: str = "imported",
) -> Imported:
    """Read a quantized ONNX model.

    Args:
        model: A file, its bytes, or the model itself.
        pixels: How the network sees an image; by default x = pixel / 255.
        classes: Class names.
        name: For people.

    Raises:
        InputError: The file is no ONNX model, or something in it has no integer form; the operator is named.
    """
    read, pixels = loaded(model), pixels or Pixels()
    readers = [_Reader(read, pixels, long) for long in (False, True)]
    short, long = (reader.run(name, classes) for reader in readers)
    first = readers[0]
    return Imported(short, long, first.observed, first.output, first.builder.change, tuple(first.builder.notes), pixels)


@dataclass(frozen=True)
class _Image:
    """The float image."""


@dataclass(frozen=True)
class _Quantized:
    """Integers between Q and DQ: what was quantized, and the grid."""

    source: "Pending | Codes | _Image"
    grid: Grid
    zero: int


@dataclass
class _Reader:
    """One pass over a model."""

    model: "onnx.ModelProto"
    pixels: Pixels
    long: bool
    values: dict[str, Any] = field(default_factory=dict)  # Any: constants, and the classes of `build.py`
    observed: dict[str, tuple[str, float]] = field(default_factory=dict)
    landed: dict[str, Codes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from onnx import TensorProto, numpy_helper

        graph = self.model.graph
        self.values |= {value.name: numpy_helper.to_array(value) for value in graph.initializer}
        inputs = [value for value in graph.input if value.name not in self.values]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise InputError(
                f"expected one input and one output, got {len(inputs)} and {len(graph.output)}; cut the model"
            )
        tensor = inputs[0].type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        if len(shape) != 4 or min(shape[1:]) < 1:
            raise InputError(f"expected an image of shape (batch, channels, height, width), got {shape}; fix its shape")
        if tensor.elem_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(tensor.elem_type)
            raise InputError(
                f"expected the float image as input, got {kind} at {inputs[0].name!r}; cut off what turns it into "
                "floats, and say with pixels (--mean, --std) what that did"
            )
        self.values[inputs[0].name] = _Image()
        self.builder = Builder(shape[1:], self.pixels, self.long, batch=shape[0])
        self.output = graph.output[0].name

    def run(self, name: str, classes: tuple[str, ...]) -> IntegerGraph:
        """Return the integer graph."""
        for node in self.model.graph.node:
            unknown = [item for item in node.input if item and item not in self.values]
            if unknown:
                raise refused(node, "first outputs of operators alone", "leave it out", f"{unknown[0]!r}")
            inputs = [self.values.get(item) for item in node.input]
            if all(value is None or isinstance(value, np.ndarray) for value in inputs):
                self._constant(node)
            else:
                self.values[node.output[0]] = self._value(node, inputs)
        result = self.values.get(self.output)
        if isinstance(result, Pending):
            self.builder.logits(result)
        elif isinstance(result, Codes):
            self.builder.identity(result)
        else:
            raise InputError(f"expected quantized logits at {self.output!r}, got something else; quantize the output")
        return self.builder.graph(name, classes)

    def _constant(self, node: "onnx.NodeProto") -> None:
        """Evaluate what depends on constants alone; a dequantized one keeps its integers."""
        if node.op_type in ("DequantizeLinear", "Quant"):
            self.values[node.output[0]] = self._weight(node)
            return
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator

        outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
        known = [name for name in node.input if name]
        feeds = {name: self.values[name] for name in known}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        model = helper.make_model(
            helper.make_graph([node], "constant", inputs, outputs), opset_imports=self.model.opset_import
        )
        try:
            results = ReferenceEvaluator(model).run(None, feeds)
        except Exception as error:
            raise refused(node, "constants that can be computed", "fold them", " ".join(str(error).split())) from error
        self.values |= dict(zip(node.output, results, strict=False))

    def _weight(self, node: "onnx.NodeProto") -> Weight:
        args = [np.asarray(self.values[name]) for name in node.input]
        if not np.isfinite(args[1]).all() or (args[1] < 0).any():
            raise refused(node, "scales of 0 or more", "quantize it again", f"{args[1].min()}")
        if node.op_type == "Quant":
            limits = _quant_limits(node, args[3])
            scale, zero = args[1].astype(np.float64), args[2]
            whole = np.rint(args[0] / np.where(args[1] == 0, 1, args[1]) + _whole(node, zero))
            axis = int(np.argmax(scale.shape)) if scale.size > 1 else 0
            if scale.size not in (1, whole.shape[axis] if whole.ndim else 1):
                raise refused(node, "one scale, or one for each channel", "quantize so", f"{scale.shape}")
            return Weight(np.clip(whole, *limits) - zero, scale.reshape(-1), axis)
        codes, scale = args[0].astype(np.int64), args[1].astype(np.float64).reshape(-1)
        axis = attributes(node).get("axis", 1) % max(1, codes.ndim)
        blocked = args[1].size > 1 and args[1].shape != codes.shape[axis : axis + 1]
        if blocked or attributes(node).get("block_size", 0):
            raise refused(node, "one scale, or one for each channel", "quantize without blocks", f"{args[1].shape}")
        if len(args) > 2:
            shape = [1] * codes.ndim
            if args[2].size > 1:
                shape[axis] = -1
            codes = codes - args[2].astype(np.int64).reshape(shape if codes.ndim else ())
        return Weight(codes, scale, axis)

    def _value(self, node: "onnx.NodeProto", inputs: list[Any]) -> Any:
        """Return the meaning of a node's output."""
        match node.op_type:
            case "QuantizeLinear":
                return self._quantize(node, inputs)
            case "DequantizeLinear":
                return self._dequantize(node, inputs)
            case "Quant":
                return self._quant(node, inputs)
            case "Clip" if isinstance(inputs[0], _Quantized):
                (low, high), grid, zero = clip_ends(node, inputs), inputs[0].grid, inputs[0].zero
                lo, hi = max(grid.lo, low - zero), min(grid.hi, high - zero)
                return _Quantized(inputs[0].source, Grid(grid.scale, int(lo), int(hi)), zero)
            case "Identity" | "Dropout" | "Cast":
                return inputs[0]
        if node.op_type not in OPERATORS:
            raise refused(
                node, f"one of {', '.join(OPERATORS)} between quantizers", "fold it into a layer or replace it"
            )
        return OPERATORS[node.op_type](self.builder, node, inputs)

    def _quantize(self, node: "onnx.NodeProto", inputs: list[Any]) -> _Quantized:
        source, scale = inputs[0], _one_scale(node, inputs)
        zero = np.asarray(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else np.zeros((), _output_type(node))
        limits, offset = _type_limits(zero, node), int(zero.reshape(-1)[0])
        return _Quantized(source, Grid(scale, limits[0] - offset, limits[1] - offset), offset)

    def _dequantize(self, node: "onnx.NodeProto", inputs: list[Any]) -> Codes:
        quantized = inputs[0]
        if not isinstance(quantized, _Quantized):
            raise refused(node, "integers from a QuantizeLinear", "put Q and DQ in pairs")
        if np.float32(inputs[1]) != np.float32(quantized.grid.scale):
            raise refused(node, "the scale of its QuantizeLinear", "use one scale for the pair")
        zero = int(np.asarray(inputs[2]).reshape(-1)[0]) if len(inputs) > 2 and inputs[2] is not None else 0
        if zero != quantized.zero:
            got = f"{zero} for {quantized.zero}"
            raise refused(node, "the zero point of its QuantizeLinear", "use one zero point for the pair", got)
        if node.input[0] not in self.landed:
            self.landed[node.input[0]] = self._landed(quantized.source, quantized.grid, node.output[0])
        return self.landed[node.input[0]]

    def _quant(self, node: "onnx.NodeProto", inputs: list[Any]) -> Codes:
        source, scale, zero = inputs[0], _one_scale(node, inputs), _whole(node, np.asarray(inputs[2]))
        limits, offset = _quant_limits(node, inputs[3]), int(zero.reshape(-1)[0])
        if limits[1] - limits[0] > SPAN:
            width = int(np.asarray(inputs[3]).reshape(-1)[0])
            raise refused(node, "2 to 8 bits for an activation", "train with them", str(width))
        return self._landed(source, Grid(scale, limits[0] - offset, limits[1] - offset), node.output[0])

    def _landed(self, source: "Pending | Codes | _Image", grid: Grid, tensor: str) -> Codes:
        if isinstance(source, _Image):
            codes = self.builder.image(grid)
        else:
            pending = source if isinstance(source, Pending) else Pending(source, tensor)
            codes = self.builder.land(pending, grid)
        if self.builder.nodes and self.builder.nodes[-1].name == codes.edge:
            self.observed.setdefault(codes.edge, (tensor, grid.scale))
        return codes


def _one_scale(node: "onnx.NodeProto", inputs: list[Any]) -> float:
    scale = np.asarray(inputs[1])
    if scale.size != 1 or not isinstance(inputs[0], Pending | Codes | _Image):
        raise refused(node, "one scale for an activation", "quantize activations per tensor")
    value = float(scale.reshape(-1)[0])
    if not SMALLEST < value < float("inf"):
        raise refused(node, "a positive scale", "calibrate it", f"{value}")
    return value


def _whole(node: "onnx.NodeProto", zero: np.ndarray) -> np.ndarray:
    if not (zero == np.rint(zero)).all():
        raise refused(node, "whole zero points", "round them in training", f"{zero.reshape(-1)[0]}")
    return zero


def _output_type(node: "onnx.NodeProto") -> np.dtype:
    from onnx import TensorProto, helper

    return helper.tensor_dtype_to_np_dtype(attributes(node).get("output_dtype", 0) or TensorProto.UINT8)


def _type_limits(zero: np.ndarray, node: "onnx.NodeProto") -> tuple[int, int]:
    limits = {
        "uint8": (0, 255),
        "int8": (-128, 127),
        "int4": (-8, 7),
        "uint4": (0, 15),
        "int2": (-2, 1),
        "uint2": (0, 3),
    }
    if str(zero.dtype) not in limits:
        raise refused(node, "codes of at most 8 bits", "quantize to 8 bits or fewer", str(zero.dtype))
    return limits[str(zero.dtype)]


def _quant_limits(node: "onnx.NodeProto", bits: np.ndarray) -> tuple[int, int]:
    from ..dialects.qonnx import limits_of

    given, width = attributes(node), int(np.asarray(bits).reshape(-1)[0])
    if str(given.get("rounding_mode", b"ROUND"), "ascii").upper() not in ("ROUND", "HALF_EVEN"):
        raise refused(node, "rounding half to even", "train with it")
    if not 2 - (not given.get("signed", 1)) <= width <= 32:
        raise refused(node, "2 to 8 bits", "train with them", str(width))
    return limits_of(bool(given.get("signed", 1)), bool(given.get("narrow", 0)), width)
