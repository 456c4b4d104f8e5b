"""From a trained multi-bit network to the integer graph of one width.

Nothing is decided here: each unit already computes its integers in evaluation mode (`edgeq.quant.fold`), and lowering
writes the same integers down. So the graph and the network's evaluation mode are one function by construction, and the
tests compare them code by code.
"""

from collections.abc import Sequence

import numpy as np
import torch

from edgeq.errors import InputError
from edgeq.quant.bits import FLOAT_BITS, at_bits
from edgeq.quant.codebook import CodebookUnit
from edgeq.quant.joins import AddUnit, AvgPoolUnit, ConcatUnit, MulUnit, PlaneSumUnit
from edgeq.quant.moves import MoveUnit
from edgeq.quant.network import IMAGE, MultiBitNet
from edgeq.quant.tables import TableUnit
from edgeq.quant.units import (
    PIXEL_STEP,
    AbstractUnit,
    DropoutUnit,
    FlattenUnit,
    InputUnit,
    MaxPoolUnit,
    NarrowUnit,
    ReluUnit,
    Value,
)
from edgeq.quant.weighted import ConvUnit, LinearUnit

from .graph import (
    INPUT,
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
    gives_sums,
    reach,
)
from .multiplier import FLOAT32_EXACT, Requant, shift_for

INT32_MAX = 2**31 - 1


def lower(model: MultiBitNet, *, bits: int, classes: Sequence[str] = (), name: str = "network") -> IntegerGraph:
    """Return the integer graph of `model` at one of its widths.

    Args:
        model: A multi-bit network, in any mode; it is left as it was.
        bits: The width, below 32.
        classes: Class names, for the artefact.
        name: A name for people.
    """
    if bits == FLOAT_BITS:
        raise InputError(
            "expected a width from 2 to 8 to lower, got 32, which is the float network; choose another width"
        )
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), at_bits(model, bits):
            return _Lowering(model).run(bits, tuple(classes), name)
    finally:
        model.train(was_training)


