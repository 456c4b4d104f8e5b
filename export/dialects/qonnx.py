"""QONNX: whole numbers in float32 tensors, each narrowed by a `Quant` of scale 1 that states its true width.

For the `qonnx` package and the compilers built on it (FINN and its kin), which want weights and activations of any
number of bits. Every tensor holds codes, not real values:

    weight        initializer -> Quant(1, 0, bits): 5-bit weights are INT5, not INT8
    layer         Conv or MatMul, and an Add of the bias: the accumulator itself
    requantizer   Mul by m * 2^-n, Relu where codes start at 0, Quant(1, 0, bits): 0...127 is UINT7, -31...31 a narrow
                  INT6; a range that is none of Quant's gets a Clip with whole limits first
    Add, Rescale  Mul by the short multipliers, or by a ratio with which all codes were tried
    Mul, Table    Mul, and Mul by the short multiplier; Sub, Cast to int32 and Gather
    Codebook      scores as a layer's accumulators, ArgMax, Gather, Quant
    averages      sums of whole numbers (ReduceSum, or a depthwise Conv with 1-bit weights) and a Mul
    image         uint8 pixels: Cast, Sub 128, Quant

`Quant` clips, then rounds half to even, on whole limits: that is our rule. Sums stay below 2^24, so float32 holds every
partial one in any order; a layer that could pass it is cut into pieces that cannot, and these are added in int32.

The file carries the definition of Quant as an ONNX function of the same name and domain. Whoever knows Quant ignores
it; ONNX Runtime and `onnx.reference`, which do not, run the file unchanged. An optimiser may fold the Mul into the
weights of the Conv before it; then partial sums may pass 2^24, so ONNX Runtime is to run it without optimisation.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
from ..multiplier import FLOAT32_EXACT
from ..reference import half_even_ratio
from .codebook import check_float, write_argmax, write_words
from .moves import write_move
from .ort import float_scale, real
from .pieces import write_pieces
from .writer import Writer, check_ends, observed, output_name, writer_for

if TYPE_CHECKING:
    import onnx

DOMAIN = "qonnx.custom_op.general"
FLOAT, UINT8, INT32, UINT64 = 1, 2, 6, 13  # of onnx.TensorProto
VERSION = 13, 8  # opset and IR: 8 is the first with functions
ONE, ZERO = np.float32(1), np.float32(0)


def build(graph: IntegerGraph) -> "onnx.ModelProto":
    """Translate the integer graph to QONNX.

    Raises:
        InputError: The last node does not give int32 logits.
    """
    import onnx

    check_ends(graph)
    writer = _Qonnx(graph, writer_for(graph, VERSION))
    writer.image()
    for node in graph.nodes:
        writer.translate(node)
    if graph.draws:
        writer.drawn()
    model = writer.w.finish(graph)
    model.functions.append(quant_function())
    onnx.checker.check_model(model)
    return model


def observe(graph: IntegerGraph) -> dict[str, tuple[str, int]]:
    """Return for every node's edge the tensor of the model that carries it and the number that stands for code 0."""
    return observed(graph, lambda edge: 0)


def about(graph: IntegerGraph) -> dict[str, object]:
    """Return what the manifest says about running the model."""
    return {
        "engine": "the qonnx package and compilers that read QONNX; ONNX Runtime with graph optimisation off",
        "tensors": "float32 tensors of whole numbers; Quant of scale 1 states the width of each",
        "weights": "at their widths, by Quant; stored as float32",
    }


def quant_range(lo: int, hi: int) -> tuple[bool, bool, int]:
    """Return (signed, narrow, bits) of the smallest Quant whose range holds lo...hi."""
    if lo >= 0:
        return False, False, max(1, int(hi).bit_length())
    bits = max(2, 1 + max(int(hi).bit_length(), int(-lo - 1).bit_length()))  # a signed Quant of 1 bit means -1, 1
    return True, lo > -(1 << (bits - 1)), bits


