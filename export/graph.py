"""The integer graph: what runs on the device, with no float in its meaning.

An edge carries integer *codes* `lo...hi` whose real value is `code * scale` (the scale is a remark for people and
manifests; no operator uses it). The image enters as uint8 pixels with code = pixel - 128. Every operator is defined by
`reference.py` on int32; dialects translate it, executors speed it up, none may change a code.

Nodes are in topological order and each names its output edge with its own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int8, Int32, UInt8

from .moves import Geometry
from .multiplier import Requant

INPUT = "image"  # name of the input edge; codes are pixel - 128
INPUT_ZERO = 128


@dataclass(frozen=True)
class Edge:
    """Codes `lo...hi` of one tensor (without its batch axis), worth `scale` each."""

    lo: int
    hi: int
    scale: float
    shape: tuple[int, ...]

    @property
    def reach(self) -> int:
        """Largest absolute code."""
        return max(self.hi, -self.lo)


@dataclass(frozen=True)
class Conv:
    """`requant(sum_k w_k * x_k + bias)`, or the int32 sums themselves where requant is None (logits of every pixel).

    Padding is (top, left, bottom, right) with code 0.
    """

    name: str
    input: str
    weight: Int8[np.ndarray, "out in_per_group kh kw"]
    bias: Int32[np.ndarray, " out"]
    requant: Requant | None
    weight_bits: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class Linear:
    """`requant(W x + bias)`, or the int32 accumulators themselves where requant is None (the logits)."""

    name: str
    input: str
    weight: Int8[np.ndarray, "out in"]
    bias: Int32[np.ndarray, " out"]
    requant: Requant | None
    weight_bits: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class Add:
    """`clamp(half_even((a * m_a + b * m_b) / 2^n), lo, hi)`."""

    name: str
    a: str
    b: str
    m_a: int
    m_b: int
    n: int
    lo: int
    hi: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.a, self.b)


@dataclass(frozen=True)
class Rescale:
    """`clamp(half_even(x * num / den), lo, hi)`: a change of grid, or with num = den a clamp (ReLU)."""

    name: str
    input: str
    num: int
    den: int
    lo: int
    hi: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class MaxPool:
    """Maximum over windows; padding (top, left, bottom, right) never wins."""

    name: str
    input: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class AvgPool:
    """`requant(sum over windows)`; `kernel` None sums the whole plane (global). Padding counts as zeros."""

    name: str
    input: str
    kernel: tuple[int, int] | None
    stride: tuple[int, int]
    requant: Requant
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class Concat:
    """Channels of several edges side by side; all operands already share one grid."""

    name: str
    operands: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return self.operands


@dataclass(frozen=True)
class Flatten:
    """All axes but the batch in one, in NCHW order."""

    name: str
    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class Move:
    """Codes in other places, as `how` says; see `moves.py`."""

    name: str
    input: str
    how: Geometry

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class Table:
    """`table[x - lo]`, where lo is the input edge's smallest code: any function of one code."""

    name: str
    input: str
    lo: int
    table: Int32[np.ndarray, " codes"]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


@dataclass(frozen=True)
class Mul:
    """`requant(a * b)`; axes of size 1 are repeated."""

    name: str
    a: str
    b: str
    requant: Requant

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.a, self.b)


@dataclass(frozen=True)
class Codebook:
    """`weight[argmax_k(weight_k . x + bias_k)]` at every place, the lowest k of equals: the nearest codeword."""

    name: str
    input: str
    weight: Int8[np.ndarray, "codewords channels"]
    bias: Int32[np.ndarray, " codewords"]
    weight_bits: int = 8

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)

    @property
    def scores(self) -> Conv:
        """What the argmax compares, as a convolution under the node's own name."""
        weight = self.weight[:, :, None, None]
        return Conv(self.name, self.input, weight, self.bias, None, self.weight_bits)


@dataclass(frozen=True)
class PlaneSum:
    """Sums over the plane, as they are: logits of a network that ends in an average."""

    name: str
    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the edges read."""
        return (self.input,)


Node = Conv | Linear | Add | Mul | Rescale | Table | MaxPool | AvgPool | PlaneSum | Codebook | Concat | Flatten | Move


@dataclass(frozen=True)
class IntegerGraph:
    """A network in integers.

    Attributes:
        name: For people.
        bits: The width it was lowered at.
        nodes: In topological order; the last one gives the logits, int32, or an image: codes pixel - 128.
        edges: Every edge by name, `INPUT` included; for the logits lo and hi bound the int32 accumulators.
        classes: Class names, or empty.
    """

    name: str
    bits: int
    nodes: tuple[Node, ...]
    edges: Mapping[str, Edge]
    classes: tuple[str, ...] = field(default=())

    @property
    def output(self) -> str:
        """Name of the logits' edge, or that of the image that is drawn."""
        return self.nodes[-1].name

    @property
    def draws(self) -> bool:
        """Whether an image comes out, and not logits."""
        return not gives_sums(self.nodes[-1])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the image."""
        return self.edges[INPUT].shape

    def run(
        self, images: UInt8[np.ndarray, "batch channels height width"]
    ) -> Int32[np.ndarray, "batch classes *plane"]:
        """Return the int32 logits of uint8 images (of every pixel, if so the network ends), by the interpreter.

        Of a network that draws they are the codes pixel - 128.
        """
        from .reference import run

        return run(self, images)[self.output]


def gives_sums(node: Node) -> bool:
    """Tell whether a node's results are int32 sums, as the logits are, and not codes."""
    return isinstance(node, PlaneSum) or (isinstance(node, Conv | Linear) and node.requant is None)


def reach(node: Conv | Linear, edge: Edge) -> np.ndarray:
    """Bound |accumulator| per channel: max over inputs of |sum w x| + |bias|."""
    magnitude = np.abs(node.weight.astype(np.int64)).reshape(len(node.weight), -1).sum(1)
    return magnitude * edge.reach + np.abs(node.bias.astype(np.int64))
