"""Integer nodes from layers between quantizers, whatever format they were read from.

A layer's multiplier, s_x * s_w / s_y, is rounded to a short one (`multiplier.py`), which is the price of an integer
graph that every engine computes alike; with `long` multipliers of 24 bits the graph is the original's arithmetic up to
ties, and the difference is the price.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edgeq.errors import InputError
from edgeq.pixels import Pixels

from ..graph import INPUT, AvgPool, Concat, Conv, Edge, Flatten, IntegerGraph, Linear, Node, Rescale, reach
from ..graph import Add as AddNode
from ..multiplier import FLOAT32_EXACT, Requant, add_shift, shift_for
from ..reference import step
from .meaning import LOWEST, Codes, Grid, Joined, Layer, Mean, Pending, Sum, bits_of
from .pixels import fit, table

LONGEST = 30  # largest shift that a Requant takes
SPAN = 255  # of the codes that fit into a byte
NOTHING = 1 / 64  # of a code


@dataclass
class Builder:
    """Collects the nodes of one import.

    Attributes:
        pixels: How the float network sees an image.
        long: Whether multipliers keep 24 bits instead of being short.
        batch: Images of a fixed batch; 0 where any number of them may come.
        notes: What differs from the original by more than rounding, in plain English.
        change: Largest relative change of a multiplier, per node.
    """

    shape: tuple[int, ...]
    pixels: Pixels
    long: bool
    nodes: list[Node] = field(default_factory=list)
    edges: dict[str, Edge] = field(default_factory=dict)
    batch: int = 0
    notes: list[str] = field(default_factory=list)
    change: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start with the image."""
        self.edges[INPUT] = Edge(-128, 127, 1 / 255, self.shape)
        self._examples = {INPUT: np.zeros((1, *self.shape), np.int32)}

    def name(self, wish: str) -> str:
        """Return a name that is free and that dialects can take."""
        base = "_".join(part for part in wish.replace(":", "/").split("/") if part) or "node"
        taken = {INPUT, "logits", "model", *self.edges}
        name, count = base, 1
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        return name

    def put(self, node: Node, lo: int, hi: int, scale: float) -> Codes:
        """Append a node."""
        try:
            example = step(node, [self._examples[name] for name in node.inputs])
        except ValueError as error:  # numpy's
            raise InputError(
                f"expected tensors whose shapes fit at {node.name!r}, got others ({error}); correct the model"
            ) from error
        self._examples[node.name] = np.zeros_like(example)
        self.nodes.append(node)
        self.edges[node.name] = Edge(int(lo), int(hi), float(scale), tuple(example.shape[1:]))
        return Codes(node.name, float(scale))

    def moved(self, source: Codes, node: Callable[[str, str], Node], name: str) -> Codes:
        """Append a node that moves codes without changing any."""
        edge = self.edges[source.edge]
        return self.put(node(self.name(name), source.edge), edge.lo, edge.hi, source.scale)

    def image(self, grid: Grid) -> Codes:
        """Return the image on the grid of the first quantizer."""
        grid = self._fitting(grid, "the image")
        codes = table(self.pixels, self.shape[0], grid.scale, (grid.lo, grid.hi))
        if (codes == np.arange(256) - 128).all():
            self.edges[INPUT] = replace(self.edges[INPUT], scale=grid.scale)
            return Codes(INPUT, grid.scale)
        limits = min(0, int(codes.min())), max(int(codes.max()), 1)
        weight, bias, requant, wrong = fit(codes, limits)
        if wrong:
            self.notes.append(f"{wrong} of {codes.size} pixel values get a neighbouring code")
        node = Conv(self.name("pixels"), INPUT, weight, bias, requant, 8, groups=self.shape[0])
        return self.put(node, *limits, grid.scale)

    def land(self, pending: Pending, grid: Grid) -> Codes:
        """Append the nodes of a layer whose result a quantizer puts on a grid."""
        low, high = (np.rint(np.clip(limit / grid.scale, -1e9, 1e9)) for limit in (pending.low, pending.high))
        narrowed = Grid(grid.scale, int(max(grid.lo, low)), int(min(grid.hi, high)))
        grid = self._fitting(narrowed, pending.name)
        match pending.what:
            case Layer():
                codes = self._layer(pending.what, pending.name, grid)
            case Sum():
                codes = self._sum(pending.what, pending.name, grid)
            case Mean():
                codes = self._mean(pending.what, pending.name, grid)
            case Joined():
                codes = self._joined(pending.what, pending.name, grid)
            case Codes():
                codes = self._rescaled(pending.what, pending.name, grid)
        for node in pending.after:
            codes = self.moved(codes, node, f"{pending.name}_pool")
        return codes

    def logits(self, pending: Pending) -> Codes:
        """Append the last layer, whose accumulators are the logits."""
        layer = pending.what
        if not isinstance(layer, Layer) or layer.geometry is not None or np.isfinite([pending.low, pending.high]).any():
            raise InputError(
                f"expected a network that ends in a linear layer or a quantizer, got {pending.name!r}; quantize its "
                "output"
            )
        common = float(layer.unit.max())
        if not common > 0:
            raise InputError(f"expected a last layer with weights, got only scales of 0 at {pending.name!r}; train it")
        ratio = (layer.unit / common)[:, None]
        weight = np.rint(layer.weight * ratio)
        if np.any(ratio != 1):
            self.notes.append(
                f"the classes of {pending.name!r} have scales of their own; its weights moved to one scale"
            )
        bias = np.rint(layer.bias / common)
        node = Linear(
            self.name(pending.name),
            layer.source.edge,
            weight.astype(np.int8),
            bias.astype(np.int32),
            None,
            bits_of(weight, pending.name),
        )
        return self._closed(node, common)

    def identity(self, codes: Codes) -> None:
        """Append a Linear that gives quantized logits as int32."""
        if len(self.edges[codes.edge].shape) > 1:
            codes = self.moved(codes, Flatten, "flat")
        (classes,) = self.edges[codes.edge].shape
        weight = np.eye(classes, dtype=np.int8)
        self._closed(Linear(self.name("output"), codes.edge, weight, np.zeros(classes, np.int32), None, 2), codes.scale)

    def graph(self, name: str, classes: tuple[str, ...]) -> IntegerGraph:
        """Return the finished graph."""
        sizes: dict[int, int] = {}
        for node in self.nodes:
            if isinstance(node, Conv | Linear):
                sizes[node.weight_bits] = sizes.get(node.weight_bits, 0) + node.weight.size
        return IntegerGraph(name, max(sizes, key=lambda bits: sizes[bits]), tuple(self.nodes), self.edges, classes)

    def _closed(self, node: Linear, scale: float) -> Codes:
        bound = int(reach(node, self.edges[node.input]).max())
        self._check(node)
        return self.put(node, -bound, bound, scale)

    def _fitting(self, grid: Grid, name: str) -> Grid:
        """Return a grid within -128...255 that bytes with an even zero point can hold."""
        lo, hi = max(grid.lo, LOWEST), grid.hi
        if lo % 2 and hi - lo >= SPAN and not self.long:
            lo += 1
        hi = min(hi, lo + SPAN)
        if not lo <= 0 < hi:
            raise InputError(
                f"expected codes around 0 at {name!r}, got {grid.lo}..{grid.hi}; quantize it symmetrically"
            )
        if (lo, hi) != (grid.lo, grid.hi) and not self.long:
            self.notes.append(f"codes of {name!r} are clipped from {grid.lo}..{grid.hi} to {lo}..{hi}")
        return Grid(grid.scale, lo, hi)

    def _layer(self, layer: Layer, name: str, grid: Grid) -> Codes:
        name = self.name(name)
        unit, codes = self._alive(layer, grid)
        requant = self._requant(unit / grid.scale, grid, name)
        bias = np.clip(np.rint(layer.bias / unit), -(2.0**31) + 1, 2.0**31 - 1).astype(np.int64).astype(np.int32)
        weight, bits = codes.astype(np.int8), bits_of(codes, name)
        if layer.geometry is None:
            node: Conv | Linear = Linear(name, layer.source.edge, weight, bias, requant, bits)
        else:
            node = Conv(name, layer.source.edge, weight, bias, requant, bits, **layer.geometry)
        self._check(node)
        return self.put(node, grid.lo, grid.hi, grid.scale)

    def _alive(self, layer: Layer, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Return units and weights; where the weights move the result by nothing, the bias is all there is of it."""
        edge = self.edges[layer.source.edge]
        axes = tuple(range(1, layer.weight.ndim))
        moved = np.abs(layer.weight).sum(axes) * max(-edge.lo, edge.hi) * layer.unit / grid.scale
        dead = moved < NOTHING
        weight = np.where(dead.reshape((-1,) + (1,) * len(axes)), 0, layer.weight)
        return np.where(dead, grid.scale, layer.unit), weight

    def _check(self, node: Conv | Linear) -> None:
        largest = int(reach(node, self.edges[node.input]).max())
        if largest >= 1 << 31:
            raise InputError(
                f"expected accumulators within int32 at {node.name!r}, got up to {largest}; check its bias"
            )

    def _requant(self, multiplier: np.ndarray, grid: Grid, name: str) -> Requant:
        n = shift_for(grid.lo, grid.hi)
        if self.long:
            n = int(min(LONGEST, np.floor(np.log2((FLOAT32_EXACT - 1) / multiplier.max()))))
        m = np.maximum(np.rint(multiplier * 2.0**n), 1)
        if m.max() >= FLOAT32_EXACT:
            raise InputError(
                f"expected a multiplier below 2^{24 - n} at {name!r}, got {multiplier.max():.3g}; calibrate it"
            )
        self.change[name] = float(np.max(np.abs(m / 2.0**n / multiplier - 1)))
        return Requant(m.astype(np.int32), n, grid.lo, grid.hi)

    def _sum(self, what: Sum, name: str, grid: Grid) -> Codes:
        name = self.name(name)
        ratios = [what.a.scale / grid.scale, what.b.scale / grid.scale]
        n = int(min(LONGEST, np.floor(np.log2((FLOAT32_EXACT - 1) / max(ratios))))) if self.long else add_shift(*ratios)
        m_a, m_b = (round(ratio * 2**n) for ratio in ratios)
        if max(m_a, m_b) >= FLOAT32_EXACT:
            raise InputError(f"expected operands of {name!r} on grids like its own, got ratios {ratios}; calibrate it")
        self.change[name] = max(abs(m / 2**n / ratio - 1) for m, ratio in zip((m_a, m_b), ratios, strict=True))
        node = AddNode(name, what.a.edge, what.b.edge, m_a, m_b, n, grid.lo, grid.hi)
        return self.put(node, grid.lo, grid.hi, grid.scale)

    def _mean(self, what: Mean, name: str, grid: Grid) -> Codes:
        name = self.name(name)
        area = int(np.prod(what.kernel or self.edges[what.source.edge].shape[1:]))
        requant = self._requant(np.array([what.source.scale / (grid.scale * area)]), grid, name)
        node = AvgPool(name, what.source.edge, what.kernel, what.stride, requant, what.padding)
        return self.put(node, grid.lo, grid.hi, grid.scale)

    def _joined(self, what: Joined, name: str, grid: Grid) -> Codes:
        parts = [self._rescaled(part, f"{name}_{index}", grid) for index, part in enumerate(what.parts)]
        node = Concat(self.name(name), tuple(part.edge for part in parts))
        ranges = [self.edges[part.edge] for part in parts]
        return self.put(node, min(r.lo for r in ranges), max(r.hi for r in ranges), grid.scale)

    def _rescaled(self, what: Codes, name: str, grid: Grid) -> Codes:
        edge = self.edges[what.edge]
        same = np.float32(what.scale) == np.float32(grid.scale)
        if same and grid.lo <= edge.lo and edge.hi <= grid.hi:
            return what
        name, n = self.name(name), 0 if same else shift_for(grid.lo, grid.hi)
        num = max(1, round(what.scale / grid.scale * 2**n)) if n else 1
        node = Rescale(name, what.edge, num, 1 << n, grid.lo, grid.hi)
        return self.put(node, grid.lo, grid.hi, grid.scale)
