"""Small integer graphs: built by hand, drawn by hypothesis, and one of ResNet-20's shape."""

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pytest
from hypothesis import strategies as st

from edgeq.export.graph import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Conv,
    Edge,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool,
    Node,
    Rescale,
    reach,
)
from edgeq.export.multiplier import Requant, shift_for

TOPS = {2: 3, 3: 7, 4: 15, 5: 31, 6: 63, 7: 127, 8: 127}  # ceilings after a ReLU


def short(real: np.ndarray | np.floating, lo: int, hi: int) -> Requant:
    """Snap real multipliers to short ones."""
    n = shift_for(lo, hi)
    m = np.clip(np.rint(np.asarray(real, np.float64).reshape(-1) * 2.0**n), 1, (1 << 24) - 1)
    return Requant(m.astype(np.int32), n, lo, hi)


@dataclass
class Builder:
    """Adds nodes with random weights whose codes fill their ranges."""

    shape: tuple[int, int, int] = (3, 8, 8)
    seed: int = 0
    nodes: list[Node] = field(default_factory=list)
    edges: dict[str, Edge] = field(default_factory=dict)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.edges[INPUT] = Edge(-128, 127, 1 / 64, self.shape)

    def put(self, node: Node, lo: int, hi: int, shape: tuple[int, ...]) -> str:
        self.nodes.append(node)
        self.edges[node.name] = Edge(lo, hi, 1.0, shape)
        return node.name

    def weights(self, shape: tuple[int, ...], bits: int, source: str, rq: tuple[int, int]):
        edge, limit = self.edges[source], 2 ** (bits - 1) - 1
        weight = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        spread = np.sqrt(np.prod(shape[1:]) * ((limit * limit) / 3 + 0.3)) * max(edge.reach / 2, 1)
        bias = self.rng.normal(0, spread / 2, shape[0]).astype(np.int32)
        real = max(rq[1], -rq[0]) / (2 * spread) * self.rng.uniform(0.5, 2, shape[0])
        return weight, bias, short(real, *rq)

    def name(self, kind: str) -> str:
        return f"{kind}{len(self.nodes)}"

    def conv(self, source: str, out: int, kernel=(3, 3), *, lo=0, hi=127, bits=8, groups=1, name=None, **geometry):
        channels, height, width = self.edges[source].shape
        weight, bias, rq = self.weights((out, channels // groups, *kernel), bits, source, (lo, hi))
        node = Conv(name or self.name("conv"), source, weight, bias, rq, bits, groups=groups, **geometry)
        top, left, bottom, right = node.padding
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, node.dilation, strict=True)]
        sizes = (height + top + bottom - spans[0], width + left + right - spans[1])
        plane = tuple(size // stride + 1 for size, stride in zip(sizes, node.stride, strict=True))
        return self.put(node, lo, hi, (out, *plane))

    def linear(self, source: str, out: int, *, lo=0, hi=127, bits=8, name=None):
        weight, bias, rq = self.weights((out, self.edges[source].shape[0]), bits, source, (lo, hi))
        return self.put(Linear(name or self.name("linear"), source, weight, bias, rq, bits), lo, hi, (out,))

    def add(self, a: str, b: str, *, lo=0, hi=127, name=None):
        m_a, m_b = (int(value) for value in self.rng.integers(1, 1 << 14, 2))
        return self.put(Add(name or self.name("add"), a, b, m_a, m_b, 14, lo, hi), lo, hi, self.edges[a].shape)

    def rescale(self, source: str, num: int, den: int, *, lo=0, hi=127, name=None):
        node = Rescale(name or self.name("rescale"), source, num, den, lo, hi)
        return self.put(node, lo, hi, self.edges[source].shape)

    def max_pool(self, source: str, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0)):
        edge = self.edges[source]
        plane = self.plane(source, kernel, stride, padding)
        node = MaxPool(self.name("max"), source, kernel, stride, padding)
        return self.put(node, edge.lo, edge.hi, (edge.shape[0], *plane))

    def plane(self, source: str, kernel, stride, padding) -> tuple[int, int]:
        _, height, width = self.edges[source].shape
        sizes = (height + padding[0] + padding[2] - kernel[0], width + padding[1] + padding[3] - kernel[1])
        return (sizes[0] // stride[0] + 1, sizes[1] // stride[1] + 1)

    def average(self, source: str, kernel=None, stride=(1, 1), padding=(0, 0, 0, 0), *, gain=1.3, hi=None):
        edge = self.edges[source]
        lo, hi = edge.lo, edge.hi if hi is None else hi
        window = kernel or edge.shape[1:]
        plane = self.plane(source, window, stride if kernel else (1, 1), padding)
        node = AvgPool(self.name("avg"), source, kernel, stride, short(gain / np.prod(window), lo, hi), padding)
        return self.put(node, lo, hi, (edge.shape[0], *plane))

    def concat(self, *sources: str):
        edges = [self.edges[source] for source in sources]
        channels = sum(edge.shape[0] for edge in edges)
        lo, hi = min(edge.lo for edge in edges), max(edge.hi for edge in edges)
        return self.put(Concat(self.name("concat"), sources), lo, hi, (channels, *edges[0].shape[1:]))

    def flatten(self, source: str):
        edge = self.edges[source]
        return self.put(Flatten(self.name("flat"), source), edge.lo, edge.hi, (int(np.prod(edge.shape)),))

    def graph(self, source: str, *, bits: int = 8, classes: int = 5, weight_bits: int = 8) -> IntegerGraph:
        """Close with a classifier of the image."""
        if len(self.edges[source].shape) == 3:
            source = self.flatten(source)
        weight, bias, _ = self.weights((classes, self.edges[source].shape[0]), weight_bits, source, (0, 127))
        node = Linear("fc", source, weight, bias, None, weight_bits)
        bound = int(reach(node, self.edges[source]).max())
        self.put(node, -bound, bound, (classes,))
        return IntegerGraph("test", bits, tuple(self.nodes), dict(self.edges))

    def dense(self, source: str, *, weight_bits: int = 8, **geometry) -> IntegerGraph:
        """Close with a classifier of every pixel: the last convolution's sums as they are."""
        name = self.conv(source, 5, (3, 3), bits=weight_bits, name="dense", **geometry)
        node = replace(cast(Conv, self.nodes.pop()), requant=None)
        bound = int(reach(node, self.edges[source]).max())
        self.put(node, -bound, bound, self.edges[name].shape)
        return IntegerGraph("test", 8, tuple(self.nodes), dict(self.edges))


def resnet(bits: int, *, width: int = 16, blocks: int = 3, size: int = 32) -> IntegerGraph:
    """ResNet-20's shape: a skip at 8 bits, brought to the width's grid before each block."""
    b, top = Builder((3, size, size)), TOPS[bits]
    x = b.conv(INPUT, width, padding=(1, 1, 1, 1), name="stem")
    for stage in range(3):
        channels = width << stage
        for block in range(blocks):
            stride, at = (2, 2) if stage and not block else (1, 1), f"layer{stage + 1}.{block}"
            entry = x if top == 127 else b.rescale(x, top, 127, hi=top, name=f"{at}.in")
            same = {"padding": (1, 1, 1, 1), "bits": bits}
            y = b.conv(entry, channels, stride=stride, hi=top, name=f"{at}.conv1", **same)
            y = b.conv(y, channels, lo=-128, name=f"{at}.conv2", **same)
            if stride != (1, 1):
                x = b.conv(entry, channels, (1, 1), stride=stride, lo=-128, bits=bits, name=f"{at}.down")
            x = b.add(y, x, name=f"{at}.add")
    return b.graph(b.average(x), bits=bits, classes=10)


RANGES = [(0, 127), (0, 255), (0, 31), (0, 15), (0, 3), (-128, 127), (-127, 127), (-31, 31), (-1, 1), (-5, 9)]


def draw_graph(draw) -> IntegerGraph:
    """Draw a small network of any nodes, ranges, widths and geometries."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    b = Builder((3, pick(5, 8, 11), pick(5, 8, 9)), draw(st.integers(0, 1 << 16)))
    conv_range = lambda: dict(zip(("lo", "hi"), pick(*RANGES), strict=True))  # noqa: E731
    x = b.conv(INPUT, 6, bits=pick(*range(2, 9)), padding=pick((1, 1, 1, 1), (0, 1, 2, 0)), **conv_range())
    for _ in range(draw(st.integers(1, 4))):
        channels, height, width = b.edges[x].shape
        small = min(height, width) < 3
        kind = pick("conv", "depthwise", "residual", "rescale", "max", "avg", "concat")
        if small and kind in ("max", "avg"):
            kind = "rescale"
        if kind == "conv":
            geometry = {"stride": pick((1, 1), (2, 1)), "dilation": pick((1, 1), (1, 2)), "padding": (2, 2, 2, 2)}
            groups = pick(*(g for g in (1, 2) if channels % g == 0))
            x = b.conv(x, pick(4, 6), bits=pick(*range(2, 9)), groups=groups, **geometry, **conv_range())
        elif kind == "depthwise":
            x = b.conv(x, channels, (3, 2), groups=channels, bits=pick(3, 8), padding=(1, 0, 1, 1), **conv_range())
        elif kind == "residual":
            y = b.conv(x, channels, padding=(1, 1, 1, 1), bits=pick(2, 5, 8), **conv_range())
            x = b.add(pick(x, y), y, **conv_range())
        elif kind == "rescale":
            num, den = pick((1, 1), (3, 127), (31, 127), (15, 255), (1, 2), (127, 31), (5, 3), (3, 10))
            x = b.rescale(x, num, den, **conv_range())
        elif kind == "max":
            x = b.max_pool(x, pick((2, 2), (3, 2)), pick((1, 1), (2, 2)), pick((0, 0, 0, 0), (1, 0, 0, 1)))
        elif kind == "avg":
            x = b.average(x, pick((2, 2), (3, 3)), pick((1, 1), (2, 1)), pick((0, 0, 0, 0), (1, 0, 0, 1)))
        else:
            y = b.conv(x, 3, (1, 1), **conv_range())
            lo, hi = (f(getattr(b.edges[e], end) for e in (x, y)) for f, end in ((min, "lo"), (max, "hi")))
            x = b.concat(x, y) if hi - lo <= 255 else b.rescale(y, 1, 1, lo=0, hi=127)
    if draw(st.booleans()):
        return b.dense(x, weight_bits=pick(*range(2, 9)), padding=pick((2, 2, 2, 2), (2, 1, 0, 2)))
    if draw(st.booleans()):
        x = b.average(x, hi=pick(b.edges[x].hi, max(1, b.edges[x].hi // 2)))
    if draw(st.booleans()):
        x = b.linear(b.flatten(x), 7, bits=pick(*range(2, 9)), **conv_range())
    return b.graph(x, weight_bits=pick(*range(2, 9)))


class Graphs:
    """What the tests of this folder build graphs with."""

    Builder = Builder
    resnet = staticmethod(resnet)
    draw = staticmethod(draw_graph)
    short = staticmethod(short)
    TOPS = TOPS

    @staticmethod
    def images(graph: IntegerGraph, count: int = 4, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, *graph.input_shape), np.uint8)


@pytest.fixture(scope="session")
def graphs() -> type[Graphs]:
    return Graphs
