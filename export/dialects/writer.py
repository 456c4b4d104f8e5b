"""Writing ONNX models: shared constants, packed weights, and the smallest opset that holds them.

Weights of 8 bits are INT8 initializers; of 4 and 2 bits INT4 and INT2 initializers behind a Cast. ONNX has no type for
3, 5, 6 and 7 bits: there all layers of one width share one packed string of bytes per plane (`pack.py`) and one
chain of standard operators that unpacks it and splits it into layers. ONNX Runtime evaluates either while it loads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq import __version__
from edgeq.errors import InputError

from ..graph import INPUT, INPUT_ZERO, Conv, Edge, IntegerGraph, Linear
from ..pack import pack_planes, planes

if TYPE_CHECKING:
    import onnx

LOGITS, DRAWN = "logits", "drawn"  # name of the model's output
MICROSOFT = "com.microsoft"
LARGEST_MODEL = (1 << 31) - (1 << 24)  # bytes of weights; the rest is left to operators and names
TYPED_BITS = {8: (18, 8), 4: (21, 10), 2: (25, 13)}  # widths with an ONNX type -> first opset, its IR version


def check_ends(graph: IntegerGraph) -> None:
    """Check that the graph ends in logits or in an image, and that the output's name is free.

    Raises:
        InputError: It is not so.
    """
    last, edge = graph.nodes[-1], graph.edges[graph.output]
    codes = edge.lo, edge.hi, len(edge.shape)
    if graph.draws and not (isinstance(last, Conv) and codes == (-INPUT_ZERO, 255 - INPUT_ZERO, 3)):
        raise InputError(
            f"expected a last layer that gives int32 sums or, as a Conv, an image, got {type(last).__name__} "
            f"{last.name!r}; end in a plain Linear or Conv"
        )
    name = output_name(graph)
    if name in {node.name for node in (graph.nodes if graph.draws else graph.nodes[:-1])}:
        raise InputError(f"expected the name {name!r} for the output alone, got an inner layer of that name; rename it")


def output_name(graph: IntegerGraph) -> str:
    """Return the name of the model's output."""
    return DRAWN if graph.draws else LOGITS


def observed(graph: IntegerGraph, zero: Callable[[Edge], int]) -> dict[str, tuple[str, int]]:
    """Return for every node's edge the tensor of the model that carries it and the number that stands for code 0.

    Args:
        graph: The graph.
        zero: That number on an inner edge.
    """
    found = {node.name: (node.name, zero(graph.edges[node.name])) for node in graph.nodes}
    return {**found, graph.output: (output_name(graph), INPUT_ZERO if graph.draws else 0)}


def writer_for(graph: IntegerGraph, version: tuple[int, int] = TYPED_BITS[8]) -> "Writer":
    """Return an empty writer whose model takes `image` and gives `logits`, of at least an (opset, IR version).

    The codes of an image that is drawn lie in a tensor of their own, from which the dialect makes the output.
    """
    return Writer({INPUT: INPUT} if graph.draws else {INPUT: INPUT, graph.output: LOGITS}, version)


