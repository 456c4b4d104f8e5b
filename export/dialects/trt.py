"""TensorRT 10 and 11: explicit Q/DQ on signed bytes, strongly typed, zero points 0.

Every edge is an int8 tensor of codes that a QuantizeLinear of scale 1 made; every operator reads it through a
DequantizeLinear and works on float32 tensors of whole numbers, until the next QuantizeLinear. TensorRT fuses
DQ -> operator -> Q into one int8 kernel; whoever does not fuse computes the same codes, because

    weights       int8 -> DequantizeLinear(axis 0) with scale m_c * 2^-n, so that a convolution's float sum *is*
                  accumulator * M_c in units of the output code. A short multiplier makes it exact wherever the output
                  does not saturate (`multiplier.py`); the bias is b_c * M_c, exact too (`cuts.py` checks both)
    activations   codes 0...127 end in Relu and the saturation of int8; a lower ceiling or another floor is a Clip
                  with whole limits before the Q, and rint(min(x, k)) = min(rint(x), k) for a whole k
    Add           both inputs, the residual one too, are dequantized with their own multiplier m * 2^-n
    Rescale       dequantized with the ratio, quantized with 1: all codes are tried here
    Mul           both inputs dequantized with 1, their product times m * 2^-n
    Table         Sub of the smallest code, Cast to int32, Gather
    Codebook      scores in float32 (weight scale 1), the smallest number of a largest one (`codebook.py`), Gather
    averages      windows are depthwise convolutions with weights 1; the global one is a ReduceSum of whole numbers
                  below 2^24 (exact in any order) and a Mul, because a mean over 49 pixels would round
    image         uint8 pixels: Cast to float32, which is all that TensorRT allows on uint8, Sub 128, Q
    logits        the accumulators of the last layer (weight scale 1), Cast to int32; where they may pass 2^24, which
                  float32 does not hold, pieces of the weights whose sums it holds, added in int32

TensorRT has no kernels for convolutions below 8 bits: weights of 5, 4 and 2 bits lie in int8 tensors, and time and
size are those of 8 bits. No code may exceed 127. TF32, fp16 and bf16 must stay off.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import InputError

from ..graph import (
    INPUT,
    INPUT_ZERO,
    Add,
    AvgPool,
    Codebook,
    Concat,
    Conv,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool,
    Move,
    Mul,
    Node,
    PlaneSum,
    Rescale,
    Table,
    reach,
)
from ..multiplier import FLOAT32_EXACT, Requant
from ..reference import half_even_ratio
from ..trt_engine import trtexec
from .codebook import check_float, write_lowest, write_words
from .moves import write_move
from .ort import at_most, float_scale, real
from .pieces import write_pieces
from .writer import Writer, check_ends, observed, output_name, writer_for

if TYPE_CHECKING:
    import onnx

FLOAT, UINT8, INT32 = 1, 2, 6  # of onnx.TensorProto
LOW, HIGH = -128, 127
VERSION = 19, 9  # opset and IR: TensorRT 10.0 knows opset 20; 19 is the first that onnx.reference has Q/DQ for


def build(graph: IntegerGraph) -> "onnx.ModelProto":
    """Translate the integer graph to ONNX.

    Raises:
        InputError: Some edge's codes do not fit into a signed byte, or the last node gives no logits.
    """
    check_ends(graph)
    for name, edge in graph.edges.items():
        if (name != graph.output or graph.draws) and not LOW <= edge.lo <= edge.hi <= HIGH:
            raise InputError(
                f"expected codes within {LOW}..{HIGH}, got {edge.lo}..{edge.hi} on {name!r}; TensorRT knows signed "
                "bytes only: narrow them"
            )
    writer = _Trt(graph, writer_for(graph, VERSION))
    writer.image()
    for node in graph.nodes:
        writer.translate(node)
    if graph.draws:
        writer.drawn()
    return writer.w.finish(graph)


def observe(graph: IntegerGraph) -> dict[str, tuple[str, int]]:
    """Return for every node's edge the tensor of the model that carries it and the number that stands for code 0."""
    return observed(graph, lambda edge: 0)


_LOGITS = {"logits": "int32 network output, whole numbers in float32 before the Cast"}
_IMAGE = {"drawn": "uint8 network output, whole numbers in float32 before the Cast"}


def about(graph: IntegerGraph) -> dict[str, object]:
    """Return what the manifest says about running the model."""
    return {
        "engine": "TensorRT 10 or 11, strongly typed; an engine is built on the GPU that shall run it",
        "image": "uint8 network input; Cast, Sub 128 and QuantizeLinear of scale 1 make the int8 codes",
        **(_IMAGE if graph.draws else _LOGITS),
        "weights": "int8 at every width: TensorRT has no convolution below 8 bits",
        "trtexec": trtexec(graph),
        "run_in_tensorrt": False,  # the certificate names the engines that did run
    }


