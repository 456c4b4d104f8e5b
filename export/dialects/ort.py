"""ONNX Runtime: quantized operators (QLinearConv and friends) on uint8, so that nothing is left to fusion.

An edge of codes `lo...hi` travels as uint8 `code + zero`, where zero is 0 after a ReLU, 128 for the image, and in
general -lo rounded up to an even number: QLinearAdd rounds half to even after adding it, and an odd one would turn
ties around. So saturation at 0 is nearly always the floor, and a ceiling below 255 costs one uint8 `Clip` (left out
where no input can reach it). `Clip` with the ceiling alone is 2 % of a small network cheaper than `Min`, and its
limits are scalars that the engine's layout pass leaves alone.

ONNX Runtime requantizes as `half_even(float32(acc) * float32(x_scale * w_scale / y_scale))`. With both tensor scales 1
and w_scale[c] = m_c * 2^-n its factor is exactly ours, and `multiplier.py` shows that the products are exact:

    Conv        QLinearConv, int32 bias                  Linear     QGemm
    logits      MatMulInteger or ConvInteger, and an int32 Add
    Codebook    ConvInteger, Add, ArgMax, Gather
    Add         QLinearAdd, scales m_a/2^n, m_b/2^n, 1   Rescale    QLinearAdd of the number 0, scale num/den
    Mul         QLinearMul, scales m/2^n, 1, 1           Table      Cast and Gather
    AvgPool     QLinearGlobalAveragePool with x_scale = M * area (the kernel divides it by the area), or, for windows,
                a depthwise QLinearConv with weights 1

num/den is no short float32: all codes of a Rescale are tried here, and where one would differ a table is written out
(Cast and Gather). Adding 0 costs a third of the 256-entry table inside QLinearLeakyRelu, which is not vectorised.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import InputError

from ..graph import (
    Add,
    AvgPool,
    Codebook,
    Concat,
    Conv,
    Edge,
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
from ..reference import half_even_ratio
from .codebook import write_argmax, write_scores, write_words
from .moves import write_move
from .writer import MICROSOFT, Writer, check_ends, observed, output_name, writer_for

if TYPE_CHECKING:
    import onnx

ONE = np.float32(1)


def zero_point(edge: Edge) -> int:
    """Return the uint8 that stands for code 0 on an edge: an even number, for QLinearAdd rounds after it is added."""
    return max(0, -edge.lo + edge.lo % 2)


def build(graph: IntegerGraph) -> "onnx.ModelProto":
    """Translate the integer graph to ONNX.

    Raises:
        InputError: Some edge's codes do not fit into a byte, or the last node does not give int32 logits.
    """
    check(graph)
    writer = _Ort(graph, writer_for(graph))
    writer.w.add_weights([node for node in graph.nodes if isinstance(node, Conv | Linear)])
    for node in graph.nodes:
        writer.translate(node)
    write_image(writer.w, graph)
    return writer.w.finish(graph)


def check(graph: IntegerGraph) -> None:
    """Check that every edge but the logits travels in bytes.

    Raises:
        InputError: It does not.
    """
    check_ends(graph)
    for name, edge in graph.edges.items():
        if (name != graph.output or graph.draws) and edge.hi + zero_point(edge) > 255:
            raise InputError(f"expected codes that fit into a byte, got {edge.lo}..{edge.hi} on {name!r}; narrow them")


@dataclass(frozen=True)
class _Ort:
    """One translation: the graph, and the model written so far."""

    graph: IntegerGraph
    w: Writer

    def translate(self, node: Node) -> None:
        match node:
            case Conv():
                self._conv(node)
            case Linear():
                self._linear(node)
            case Add():
                self._add(node)
            case Mul():
                self._multiply(node)
            case Rescale():
                self._rescale(node)
            case Table():
                self._look_up(node.name, node.input, node.table)
            case Codebook():
                out = self.graph.edges[node.name]
                write_codebook(self.w, node, self.graph.edges[node.input], out)
            case PlaneSum():
                write_plane_sum(self.w, node, self.graph)
            case Move():
                zero = np.uint8(zero_point(self.graph.edges[node.name]))
                given = self.graph.edges[node.input].shape
                write_move(self.w, node, self._moved(node.input, node.name), node.name, given=given, zero=zero)
            case AvgPool():
                self._average(node)
            case MaxPool():
                attributes = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}
                self.w.node("MaxPool", [self._moved(node.input, node.name)], node.name, **attributes)
            case Concat():
                moved = {name: self._moved(name, node.name) for name in dict.fromkeys(node.operands)}
                self.w.node("Concat", [moved[name] for name in node.operands], node.name, axis=1)
            case Flatten():
                self.w.node("Flatten", [self._moved(node.input, node.name)], node.name, axis=1)

    def _conv(self, node: Conv) -> None:
        edge, rq = self.graph.edges[node.input], node.requant
        given = {"strides": node.stride, "pads": node.padding, "dilations": node.dilation, "group": node.groups}
        default = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1}
        attributes = {key: value for key, value in given.items() if value != default[key]}
        if rq is None:
            self._sums(node, "ConvInteger", **attributes)
            return
        top = at_most(int(np.max(reach(node, edge) * rq.m.astype(np.int64))), rq.n)
        inputs = [*self._tensor(node.input), self.w.weight(node.name), *self._scale(rq.m, rq.n), *self._out(node.name)]
        self._emit(node, (rq.lo, rq.hi, top), "QLinearConv", [*inputs, self.w.const(node.bias)], **attributes)

    def _linear(self, node: Linear) -> None:
        edge, rq, weight = self.graph.edges[node.input], node.requant, self.w.weight(node.name)
        if rq is None:
            self._sums(node, "MatMulInteger")
            return
        name, one, zero = self._tensor(node.input)
        top = at_most(int(np.max(reach(node, edge) * rq.m.astype(np.int64))), rq.n)
        scale = real(rq.m, rq.n)
        factors = [self.w.const(scale), self.w.const(np.zeros(scale.shape, np.int8))]  # QGemm wants equal shapes
        inputs = [name, one, zero, weight, *factors, self.w.const(node.bias), *self._out(node.name)]
        self._emit(node, (rq.lo, rq.hi, top), "QGemm", inputs, domain=MICROSOFT)

    def _sums(self, node: Conv | Linear, product: str, **attributes: Any) -> None:
        """Write a layer's int32 sums: an integer product, and the bias if there is one."""
        name, _, zero = self._tensor(node.input)
        out = self.w.name(node.name)
        bare = f"{out}:product" if node.bias.any() else out
        axes = (-1, 1, 1) if isinstance(node, Conv) else (-1,)
        self.w.node(product, [name, self.w.weight(node.name), zero], bare, **attributes)
        if node.bias.any():
            self.w.node("Add", [bare, self.w.const(node.bias.reshape(axes))], out)

    def _add(self, node: Add) -> None:
        a, b = self.graph.edges[node.a], self.graph.edges[node.b]
        scale_a, scale_b = (self.w.const(real(m, node.n)) for m in (node.m_a, node.m_b))
        (name_a, _, zero_a), (name_b, _, zero_b) = self._tensor(node.a), self._tensor(node.b)
        inputs = [name_a, scale_a, zero_a, name_b, scale_b, zero_b, *self._out(node.name)]
        top = at_most(a.hi * node.m_a + b.hi * node.m_b, node.n)
        self._emit(node, (node.lo, node.hi, top), "QLinearAdd", inputs, domain=MICROSOFT)

    def _multiply(self, node: Mul) -> None:
        (name_a, _, zero_a), (name_b, one, zero_b) = self._tensor(node.a), self._tensor(node.b)
        rq, (a, b) = node.requant, (self.graph.edges[name] for name in node.inputs)
        inputs = [name_a, self.w.const(real(rq.m[0], rq.n)), zero_a, name_b, one, zero_b, *self._out(node.name)]
        top = at_most(max(a.lo * b.lo, a.hi * b.hi) * int(rq.m[0]), rq.n)
        self._emit(node, (rq.lo, rq.hi, top), "QLinearMul", inputs, domain=MICROSOFT)

    def _look_up(self, name: str, source: str, table: np.ndarray) -> None:
        """Write a table of all codes of an edge, from the smallest on."""
        write_table(self.w, (self.w.name(source), name), table, self.graph.edges[source], self.graph.edges[name])

    def _rescale(self, node: Rescale) -> None:
        edge, out = self.graph.edges[node.input], self.graph.edges[node.name]
        if node.num == node.den and zero_point(edge) == zero_point(out):
            self._clamp(node.name, self.w.name(node.input), (node.lo, node.hi), edge)
            return
        codes = np.arange(edge.lo, edge.hi + 1, dtype=np.int32)
        exact = half_even_ratio(codes, node.num, node.den)
        scale = float_scale(codes, (zero_point(edge), zero_point(out)), (node.num, node.den), exact)
        if scale is None:
            self._look_up(node.name, node.input, np.clip(exact, node.lo, node.hi))
        else:
            inputs = self._plus_zero(node.input, scale, node.name)
            self._emit(node, (node.lo, node.hi, int(exact.max())), "QLinearAdd", inputs, domain=MICROSOFT)

    def _plus_zero(self, edge: str, scale: np.float32, onto: str) -> list[str]:
        """Return the inputs of a QLinearAdd of an edge and 0: a vectorised change of scale and zero point."""
        name, _, zero = self._tensor(edge)
        number = self.w.const(np.zeros(1, np.uint8))  # its own tensor: ONNX Runtime's layout pass rewrites it
        number_scale, number_zero = self.w.const(ONE), self.w.const(np.uint8(0))
        return [name, self.w.const(scale), zero, number, number_scale, number_zero, *self._out(onto)]

    def _average(self, node: AvgPool) -> None:
        edge, rq = self.graph.edges[node.input], node.requant
        channels, height, width = edge.shape
        window = node.kernel or (height, width)
        area, m = window[0] * window[1], int(rq.m.max())
        top = at_most(edge.reach * area * m, rq.n)
        name, one, zero = self._tensor(node.input)
        if node.kernel is None and len(rq.m) == 1 and m * area < 1 << 24:
            readers = [reader for reader in self.graph.nodes if node.name in reader.inputs]
            last = int(all(isinstance(reader, Flatten) for reader in readers))  # (1, 1, c) and (c, 1, 1) flatten alike
            if last:  # spares the engine, which works on NHWC, a transposition back
                self.w.node("Transpose", [name], f"{node.name}:nhwc", perm=(0, 2, 3, 1))
                name = f"{node.name}:nhwc"
            inputs = [name, self.w.const(real(m * area, rq.n)), zero, *self._out(node.name)]
            average = "QLinearGlobalAveragePool"
            self._emit(node, (rq.lo, rq.hi, top), average, inputs, domain=MICROSOFT, channels_last=last)
            return
        attributes = {"strides": node.stride, "pads": node.padding, "group": channels}
        ones = self.w.const(np.ones((channels, 1, *window), np.int8))
        inputs = [name, one, zero, ones, *self._scale(rq.m, rq.n), *self._out(node.name)]
        self._emit(node, (rq.lo, rq.hi, top), "QLinearConv", inputs, **attributes)

    def _tensor(self, edge: str) -> tuple[str, str, str]:
        """Return an edge's tensor, its scale 1 and its zero point."""
        return self.w.name(edge), self.w.const(ONE), self.w.const(np.uint8(zero_point(self.graph.edges[edge])))

    def _out(self, edge: str) -> tuple[str, str]:
        return self._tensor(edge)[1:]

    def _scale(self, m: np.ndarray, n: int) -> tuple[str, str]:
        """Return a weight's scale and its zero point, one number for all channels where they agree."""
        return self.w.const(real(m[0] if (m == m[0]).all() else m, n)), self.w.const(np.int8(0))

    def _moved(self, edge: str, onto: str) -> str:
        """Return an edge's tensor with the zero point of another edge."""
        source, target = (self.graph.edges[name] for name in (edge, onto))
        if zero_point(source) == zero_point(target):
            return self.w.name(edge)
        moved = f"{edge}:for:{onto}"
        self.w.node("QLinearAdd", self._plus_zero(edge, ONE, onto), moved, domain=MICROSOFT)
        return moved

    def _emit(self, node: Node, limits: tuple[int, int, int], op: str, inputs: list[str], **attributes: Any) -> None:
        """Write an operator and the clamp to lo...hi after it; no output is above `top`."""
        lo, hi, top = limits
        zero = zero_point(self.graph.edges[node.name])
        natural = Edge(-zero, min(top, 255 - zero), 1.0, ())
        raw = node.name if lo <= natural.lo and hi >= natural.hi else f"{node.name}:raw"
        self.w.node(op, inputs, raw, **attributes)
        self._clamp(node.name, raw, (lo, hi), natural)

    def _clamp(self, name: str, source: str, limits: tuple[int, int], edge: Edge) -> None:
        """Write the uint8 Clip that keeps codes of `edge` within lo...hi, with the limits that are needed."""
        zero = zero_point(self.graph.edges[name])
        low = self.w.const(np.uint8(limits[0] + zero)) if limits[0] > edge.lo else ""
        high = self.w.const(np.uint8(limits[1] + zero)) if limits[1] < edge.hi else ""
        if low or high:
            self.w.node("Clip", [source, low, high] if high else [source, low], name)
        elif source != name:
            self.w.node("Identity", [source], name)