class Writer:
    """Collects nodes and initializers of one model.

    Args:
        names: Edges whose tensors have another name in the model.
        version: Smallest opset and IR version.
    """

    def __init__(self, names: Mapping[str, str], version: tuple[int, int]) -> None:
        self._names = dict(names)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._weights: dict[str, str] = {}
        self._version = version
        self._domains: set[str] = set()

    def name(self, edge: str) -> str:
        """Return the tensor that carries an edge."""
        return self._names.get(edge, edge)

    def weight(self, layer: str) -> str:
        """Return the INT8 tensor of a layer's weights."""
        return self._weights[layer]

    def const(self, value: np.ndarray | np.generic) -> str:
        """Return the name of an initializer; equal ones are stored once."""
        array = np.asarray(value)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self._initializer(array)
        return self._shared[key]

    def node(self, op: str, inputs: Sequence[str], output: str | Sequence[str], *, domain: str = "", **attributes: Any):
        """Append an operator; the attributes are those of the operator, of any type that ONNX knows."""
        from onnx import helper

        outputs = [output] if isinstance(output, str) else list(output)
        self._domains.add(domain)
        self._nodes.append(helper.make_node(op, list(inputs), outputs, domain=domain, **attributes))

    def add_weights(self, layers: Sequence[Conv | Linear]) -> None:
        """Store the weights of all layers, each packed at its width."""
        untyped: dict[int, list[Conv | Linear]] = {}
        for layer in layers:
            if layer.weight_bits in TYPED_BITS:
                self._weights[layer.name] = self._typed(_onnx_weight(layer), layer.weight_bits)
            else:
                untyped.setdefault(layer.weight_bits, []).append(layer)
        for bits, group in untyped.items():
            self._unpacked(group, bits)

    def finish(self, graph: IntegerGraph) -> "onnx.ModelProto":
        """Return the checked model: uint8 images in, int32 logits or uint8 images out.

        Raises:
            InputError: Its weights are too large for one file.
        """
        import onnx
        from onnx import TensorProto, helper

        size = sum(value.ByteSize() for value in self._initializers)
        if size > LARGEST_MODEL:
            raise InputError(
                f"expected weights that fit into an ONNX file, which ends at 2 GiB, got {size / 2**30:.1f} GiB in this "
                "dialect; choose another target or fewer bits"
            )
        image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *graph.input_shape])
        shape = ["batch", *graph.edges[graph.output].shape]
        kind = TensorProto.UINT8 if graph.draws else TensorProto.INT32
        output = helper.make_tensor_value_info(output_name(graph), kind, shape)
        opset, ir_version = self._version
        imports = [helper.make_opsetid(domain, 1 if domain else opset) for domain in sorted(self._domains)]
        body = helper.make_graph(self._nodes, graph.name, [image], [output], self._initializers)
        model = helper.make_model(
            body, opset_imports=imports, ir_version=ir_version, producer_name="edgeq", producer_version=__version__
        )
        onnx.checker.check_model(model)
        return model

    def _initializer(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f":{len(self._initializers)}"  # no layer is called so
        self._initializers.append(numpy_helper.from_array(array, name))  # raw bytes, not variable-length integers
        return name

    def _typed(self, weight: np.ndarray, bits: int) -> str:
        import ml_dtypes
        from onnx import TensorProto

        if bits == 8:
            return self._initializer(weight)
        self._version = max(self._version, TYPED_BITS[bits])
        packed = self._initializer(weight.astype(ml_dtypes.int4 if bits == 4 else ml_dtypes.int2))
        self.node("Cast", [packed], f"{packed}w", to=TensorProto.INT8)
        return f"{packed}w"

    def _unpacked(self, layers: Sequence[Conv | Linear], bits: int) -> None:
        """Emit: shift every plane into its place, join the planes, sign, and one slice and shape per layer."""
        from onnx import TensorProto

        weights = [_onnx_weight(layer) for layer in layers]
        flat = np.concatenate([weight.reshape(-1) for weight in weights])
        sizes = [weight.size for weight in weights]
        if rest := -len(flat) % 8:  # then all planes unpack to the same length
            flat, sizes = np.pad(flat, (0, rest)), [*sizes, rest]
        tag = f":w{bits}"
        joined = self._join(pack_planes(flat, bits), bits, tag)
        sign = 1 << (bits - 1)
        self.node("BitwiseXor", [joined, self.const(np.uint8(sign))], f"{tag}x")  # two's complement -> offset
        self.node("Cast", [f"{tag}x"], f"{tag}i", to=TensorProto.INT32)
        self.node("Sub", [f"{tag}i", self.const(np.int32(sign))], f"{tag}d")
        self.node("Cast", [f"{tag}d"], f"{tag}c", to=TensorProto.INT8)
        parts = [f"{tag}_{index}" for index in range(len(sizes))]
        self.node("Split", [f"{tag}c", self.const(np.array(sizes, np.int64))], parts, axis=0)
        for layer, weight, part in zip(layers, weights, parts, strict=False):
            self.node("Reshape", [part, self.const(np.array(weight.shape, np.int64))], f"{part}w")
            self._weights[layer.name] = f"{part}w"

    def _join(self, packed: list[np.ndarray], bits: int, tag: str) -> str:
        joined, offset = "", 0
        for width, data in zip(planes(bits), packed, strict=True):
            part = f"{tag}p{width}"
            shifts = np.arange(8 // width, dtype=np.uint8) * np.uint8(width)
            self.node("BitShift", [self._initializer(data[:, None]), self.const(shifts)], f"{part}s", direction="RIGHT")
            self.node("BitwiseAnd", [f"{part}s", self.const(np.uint8((1 << width) - 1))], f"{part}a")
            self.node("Reshape", [f"{part}a", self.const(np.array([-1], np.int64))], part)
            if offset:
                self.node("BitShift", [part, self.const(np.uint8(offset))], f"{part}l", direction="LEFT")
                self.node("BitwiseOr", [joined, f"{part}l"], f"{part}j")
            joined = f"{part}j" if offset else part
            offset += width
        return joined


def _onnx_weight(layer: Conv | Linear) -> np.ndarray:
    """Return the weights as the operators want them: MatMulInteger and QGemm multiply x by an (in, out) matrix."""
    return np.ascontiguousarray(layer.weight if isinstance(layer, Conv) else layer.weight.T)
