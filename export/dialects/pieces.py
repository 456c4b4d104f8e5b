"""Weights cut into pieces of which float32 holds every partial sum, in any order; the sums meet in int32."""

import numpy as np

from ..graph import Conv, Linear
from ..multiplier import FLOAT32_EXACT


def pieces(node: Conv | Linear, edge_reach: int) -> list[np.ndarray]:
    """Return weights that add up to the layer's, each with sums below 2^24 for every input."""
    weight = node.weight.reshape(len(node.weight), -1)
    total = np.cumsum(np.abs(weight.astype(np.int64)), 1)
    budget = FLOAT32_EXACT // edge_reach - 128  # the weight that crosses it adds 128 at most
    part = np.maximum(total - 1, 0) // budget
    return [np.where(part == k, weight, 0).reshape(node.weight.shape) for k in range(int(part.max()) + 1)]