def write_table(w: Writer, ends: tuple[str, str], table: np.ndarray, edge: Edge, out: Edge) -> None:
    """Write the look-up of uint8 codes of one edge in a table of those of another."""
    every = np.zeros(256, np.uint8)
    every[edge.lo + zero_point(edge) : edge.hi + zero_point(edge) + 1] = table + zero_point(out)
    w.node("Cast", [ends[0]], f"{ends[1]}:index", to=6)  # TensorProto.INT32
    w.node("Gather", [w.const(every), f"{ends[1]}:index"], ends[1])


def write_codebook(w: Writer, node: Codebook, edge: Edge, out: Edge) -> None:
    """Write the nearest codewords of uint8 codes, in integers."""
    write_scores(w, node, w.name(node.input), zero_point(edge))
    write_argmax(w, node)
    write_words(w, node, node.name, zero=zero_point(out), kind=np.uint8)


def write_plane_sum(w: Writer, node: PlaneSum, graph: IntegerGraph) -> None:
    """Write sums over the plane of uint8 codes: a convolution by ones, whose zero point makes them sums of codes."""
    edge = graph.edges[node.input]
    channels, *plane = edge.shape
    ones, zero = w.const(np.ones((channels, 1, *plane), np.int8)), w.const(np.uint8(zero_point(edge)))
    w.node("ConvInteger", [w.name(node.input), ones, zero], f"{node.name}:plane", group=channels)
    w.node("Flatten", [f"{node.name}:plane"], w.name(node.name), axis=1)


