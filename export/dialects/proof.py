"""Integers only: the network in standard ONNX operators on uint8, int8 and int32, with not one float in the file.

It is slow, and for auditors, hardware compilers and any runtime that claims to know ONNX: whatever executes it
correctly computes the integer graph, because each operator's integer result is fixed by the ONNX specification. No
number needs more than 32 bits. An edge travels as uint8 `code + zero`, as in `ort.py`.

    accumulator   ConvInteger or MatMulInteger, and an int32 Add of the bias
    clamp         Max and Min with the smallest accumulator that saturates, only where one can be reached
    multiply      Mul by m
    limit         Clip x = m * accumulator to lo * den ... hi * den, whose ends are the codes lo and hi
    shift         division by den = 2^n, half to even; in general by any `den`, for Rescale has ratios such as 31/127

Half to even with non-negative integers alone (ONNX's Div truncates): with an even K >= -lo, so top = x + K * den >= 0,

    half_even(x / den) + K = floor((top + den/2 - 1 + (floor(top / den) mod 2)) / den)     for even den
                           = floor((top + (den - 1)/2) / den)                              for odd den (no ties)

Behind the limit nothing passes (hi + K + 1/2) * den, which is at most 2^24 where n is `shift_for`'s. So engines that
compute int32 operators in float32 (OpenVINO's Div on a CPU does) still get every code right.

Averages are ConvInteger with weights 1: its zero point makes padding count as code 0. ArgMax gives int64 by its
definition: the numbers of codewords are the only tensors of that type.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import InputError

from ..graph import (
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
from .moves import write_move
from .ort import check, observe, write_codebook, write_image, write_plane_sum, write_table, zero_point
from .writer import Writer, writer_for

if TYPE_CHECKING:
    import onnx

INT32_MAX = (1 << 31) - 1
INT32, UINT8 = 6, 2  # of onnx.TensorProto

__all__ = ["about", "build", "observe"]


def build(graph: IntegerGraph) -> "onnx.ModelProto":
    """Translate the integer graph to ONNX.

    Raises:
        InputError: Some edge's codes do not fit into a byte, some sum into int32, or the last node gives no logits.
    """
    check(graph)
    writer = _Proof(graph, writer_for(graph))
    for node in graph.nodes:
        writer.translate(node)
    write_image(writer.w, graph)
    return writer.w.finish(graph)


@dataclass(frozen=True)
class _Sum:
    """An int32 tensor, and what its numbers mean.

    Attributes:
        tensor: Name in the model.
        plus: Constant to add to it.
        bound: Largest absolute value after that.
    """

    tensor: str
    plus: int
    bound: int


@dataclass(frozen=True)
class _Proof:
    """One translation: the graph, and the model written so far."""

    graph: IntegerGraph
    w: Writer

    def translate(self, node: Node) -> None:
        match node:
            case Conv():
                attributes = {"strides": node.stride, "pads": node.padding, "dilations": node.dilation}
                weight = self.w.const(node.weight)
                self._layer(node, "ConvInteger", weight, group=node.groups, **attributes)
            case Linear():
                self._layer(node, "MatMulInteger", self.w.const(np.ascontiguousarray(node.weight.T)))
            case AvgPool():
                self._average(node)
            case Add():
                self._add(node)
            case Mul():
                self._multiply(node)
            case Rescale():
                self._rescale(node)
            case Table():
                edge, out = (self.graph.edges[name] for name in (node.input, node.name))
                write_table(self.w, (self.w.name(node.input), node.name), node.table, edge, out)
            case Codebook():
                write_codebook(self.w, node, self.graph.edges[node.input], self.graph.edges[node.name])
            case PlaneSum():
                write_plane_sum(self.w, node, self.graph)
            case Move():
                zero = np.uint8(zero_point(self.graph.edges[node.name]))
                given = self.graph.edges[node.input].shape
                write_move(self.w, node, self._moved(node.input, node.name), node.name, given=given, zero=zero)
            case MaxPool():
                attributes = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}
                self.w.node("MaxPool", [self._moved(node.input, node.name)], node.name, **attributes)
            case Concat():
                moved = {name: self._moved(name, node.name) for name in dict.fromkeys(node.operands)}
                self.w.node("Concat", [moved[name] for name in node.operands], node.name, axis=1)
            case Flatten():
                self.w.node("Flatten", [self._moved(node.input, node.name)], node.name, axis=1)

    def _layer(self, node: Conv | Linear, op: str, weight: str, **attributes) -> None:
        acc = self.w.name(node.name) if node.requant is None else f"{node.name}:acc"
        product = f"{acc}:product" if node.bias.any() else acc
        zero = self.w.const(np.uint8(zero_point(self.graph.edges[node.input])))
        self.w.node(op, [self.w.name(node.input), weight, zero], product, **attributes)
        axes = (-1, 1, 1) if isinstance(node, Conv) else (-1,)
        if node.bias.any():
            self.w.node("Add", [product, self.w.const(node.bias.reshape(axes))], acc)
        rq = node.requant
        if rq is not None:
            bounds = reach(node, self.graph.edges[node.input])
            total = self._times(acc, rq.m.reshape(axes), (1 << rq.n, rq.lo, rq.hi), bounds.reshape(axes))
            self._land(node.name, total, 1 << rq.n, (rq.lo, rq.hi))

    def _average(self, node: AvgPool) -> None:
        edge, rq = self.graph.edges[node.input], node.requant
        channels, *plane = edge.shape
        window = node.kernel or tuple(plane)
        zero, ones = self.w.const(np.uint8(zero_point(edge))), self.w.const(np.ones((channels, 1, *window), np.int8))
        attributes = {"strides": node.stride, "pads": node.padding} if node.kernel else {}
        acc = f"{node.name}:acc"
        self.w.node("ConvInteger", [self.w.name(node.input), ones, zero], acc, group=channels, **attributes)
        bound = np.full((len(rq.m), 1, 1), edge.reach * window[0] * window[1])
        total = self._times(acc, rq.m.reshape(-1, 1, 1), (1 << rq.n, rq.lo, rq.hi), bound)
        self._land(node.name, total, 1 << rq.n, (rq.lo, rq.hi))

    def _add(self, node: Add) -> None:
        parts, plus, bound = [], 0, 0
        for side, (name, m) in enumerate(((node.a, node.m_a), (node.b, node.m_b))):
            edge, part = self.graph.edges[name], f"{node.name}:{side}"
            self.w.node("Cast", [self.w.name(name)], f"{part}i", to=INT32)
            self.w.node("Mul", [f"{part}i", self.w.const(np.int32(m))], part)
            parts.append(part)
            plus -= zero_point(edge) * m
            bound += edge.reach * m
        self.w.node("Add", parts, f"{node.name}:sum")
        self._land(node.name, _Sum(f"{node.name}:sum", plus, bound), 1 << node.n, (node.lo, node.hi))

    def _multiply(self, node: Mul) -> None:
        sides = [f"{node.name}:{side}" for side in (0, 1)]
        for name, side in zip(node.inputs, sides, strict=True):
            self._integers(name, side)
        self.w.node("Mul", sides, f"{node.name}:product")
        rq, (a, b) = node.requant, (self.graph.edges[name].reach for name in node.inputs)
        total = self._times(f"{node.name}:product", rq.m, (1 << rq.n, rq.lo, rq.hi), np.array(a * b))
        self._land(node.name, total, 1 << rq.n, (rq.lo, rq.hi))

    def _rescale(self, node: Rescale) -> None:
        edge, divisor = self.graph.edges[node.input], int(np.gcd(node.num, node.den))
        num, den = node.num // divisor, node.den // divisor
        codes = f"{node.name}:codes"
        self._integers(node.input, codes)
        total = self._times(codes, np.array(num), (den, node.lo, node.hi), np.array(edge.reach))
        self._land(node.name, total, den, (node.lo, node.hi))

    def _integers(self, edge: str, out: str) -> None:
        """Write the int32 codes of an edge."""
        zero = zero_point(self.graph.edges[edge])
        raw = f"{out}:raw" if zero else out
        self.w.node("Cast", [self.w.name(edge)], raw, to=INT32)
        if zero:
            self.w.node("Sub", [raw, self.w.const(np.int32(zero))], out)

    def _times(self, acc: str, m: np.ndarray, goal: tuple[int, int, int], bound: np.ndarray) -> _Sum:
        """Clamp |acc| <= bound to what does not saturate `acc * m / den` outside lo...hi, and multiply."""
        den, lo, hi = goal
        twice = 2 * max(hi, -lo) + 1  # see `multiplier.saturation`
        limit = -((-twice * den) // (2 * m.astype(np.int64)))
        if (bound > limit).any():
            limits = np.minimum(limit, INT32_MAX).astype(np.int32)
            self.w.node("Min", [acc, self.w.const(limits)], f"{acc}:below")
            self.w.node("Max", [f"{acc}:below", self.w.const(-limits)], f"{acc}:within")
            acc, bound = f"{acc}:within", np.minimum(bound, limit)
        if (m != 1).any():
            self.w.node("Mul", [acc, self.w.const(m.astype(np.int32))], f"{acc}:times")
            acc = f"{acc}:times"
        return _Sum(acc, 0, int((bound * m).max()))

    def _land(self, name: str, total: _Sum, den: int, limits: tuple[int, int]) -> None:
        """Write `clamp(half_even(total / den), lo, hi)` as the uint8 tensor of an edge."""
        zero, (lo, hi) = zero_point(self.graph.edges[name]), limits
        even = max(0, 2 * -(lo // 2))  # K of the module's docstring
        largest = max(total.bound, (hi + even + 1) * den) + abs(total.plus)
        if largest > INT32_MAX:
            raise InputError(
                f"expected a sum at layer {name!r} that fits into int32, got up to {largest}; "
                "lower the network with short multipliers"
            )
        ends = [self.w.const(np.int32(limit * den - total.plus)) for limit in limits]
        self.w.node("Clip", [total.tensor, *ends], f"{name}:limited")
        top = self._plus(f"{name}:limited", total.plus + even * den, f"{name}:top")
        if den % 2:
            rounded = self._plus(top, (den - 1) // 2, f"{name}:half")
        else:
            self.w.node("Div", [top, self.w.const(np.int32(den))], f"{name}:floor")
            self.w.node("Mod", [f"{name}:floor", self.w.const(np.int32(2))], f"{name}:odd")
            self.w.node("Add", [top, f"{name}:odd"], f"{name}:tie")
            rounded = self._plus(f"{name}:tie", den // 2 - 1, f"{name}:half")
        if den > 1:
            self.w.node("Div", [rounded, self.w.const(np.int32(den))], f"{name}:quotient")
            rounded = f"{name}:quotient"
        self.w.node("Cast", [self._plus(rounded, zero - even, f"{name}:code")], name, to=UINT8)

    def _plus(self, tensor: str, value: int, out: str) -> str:
        if value == 0:
            return tensor
        self.w.node("Add", [tensor, self.w.const(np.int32(value))], out)
        return out

    def _moved(self, edge: str, onto: str) -> str:
        """Return an edge's tensor with the zero point of another edge."""
        source, target = (zero_point(self.graph.edges[name]) for name in (edge, onto))
        if source == target:
            return self.w.name(edge)
        moved = f"{edge}:for:{onto}"
        self.w.node("Cast", [self.w.name(edge)], f"{moved}:i", to=INT32)
        self.w.node("Add", [f"{moved}:i", self.w.const(np.int32(target - source))], f"{moved}:moved")
        self.w.node("Cast", [f"{moved}:moved"], moved, to=UINT8)
        return moved


def about(graph: IntegerGraph) -> dict[str, object]:
    """Return what the manifest says about running the model."""
    return {
        "engine": "any that knows ONNX's integer operators; slow in ONNX Runtime, which has no fused kernels for them",
        "tensors": "uint8, int8 and int32 (int64 for the numbers of codewords); no float anywhere",
    }
