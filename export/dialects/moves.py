"""Moves in standard ONNX operators, alike in every dialect: on bytes, or on float32 tensors of whole numbers."""

import numpy as np

from ..graph import Move
from ..moves import Reshape, Slice, Spread, Transpose, Upsample
from .writer import Writer


def write_move(w: Writer, node: Move, source: str, out: str, *, given: tuple[int, ...], zero: np.generic) -> None:
    """Write a move from the tensor `source` of shape `given` (without the batch) to `out`; code 0 is `zero` there."""
    match node.how:
        case Reshape():
            _reshape(w, source, node.how.shape, out)
        case Transpose():
            w.node("Transpose", [source], out, perm=(0, *(axis + 1 for axis in node.how.order)))
        case Slice():
            _slice(w, source, {node.how.axis: (node.how.start, node.how.stop)}, out)
        case Upsample():
            _upsample(w, node.how, source, out, given)
        case Spread():
            _spread(w, node.how, (source, out), given, zero)


def _reshape(w: Writer, source: str, shape: tuple[int, ...], out: str) -> None:
    w.node("Reshape", [source, w.const(np.array([0, *shape], np.int64))], out)  # 0: the batch, as it is


def _slice(w: Writer, source: str, ends: dict[int, tuple[int, int]], out: str) -> None:
    starts, stops = ([end[i] for end in ends.values()] for i in (0, 1))
    limits = [w.const(np.array(value, np.int64)) for value in (starts, stops, [axis + 1 for axis in ends])]
    w.node("Slice", [source, *limits], out)


def _upsample(w: Writer, how: Upsample, source: str, out: str, given: tuple[int, ...]) -> None:
    """Repeat pixels along new axes. A Resize would need float scales, or sizes that fix the batch."""
    c, height, width = given
    _reshape(w, source, (c, height, 1, width, 1), f"{out}:apart")
    sizes = w.const(np.array([1, 1, 1, how.factors[0], 1, how.factors[1]], np.int64))
    w.node("Expand", [f"{out}:apart", sizes], f"{out}:grown")
    _reshape(w, f"{out}:grown", how.result(given), out)


def _spread(w: Writer, how: Spread, ends: tuple[str, str], given: tuple[int, ...], zero: np.generic) -> None:
    """Give every pixel a block of its own, filled up with zeros; cut what is beyond the last pixel."""
    (source, out), (c, height, width) = ends, given
    _reshape(w, source, (c, height, 1, width, 1), f"{out}:apart")
    more = w.const(np.array([0] * 6 + [0, 0, 0, how.stride[0] - 1, 0, how.stride[1] - 1], np.int64))
    w.node("Pad", [f"{out}:apart", more, w.const(zero)], f"{out}:blocks", mode="constant")
    whole, plane = (height * how.stride[0], width * how.stride[1]), how.result(given)[1:]
    uncut = out if whole == plane else f"{out}:uncut"
    _reshape(w, f"{out}:blocks", (c, *whole), uncut)
    if uncut != out:
        _slice(w, uncut, {1: (0, plane[0]), 2: (0, plane[1])}, out)
