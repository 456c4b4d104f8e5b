"""The NumPy interpreter of `IntegerGraph`: *the* definition of what every other executor must reproduce.

Sums of products run as matrix products in float32 where every partial sum is an integer of at most 2^24, and in float64
where it is one below 2^53 (asserted from the operands), so they are exact in any order; all else is int32/int64
arithmetic.
"""

from typing import cast

import numpy as np
from jaxtyping import Int32, UInt8

from .graph import (
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
)
from .multiplier import FLOAT32_EXACT, Requant, half_even_shift, requantize

Codes = Int32[np.ndarray, "batch *dims"]
Padding = tuple[int, int, int, int]


def run(graph: IntegerGraph, images: UInt8[np.ndarray, "batch channels height width"]) -> dict[str, np.ndarray]:
    """Return the codes of every edge, by name, for a batch of images."""
    if images.dtype != np.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != graph.input_shape:
        raise ValueError(
            f"expected uint8 images of shape (batch, {', '.join(map(str, graph.input_shape))}), "
            f"got {images.dtype} {images.shape}; resize and convert them first"
        )
    codes: dict[str, np.ndarray] = {INPUT: images.astype(np.int32) - INPUT_ZERO}
    for node in graph.nodes:
        codes[node.name] = step(node, [codes[name] for name in node.inputs])
    return codes


def step(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    """Return a node's output codes for its input codes."""
    match node:
        case Conv():
            return _requantized(_conv_acc(node, inputs[0]), node.requant)
        case Linear():
            return _requantized(_exact_matmul(inputs[0], node.weight.T) + node.bias, node.requant)
        case Add():
            total = inputs[0].astype(np.int64) * node.m_a + inputs[1].astype(np.int64) * node.m_b
            return np.clip(half_even_shift(total, node.n), node.lo, node.hi).astype(np.int32)
        case Mul():
            return requantize(inputs[0].astype(np.int64) * inputs[1], node.requant)
        case Table():
            return node.table[inputs[0] - node.lo]
        case Rescale():
            return np.clip(half_even_ratio(inputs[0], node.num, node.den), node.lo, node.hi).astype(np.int32)
        case MaxPool():
            view = _windows(inputs[0], node.kernel, node.stride, (1, 1), node.padding, fill=np.iinfo(np.int32).min)
            return view.max(axis=(4, 5))
        case AvgPool(kernel=None):
            total = inputs[0].sum(axis=(2, 3), keepdims=True, dtype=np.int64)
            return requantize(total, _per_channel(node, total.shape[1]))
        case AvgPool():
            kernel = cast(tuple[int, int], node.kernel)
            total = _windows(inputs[0], kernel, node.stride, (1, 1), node.padding).sum(axis=(4, 5), dtype=np.int64)
            return requantize(total, _per_channel(node, total.shape[1]))
        case Codebook():
            chosen = _conv_acc(node.scores, inputs[0]).argmax(axis=1)  # NumPy takes the first of equals
            return np.ascontiguousarray(node.weight.astype(np.int32)[chosen].transpose(0, 3, 1, 2))
        case PlaneSum():
            return inputs[0].sum(axis=(2, 3), dtype=np.int64).astype(np.int32)
        case Move():
            return np.ascontiguousarray(node.how.apply(inputs[0]))
        case Concat():
            return np.concatenate(inputs, axis=1)
        case Flatten():
            return inputs[0].reshape(len(inputs[0]), -1)


def half_even_ratio(x: Int32[np.ndarray, "*dims"], num: int, den: int) -> np.ndarray:
    """Return x * num / den rounded half to even, exactly."""
    top = x.astype(np.int64) * num
    floor = top // den
    rest2 = 2 * (top - floor * den)
    return floor + ((rest2 > den) | ((rest2 == den) & (floor % 2 == 1)))


def _requantized(acc: np.ndarray, rq: Requant | None) -> np.ndarray:
    return acc.astype(np.int32) if rq is None else requantize(acc, rq)


def _per_channel(node: AvgPool, channels: int):
    rq = node.requant
    return type(rq)(np.broadcast_to(rq.m, (channels,)).astype(np.int32), rq.n, rq.lo, rq.hi)


def _conv_acc(node: Conv, x: np.ndarray) -> np.ndarray:
    out, _, kh, kw = node.weight.shape
    kernels = node.weight.reshape(node.groups, out // node.groups, -1)
    x = x.astype(_holding_sums(x, kernels.transpose(0, 2, 1)))  # before the windows multiply it
    view = _windows(x, (kh, kw), node.stride, node.dilation, node.padding)  # n c h w kh kw
    n, _, h, w = view.shape[:4]
    columns = view.transpose(0, 1, 4, 5, 2, 3).reshape(n, node.groups, kernels.shape[2], h * w)
    acc = (kernels.astype(x.dtype) @ columns).reshape(n, out, h, w)
    return acc.astype(np.int64) + node.bias[None, :, None, None]


def _exact_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dtype = _holding_sums(a, b)
    return (a.astype(dtype) @ b.astype(dtype)).astype(np.int64)


def _holding_sums(a: np.ndarray, b: np.ndarray) -> type[np.floating]:
    """Return the smaller float whose mantissa holds every sum of products in a @ b, in any order of summation."""
    limit = int(np.abs(a).max(initial=0)) * int(np.abs(b.astype(np.int64)).sum(axis=-2).max(initial=0))
    assert limit < 1 << 53, limit
    return np.float32 if limit <= FLOAT32_EXACT else np.float64


def _windows(
    x: np.ndarray,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: Padding,
    fill: int = 0,
) -> np.ndarray:
    """Return a view (batch, channels, out_h, out_w, kh, kw) of the padded input."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