@dataclass(frozen=True)
class _Trt:
    """One translation: the graph, the model written so far, and the edges' dequantized tensors."""

    graph: IntegerGraph
    w: Writer
    read: dict[tuple[str, float], str] = field(default_factory=dict)

    def image(self) -> None:
        self.w.node("Cast", [INPUT], f"{INPUT}:float", to=FLOAT)
        self.w.node("Sub", [f"{INPUT}:float", self.w.const(np.float32(INPUT_ZERO))], f"{INPUT}:centred")
        self._quantize(f"{INPUT}:centred", codes_of(INPUT))

    def translate(self, node: Node) -> None:
        match node:
            case Conv():
                self._conv(node)
            case Linear():
                self._product(node, "Gemm", transB=1)
            case Add():
                self._add(node)
            case Mul():
                self._multiply(node)
            case Rescale():
                self._rescale(node)
            case Table():
                self._look_up(node)
            case Codebook():
                self._codebook(node)
            case PlaneSum():
                axes, total = self.w.const(np.array([2, 3], np.int64)), f"{node.name}:sum"
                self.w.node("ReduceSum", [self._float(node.input), axes], total, keepdims=0)
                self.w.node("Cast", [total], self.w.name(node.name), to=INT32)
            case Move():
                given, moved = self.graph.edges[node.input].shape, f"{node.name}:moved"
                write_move(self.w, node, self._float(node.input), moved, given=given, zero=np.float32(0))
                self._quantize(moved, node.name)
            case AvgPool():
                self._average(node)
            case MaxPool():
                attributes = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}
                self.w.node("MaxPool", [self._float(node.input)], f"{node.name}:max", **attributes)
                self._quantize(f"{node.name}:max", node.name)
            case Concat():
                self.w.node("Concat", [self._float(name) for name in node.operands], f"{node.name}:all", axis=1)
                self._quantize(f"{node.name}:all", node.name)
            case Flatten():
                self.w.node("Flatten", [self._float(node.input)], f"{node.name}:flat", axis=1)
                self._quantize(f"{node.name}:flat", node.name)

    def _conv(self, node: Conv) -> None:
        attributes = {"strides": node.stride, "pads": node.padding, "dilations": node.dilation, "group": node.groups}
        self._product(node, "Conv", kernel_shape=node.weight.shape[2:], **attributes)

    def _product(self, node: Conv | Linear, operator: str, **attributes: Any) -> None:
        """Write a layer: its codes, or the sums themselves where they are the logits."""
        acc, rq = f"{node.name}:acc", node.requant
        edge = self.graph.edges[node.input]
        if rq is None and reach(node, edge).max() > FLOAT32_EXACT:

            def product(part: np.ndarray, name: str) -> None:
                weight = self._weight(part, np.ones(len(part), np.int32), 0, name)
                self.w.node(operator, [self._float(node.input), weight], name, **attributes)

            write_pieces(self.w, node, edge.reach, self.w.name(node.name), product)
            return
        self.w.node(operator, [self._float(node.input), *self._layer(node)], acc, **attributes)
        if rq is None:
            self.w.node("Cast", [acc], self.w.name(node.name), to=INT32)
            return
        top = at_most(int(np.max(reach(node, edge) * rq.m.astype(np.int64))), rq.n)
        self._land(node.name, acc, (rq.lo, rq.hi), (-top, top))

    def _codebook(self, node: Codebook) -> None:
        """Write float scores, whole numbers below 2^24, the smallest number of a largest one, and the codeword."""
        check_float(node, self.graph.edges[node.input])
        inputs = [self._float(node.input), *self._layer(node.scores)]
        self.w.node("Conv", inputs, f"{node.name}:acc", kernel_shape=(1, 1))
        write_lowest(self.w, node)
        write_words(self.w, node, f"{node.name}:words", zero=0, kind=np.float32)
        self._quantize(f"{node.name}:words", node.name)

    def drawn(self) -> None:
        """Write the output of a network that draws."""
        name = self.graph.output
        self.w.node("Add", [self._float(name), self.w.const(np.float32(INPUT_ZERO))], f"{name}:pixels")
        self.w.node("Cast", [f"{name}:pixels"], output_name(self.graph), to=UINT8)

    def _layer(self, node: Conv | Linear) -> list[str]:
        """Return the float weight and bias of a layer, in units of the output code."""
        rq = node.requant or Requant(np.ones(1, np.int32), 0, LOW, HIGH)  # logits: the accumulators themselves
        m = np.broadcast_to(rq.m, (len(node.weight),))
        weight = self._weight(node.weight, m, rq.n, node.name)
        return [weight, self.w.const(real(m.astype(np.int64) * node.bias, rq.n))] if node.bias.any() else [weight]

    def _weight(self, weight: np.ndarray, m: np.ndarray, n: int, layer: str) -> str:
        scale, zero = self.w.const(real(m, n)), self.w.const(np.zeros(len(m), np.int8))
        self.w.node("DequantizeLinear", [self.w.const(weight), scale, zero], f"{layer}:weight", axis=0)
        return f"{layer}:weight"

    def _add(self, node: Add) -> None:
        a, b = self.graph.edges[node.a], self.graph.edges[node.b]
        self.w.node(
            "Add", [self._float(node.a, node.m_a, node.n), self._float(node.b, node.m_b, node.n)], f"{node.name}:sum"
        )
        span = (a.lo * node.m_a + b.lo * node.m_b, a.hi * node.m_a + b.hi * node.m_b)
        self._land(
            node.name, f"{node.name}:sum", (node.lo, node.hi), (-at_most(-span[0], node.n), at_most(span[1], node.n))
        )

    def _multiply(self, node: Mul) -> None:
        rq, (a, b) = node.requant, (self.graph.edges[name] for name in node.inputs)
        self.w.node("Mul", [self._float(node.a), self._float(node.b)], f"{node.name}:product")
        self.w.node("Mul", [f"{node.name}:product", self.w.const(real(rq.m[0], rq.n))], f"{node.name}:units")
        ends = [x * y * int(rq.m[0]) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
        span = (-at_most(-min(ends), rq.n), at_most(max(ends), rq.n))
        self._land(node.name, f"{node.name}:units", (rq.lo, rq.hi), span)

    def _look_up(self, node: Table) -> None:
        self.w.node("Sub", [self._float(node.input), self.w.const(np.float32(node.lo))], f"{node.name}:from")
        self.w.node("Cast", [f"{node.name}:from"], f"{node.name}:index", to=INT32)
        table = self.w.const(node.table.astype(np.float32))
        self.w.node("Gather", [table, f"{node.name}:index"], f"{node.name}:found")
        self._quantize(f"{node.name}:found", node.name)

    def _rescale(self, node: Rescale) -> None:
        edge = self.graph.edges[node.input]
        codes = np.arange(edge.lo, edge.hi + 1, dtype=np.int32)
        exact = half_even_ratio(codes, node.num, node.den)
        scale = float_scale(codes, (0, 0), (node.num, node.den), exact)
        if scale is None:  # a tie that no float32 ratio hits: two operations that do
            self.w.node("Mul", [self._float(node.input), self.w.const(np.float32(node.num))], f"{node.name}:times")
            self.w.node("Div", [f"{node.name}:times", self.w.const(np.float32(node.den))], f"{node.name}:ratio")
            source = f"{node.name}:ratio"
        else:
            source = self._dequantized(node.input, scale)
        self._land(node.name, source, (node.lo, node.hi), (int(exact.min()), int(exact.max())))

    def _average(self, node: AvgPool) -> None:
        edge, rq = self.graph.edges[node.input], node.requant
        channels, *plane = edge.shape
        area = int(np.prod(node.kernel or plane))
        acc = f"{node.name}:acc"
        if node.kernel is None:
            self.w.node(
                "ReduceSum", [self._float(node.input), self.w.const(np.array([2, 3], np.int64))], acc, keepdims=1
            )
            scale = self.w.const(real(rq.m if len(rq.m) == 1 else rq.m.reshape(-1, 1, 1), rq.n))
            self.w.node("Mul", [acc, scale], f"{node.name}:mean")
            source = f"{node.name}:mean"
        else:
            ones = np.ones((channels, 1, *node.kernel), np.int8)
            weight = self._weight(ones, np.broadcast_to(rq.m, (channels,)), rq.n, node.name)
            attributes = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}
            self.w.node("Conv", [self._float(node.input), weight], acc, group=channels, **attributes)
            source = acc
        m = int(rq.m.max())
        span = (-at_most(-edge.lo * area * m, rq.n), at_most(edge.hi * area * m, rq.n))
        self._land(node.name, source, (rq.lo, rq.hi), (min(span[0], 0), max(span[1], 0)))

    def _float(self, edge: str, m: int = 1, n: int = 0) -> str:
        """Return the float tensor `code * m * 2^-n` of an edge."""
        return self._dequantized(edge, np.float32(real(m, n)))

    def _dequantized(self, edge: str, scale: np.float32) -> str:
        key = (edge, float(scale))
        if key not in self.read:
            self.read[key] = f"{edge}:dq{len(self.read)}"
            inputs = [codes_of(edge), self.w.const(scale), self.w.const(np.int8(0))]
            self.w.node("DequantizeLinear", inputs, self.read[key])
        return self.read[key]

    def _quantize(self, source: str, out: str) -> None:
        self.w.node("QuantizeLinear", [source, self.w.const(np.float32(1)), self.w.const(np.int8(0))], out)

    def _land(self, name: str, source: str, limits: tuple[int, int], span: tuple[int, int]) -> None:
        """Clamp to lo...hi what lies in `span`, and quantize; int8 itself saturates at -128 and 127."""
        low, high = limits[0] > max(span[0], LOW), limits[1] < min(span[1], HIGH)
        if low and not high and limits[0] == 0:
            self.w.node("Relu", [source], f"{name}:relu")
            source = f"{name}:relu"
        elif low or high:
            ends = [self.w.const(np.float32(limit)) for limit in limits]
            self.w.node("Clip", [source, *ends], f"{name}:clip")
            source = f"{name}:clip"
        self._quantize(source, name)


def codes_of(edge: str) -> str:
    """Return the int8 tensor of an edge."""
    return f"{INPUT}:codes" if edge == INPUT else edge