def float_scale(
    codes: np.ndarray, zeros: tuple[int, int], ratio: tuple[int, int], exact: np.ndarray
) -> np.float32 | None:
    """Return a float32 near num / den with which QLinearAdd gives the exact code for all codes, or None.

    The kernel computes rint(scale * x + (zero_out - scale * zero_in)) in float32, with or without a fused
    multiply-add. Both are tried on every byte x, and real arithmetic too: no code may hang on a rounding error.
    """
    middle, (zero_in, zero_out) = np.float32(ratio[0] / ratio[1]), zeros
    raw = (codes + zero_in).astype(np.float32)
    for scale in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))):
        offset = np.float32(zero_out) - scale * np.float32(zero_in)
        fused = (raw.astype(np.float64) * float(scale) + float(offset)).astype(np.float32)
        real = codes * float(scale) + zero_out
        if all(np.array_equal(np.rint(value), exact + zero_out) for value in (fused, raw * scale + offset, real)):
            return scale
    return None


def write_image(w: Writer, graph: IntegerGraph) -> None:
    """Write the output of a network that draws: the bytes of its last edge, which are pixels."""
    if graph.draws:
        w.node("Identity", [graph.output], output_name(graph))


def real(m: int | np.integer | np.ndarray, n: int) -> np.ndarray:
    """Return m * 2^-n, which float32 holds exactly."""
    return np.asarray(np.float32(m) * np.float32(2.0**-n))


def at_most(value: int, n: int) -> int:
    """Return the smallest integer at or above value / 2^n."""
    return -(-value >> n)


def observe(graph: IntegerGraph) -> dict[str, tuple[str, int]]:
    """Return for every node's edge the tensor of the model that carries it and the number that stands for code 0."""
    return observed(graph, zero_point)


def about(graph: IntegerGraph) -> dict[str, object]:
    """Return what the manifest says about running the model."""
    return {"engine": "ONNX Runtime, CPU", "weights": "packed at their widths, unpacked while the model is loaded"}