class _Lowering:
    """Walk the steps once, with an example image for steps and shapes."""

    def __init__(self, model: MultiBitNet) -> None:
        self.model = model
        device = next(model.parameters()).device
        image = torch.zeros(1, *model.image_shape, dtype=torch.uint8, device=device)
        self.values: dict[str, Value] = model.values(image, keep=model.names)
        self.edge_of: dict[str, str] = {}  # step -> edge of the graph (steps without effect share one)
        self.nodes: list[Node] = []
        self.edges: dict[str, Edge] = {INPUT: Edge(-128, 127, PIXEL_STEP, model.image_shape)}

    def run(self, bits: int, classes: tuple[str, ...], name: str) -> IntegerGraph:
        """Return the graph."""
        for step in self.model.steps:
            unit = self.model.units[step.name]
            assert isinstance(unit, AbstractUnit)
            self._lower(step.name, unit, step.inputs)
        if gives_sums(self.nodes[-1]) == self.model.draws:
            raise InputError(f"expected a network that ends in its logits, got {type(self.nodes[-1]).__name__}")
        return IntegerGraph(name, bits, tuple(self.nodes), self.edges, classes)

    def _lower(self, name: str, unit: AbstractUnit, inputs: tuple[str, ...]) -> None:
        if isinstance(unit, InputUnit):
            self.edge_of[name] = INPUT
            return
        if isinstance(unit, DropoutUnit) or (isinstance(unit, NarrowUnit) and unit.idle):
            self.edge_of[name] = self.edge_of[inputs[0]]
            return
        node = self._node(name, unit, inputs)
        if isinstance(node, Concat):
            node = self._align(node, unit, inputs)
        self.nodes.append(node)
        self.edges[name] = self._edge(name, node, unit)
        self.edge_of[name] = name

    def _node(self, name: str, unit: AbstractUnit, inputs: tuple[str, ...]) -> Node:
        source = self.edge_of[inputs[0]]
        x = self.values[inputs[0]]
        match unit:
            case ConvUnit() | LinearUnit():
                return self._layer(name, unit, source, x)
            case AddUnit():
                return self._add(name, unit, inputs)
            case NarrowUnit():
                lo, hi, top = unit.ratio()
                return Rescale(name, source, num=hi, den=top, lo=lo, hi=hi)
            case ReluUnit():
                assert x.step is not None
                return Rescale(name, source, num=1, den=1, lo=0, hi=int(min(self.edges[source].hi, unit.top(x.step))))
            case MaxPoolUnit():
                return MaxPool(name, source, unit.kernel, unit.stride, self._pool_sides(name, unit, x))
            case AvgPoolUnit():
                assert unit.output is not None and x.step is not None
                kernel = unit.kernel or (x.codes.shape[2], x.codes.shape[3])
                requant = _requant(unit.multiplier(x.step, kernel[0] * kernel[1])[None], unit.output.range(self._bits))
                return AvgPool(name, source, unit.kernel, unit.stride, requant, _sides(unit.padding))
            case ConcatUnit():
                return Concat(name, tuple(self.edge_of[n] for n in inputs))
            case FlattenUnit():
                return Flatten(name, source)
            case MoveUnit():
                return Move(name, source, unit.how)
            case TableUnit():
                assert x.step is not None
                edge = self.edges[source]
                table = unit.table(x.step, x.reach)[edge.lo + x.reach : edge.hi + x.reach + 1]
                return Table(name, source, edge.lo, table.numpy().astype(np.int32))
            case MulUnit():
                return self._multiply(name, unit, inputs)
            case CodebookUnit():
                return self._codebook(name, unit, source, x)
            case PlaneSumUnit():
                return PlaneSum(name, source)
        raise AssertionError(f"no lowering for {type(unit).__name__}")

    @property
    def _bits(self) -> int:
        return self.model.width.bits

    def _layer(self, name: str, unit: ConvUnit | LinearUnit, source: str, x: Value) -> Node:
        assert x.step is not None
        folded = unit.folded(x.step)
        weight = folded.weight.cpu().numpy().astype(np.int8)
        bias = folded.bias.cpu().numpy().astype(np.int32)
        requant = None if unit.output is None else _requant(folded.multiplier, unit.output.range(self._bits))
        weight_bits = unit.weight_bits[self._bits]
        if isinstance(unit, LinearUnit):
            node: Conv | Linear = Linear(name, source, weight, bias, requant, weight_bits)
        else:
            node = Conv(
                name,
                source,
                weight,
                bias,
                requant,
                weight_bits,
                stride=_pair(unit.stride),
                padding=_sides(_pair(unit.padding)),
                dilation=_pair(unit.dilation),
                groups=unit.groups,
            )
        self._check_int32(node)
        return node

    def _codebook(self, name: str, unit: CodebookUnit, source: str, x: Value) -> Codebook:
        assert x.step is not None
        weight, bias = unit.scored(x.step)
        node = Codebook(name, source, weight.numpy().astype(np.int8), bias.numpy().astype(np.int32))
        self._check_int32(node.scores)
        return node

    def _check_int32(self, node: Conv | Linear) -> None:
        if int(reach(node, self.edges[node.input]).max()) > INT32_MAX:
            raise InputError(
                f"expected accumulators within int32, got larger ones at layer {node.name!r}; its bias diverged"
            )

    def _add(self, name: str, unit: AddUnit, inputs: tuple[str, ...]) -> Add:
        a, b = (self.values[n] for n in inputs)
        assert a.step is not None and b.step is not None and unit.output is not None
        ma, mb, n = unit.multipliers(a.step, b.step)
        lo, hi = unit.output.range(self._bits)
        m_a, m_b = (round(float(m) * 2**n) for m in (ma, mb))
        if max(m_a, m_b) >= FLOAT32_EXACT:
            raise InputError(
                f"expected operands of the addition {name!r} on steps like its own, got factors {float(ma):.3g} and "
                f"{float(mb):.3g}; calibrate the network again"
            )
        return Add(name, self.edge_of[inputs[0]], self.edge_of[inputs[1]], m_a, m_b, n, lo, hi)

    def _multiply(self, name: str, unit: MulUnit, inputs: tuple[str, ...]) -> Mul:
        a, b = (self.values[n].step for n in inputs)
        assert a is not None and b is not None and unit.output is not None
        requant = _requant(unit.multiplier(a, b)[None], unit.output.range(self._bits))
        return Mul(name, self.edge_of[inputs[0]], self.edge_of[inputs[1]], requant)

    def _pool_sides(self, name: str, unit: MaxPoolUnit, x: Value) -> tuple[int, int, int, int]:
        """Return the padding that gives the pool its plane: more below and on the right where it rounds sizes up."""
        top, left = unit.padding
        result, given = self.values[name].codes.shape[2:], x.codes.shape[2:]
        spans = ((n - 1) * s + k for n, s, k in zip(result, unit.stride, unit.kernel, strict=True))
        below = (span - size - first for span, size, first in zip(spans, given, unit.padding, strict=True))
        bottom, right = (max(first, more) for first, more in zip(unit.padding, below, strict=True))
        return top, left, bottom, right

    def _align(self, node: Concat, unit: AbstractUnit, inputs: tuple[str, ...]) -> Concat:
        """Put each operand of a concatenation on its grid, by a Rescale with a short multiplier."""
        assert isinstance(unit, ConcatUnit) and unit.output is not None
        lo, hi = unit.output.range(self._bits)
        operands = []
        for index, (step_name, edge) in enumerate(zip(inputs, node.operands, strict=True)):
            step = self.values[step_name].step
            assert step is not None
            n = shift_for(lo, hi)
            moved = f"{node.name}_{index}"
            while moved in self.model.units or moved in self.edges:
                moved += "_"
            self.nodes.append(Rescale(moved, edge, round(float(unit.multiplier(step)) * 2**n), 2**n, lo, hi))
            shape = tuple(self.values[step_name].codes.shape[1:])
            self.edges[moved] = Edge(lo, hi, float(unit.out_step()), shape)
            operands.append(moved)
        return Concat(node.name, tuple(operands))

    def _edge(self, name: str, node: Node, unit: AbstractUnit) -> Edge:
        value = self.values[name]
        assert value.step is not None
        shape = tuple(value.codes.shape[1:])
        if gives_sums(node):
            bound = self._bound(node)
            return Edge(-bound, bound, float(value.step), shape)
        if unit.output is not None:
            lo, hi = unit.output.range(self._bits)
        elif isinstance(node, Rescale):
            lo, hi = node.lo, node.hi
        else:
            lo, hi = self.edges[node.inputs[0]].lo, self.edges[node.inputs[0]].hi
        return Edge(lo, hi, float(value.step), shape)

    def _bound(self, node: Node) -> int:
        edge = self.edges[node.inputs[0]]
        if isinstance(node, Conv | Linear):
            return int(reach(node, edge).max())
        return edge.reach * int(np.prod(edge.shape[1:]))


def _requant(multiplier: torch.Tensor, codes: tuple[int, int]) -> Requant:
    n = shift_for(*codes)
    m = (multiplier.double() * 2.0**n).round().to(torch.int32).cpu().numpy()
    return Requant(m, n, *codes)


def _pair(value) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _sides(padding: tuple[int, int]) -> tuple[int, int, int, int]:
    return padding[0], padding[1], padding[0], padding[1]


assert IMAGE == INPUT, "the network and the graph name the image alike"
