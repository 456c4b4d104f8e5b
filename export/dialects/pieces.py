"""Weights cut into pieces of which float32 holds every partial sum, in any order; the sums meet in int32."""

from collections.abc import Callable

import numpy as np

from ..graph import Conv, Linear
from ..multiplier import FLOAT32_EXACT
from .writer import Writer

INT32 = 6  # of onnx.TensorProto


def pieces(node: Conv | Linear, edge_reach: int) -> list[np.ndarray]:
    """Return weights that add up to the layer's, each with sums below 2^24 for every input."""
    weight = node.weight.reshape(len(node.weight), -1)
    total = np.cumsum(np.abs(weight.astype(np.int64)), 1)
    budget = FLOAT32_EXACT // edge_reach - 128  # the weight that crosses it adds 128 at most
    part = np.maximum(total - 1, 0) // budget
    return [np.where(part == k, weight, 0).reshape(node.weight.shape) for k in range(int(part.max()) + 1)]


def write_pieces(
    w: Writer, node: Conv | Linear, edge_reach: int, out: str, product: Callable[[np.ndarray, str], object]
) -> None:
    """Write a layer's sums as the int32 tensor `out`.

    Args:
        w: The model written so far.
        node: The layer.
        edge_reach: Largest absolute code that it reads.
        out: The sums' name.
        product: Writes what one piece of the weights gives, as a float32 tensor of some name.
    """
    total = w.const(node.bias.reshape((-1, 1, 1) if isinstance(node, Conv) else (-1,)))
    parts = pieces(node, edge_reach)
    for index, part in enumerate(parts):
        name = f"{node.name}:acc:{index}"
        product(part, name)
        w.node("Cast", [name], f"{name}:int", to=INT32)
        end = out if index == len(parts) - 1 else f"{name}:sum"
        w.node("Add", [f"{name}:int", total], end)
        total = end