def limits_of(signed: bool, narrow: bool, bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code of a Quant."""
    if signed:
        return int(narrow) - (1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1 - int(narrow)


def quant_function() -> "onnx.FunctionProto":
    """Return Quant in standard operators: `(round(clip(x / scale + zero, lowest, highest)) - zero) * scale`."""
    from onnx import AttributeProto, helper

    nodes: list[onnx.NodeProto] = []

    def op(kind: str, inputs: list[str], output: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def number(name: str, value: int | None = None) -> str:
        if value is not None:
            return op("Constant", [], name, value_int=value)
        nodes.append(helper.make_node("Constant", [], [name]))
        nodes[-1].attribute.append(AttributeProto(name="value_int", type=AttributeProto.INT, ref_attr_name=name))
        return name

    def power(exponent: str, name: str) -> str:
        wide = op("Cast", [exponent], f"{name}_exponent", to=UINT64)
        return op("Cast", [op("BitShift", ["unit", wide], f"{name}_bits", direction="LEFT")], name, to=7)

    signed, narrow, one = number("signed"), number("narrow"), number("one", 1)
    op("Cast", [one], "unit", to=UINT64)
    width = op("Cast", ["bitwidth"], "width", to=7)
    top = power(op("Sub", [width, signed], "exponent"), "top")
    half = power(op("Sub", [width, one], "exponent_half"), "half")
    unsigned = op("Sub", [one, signed], "unsigned")
    op("Sub", [op("Sub", [top, one], "largest"), op("Mul", [narrow, unsigned], "off")], "high")
    op("Mul", [op("Sub", [narrow, half], "lowest"), signed], "low")
    op("Add", [op("Div", ["x", "scale"], "units"), "zeropt"], "moved")
    ends = [op("Cast", [name], f"{name}_float", to=FLOAT) for name in ("low", "high")]
    op("Round", [op("Clip", ["moved", *ends], "clipped")], "codes")
    op("Mul", [op("Sub", ["codes", "zeropt"], "back"), "scale"], "y")
    inputs, attributes = ["x", "scale", "zeropt", "bitwidth"], ["signed", "narrow", "rounding_mode"]
    imports = [helper.make_opsetid("", VERSION[0])]
    return helper.make_function(DOMAIN, "Quant", inputs, ["y"], nodes, imports, attributes)


@dataclass(frozen=True)
class _Qonnx:
    """One translation: the graph, and the model written so far."""

    graph: IntegerGraph
    w: Writer

    def image(self) -> None:
        self.w.node("Cast", [INPUT], f"{INPUT}:float", to=FLOAT)
        self.w.node("Sub", [f"{INPUT}:float", self.w.const(np.float32(INPUT_ZERO))], f"{INPUT}:centred")
        self._quant(f"{INPUT}:centred", codes_of(INPUT), (-128, 127))

    def translate(self, node: Node) -> None:
        match node:
            case Conv() | Linear():
                self._layer(node)
            case Add():
                self._add(node)
            case Mul():
                product = f"{node.name}:product"
                self.w.node("Mul", [codes_of(node.a), codes_of(node.b)], product)
                rq = node.requant
                self._land(node.name, self._times(product, real(rq.m[0], rq.n)), (rq.lo, rq.hi))
            case Rescale():
                self._rescale(node)
            case Table():
                self._look_up(node)
            case Codebook():
                self._codebook(node)
            case PlaneSum():
                axes, total = self.w.const(np.array([2, 3], np.int64)), f"{node.name}:sum"
                self.w.node("ReduceSum", [codes_of(node.input), axes], total, keepdims=0)
                self.w.node("Cast", [total], self.w.name(node.name), to=INT32)
            case Move():
                given, source = self.graph.edges[node.input].shape, codes_of(node.input)
                write_move(self.w, node, source, node.name, given=given, zero=np.float32(0))
            case AvgPool():
                self._average(node)
            case MaxPool():
                attributes = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}
                self.w.node("MaxPool", [codes_of(node.input)], node.name, **attributes)
            case Concat():
                self.w.node("Concat", [codes_of(name) for name in node.operands], node.name, axis=1)
            case Flatten():
                self.w.node("Flatten", [codes_of(node.input)], node.name, axis=1)

    def _layer(self, node: Conv | Linear) -> None:
        edge, rq, acc = self.graph.edges[node.input], node.requant, f"{node.name}:acc"
        axes = (-1, 1, 1) if isinstance(node, Conv) else (-1,)
        whole = reach(node, edge).max() <= FLOAT32_EXACT
        if whole and node.bias.any():
            self._biased(node, self._product(node, node.weight, f"{acc}:0"), axes)
        elif whole:
            self._product(node, node.weight, acc)
        else:
            write_pieces(self.w, node, edge.reach, acc, lambda part, name: self._product(node, part, name))
        if rq is None:
            self.w.node("Cast", [acc], self.w.name(node.name), to=INT32)
            return
        source = acc
        if not whole:
            self.w.node("Cast", [acc], f"{acc}:float", to=FLOAT)
            source = f"{acc}:float"
        m = rq.m[:1] if (rq.m == rq.m[0]).all() else rq.m
        self._land(node.name, self._times(source, real(m.reshape(axes), rq.n)), (rq.lo, rq.hi))

    def _codebook(self, node: Codebook) -> None:
        check_float(node, self.graph.edges[node.input])
        scores = node.scores
        self._biased(scores, self._product(scores, scores.weight, f"{node.name}:acc:0"), (-1, 1, 1))
        write_argmax(self.w, node)
        write_words(self.w, node, f"{node.name}:words", zero=0, kind=np.float32)
        edge = self.graph.edges[node.name]
        self._quant(f"{node.name}:words", node.name, (edge.lo, edge.hi))

    def drawn(self) -> None:
        """Write the output of a network that draws."""
        name = self.graph.output
        self.w.node("Add", [name, self.w.const(np.float32(INPUT_ZERO))], f"{name}:pixels")
        self.w.node("Cast", [f"{name}:pixels"], output_name(self.graph), to=UINT8)

    def _product(self, node: Conv | Linear, weight: np.ndarray, out: str) -> str:
        values = (weight if isinstance(node, Conv) else weight.T).astype(np.float32)
        narrow = int(weight.min(initial=0)) > -(1 << (node.weight_bits - 1))
        quantized = f"{out}:weight"
        self._quant_node(self.w.const(np.ascontiguousarray(values)), quantized, (True, narrow, node.weight_bits))
        if isinstance(node, Linear):
            self.w.node("MatMul", [codes_of(node.input), quantized], out)
            return out
        geometry = {"strides": node.stride, "pads": node.padding, "dilations": node.dilation, "group": node.groups}
        self.w.node("Conv", [codes_of(node.input), quantized], out, kernel_shape=weight.shape[2:], **geometry)
        return out

    def _biased(self, node: Conv | Linear, product: str, axes: tuple[int, ...]) -> None:
        bias = node.bias.reshape(axes).astype(np.float32)
        limits = quant_range(min(-1, int(node.bias.min())), int(node.bias.max()))
        self._quant_node(self.w.const(bias), f"{node.name}:bias", limits)
        self.w.node("Add", [product, f"{node.name}:bias"], f"{node.name}:acc")

    def _add(self, node: Add) -> None:
        parts = [
            self._times(codes_of(name), real(m, node.n), f"{node.name}:{side}")
            for side, (name, m) in enumerate(((node.a, node.m_a), (node.b, node.m_b)))
        ]
        self.w.node("Add", parts, f"{node.name}:sum")
        self._land(node.name, f"{node.name}:sum", (node.lo, node.hi))

    def _rescale(self, node: Rescale) -> None:
        edge, source = self.graph.edges[node.input], codes_of(node.input)
        codes = np.arange(edge.lo, edge.hi + 1, dtype=np.int32)
        exact = half_even_ratio(codes, node.num, node.den)
        scale = float_scale(codes, (0, 0), (node.num, node.den), exact)
        if scale is None:  # a tie that no float32 ratio hits: two operations that do
            times = self._times(source, np.float32(node.num), f"{node.name}:times")
            self.w.node("Div", [times, self.w.const(np.float32(node.den))], f"{node.name}:ratio")
            source = f"{node.name}:ratio"
        else:
            source = self._times(source, scale, f"{node.name}:ratio")
        self._land(node.name, source, (node.lo, node.hi))

    def _look_up(self, node: Table) -> None:
        self.w.node("Sub", [codes_of(node.input), self.w.const(np.float32(node.lo))], f"{node.name}:from")
        self.w.node("Cast", [f"{node.name}:from"], f"{node.name}:index", to=INT32)
        table = self.w.const(node.table.astype(np.float32))
        self.w.node("Gather", [table, f"{node.name}:index"], f"{node.name}:found")
        edge = self.graph.edges[node.name]
        self._quant(f"{node.name}:found", node.name, (edge.lo, edge.hi))

    def _average(self, node: AvgPool) -> None:
        edge, rq, acc = self.graph.edges[node.input], node.requant, f"{node.name}:acc"
        if node.kernel is None:
            axes = self.w.const(np.array([2, 3], np.int64))
            self.w.node("ReduceSum", [codes_of(node.input), axes], acc, keepdims=1)
        else:
            ones = self.w.const(np.ones((edge.shape[0], 1, *node.kernel), np.float32))
            self._quant_node(ones, f"{acc}:weight", (False, False, 1))
            attributes = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}
            self.w.node("Conv", [codes_of(node.input), f"{acc}:weight"], acc, group=edge.shape[0], **attributes)
        self._land(node.name, self._times(acc, real(rq.m.reshape(-1, 1, 1), rq.n)), (rq.lo, rq.hi))

    def _times(self, tensor: str, factor: np.ndarray | np.floating, out: str = "") -> str:
        if (np.asarray(factor) == 1).all():
            return tensor
        out = out or f"{tensor}:scaled"
        self.w.node("Mul", [tensor, self.w.const(factor)], out)
        return out

    def _land(self, name: str, source: str, limits: tuple[int, int]) -> None:
        """Write `clamp(half_even(source), lo, hi)`."""
        lo, hi = limits
        if limits_of(*quant_range(lo, hi)) != limits:
            ends = [self.w.const(np.float32(limit)) for limit in limits]
            self.w.node("Clip", [source, *ends], f"{name}:clip")
            source = f"{name}:clip"
        elif lo == 0:
            self.w.node("Relu", [source], f"{name}:relu")
            source = f"{name}:relu"
        self._quant(source, name, (lo, hi))

    def _quant(self, source: str, out: str, limits: tuple[int, int]) -> None:
        self._quant_node(source, out, quant_range(*limits))

    def _quant_node(self, source: str, out: str, kind: tuple[bool, bool, int]) -> None:
        signed, narrow, bits = kind
        inputs = [source, self.w.const(ONE), self.w.const(ZERO), self.w.const(np.float32(bits))]
        attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
        self.w.node("Quant", inputs, out, domain=DOMAIN, **attributes)


def codes_of(edge: str) -> str:
    """Return the float32 tensor of an edge's codes."""
    return f"{INPUT}:codes" if edge == INPUT else edge
