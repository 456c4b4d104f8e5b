"""The nearest codeword in standard ONNX operators: scores, the number of the largest, and its codeword as channels.

    LAYER:acc      the scores, whole numbers in int32 or, below 2^24, in float32
    LAYER:number   ArgMax, which takes the first of equals by ONNX's definition
    LAYER:word     Gather

TensorRT lowers ArgMax to TopK, whose choice among equals is not documented. There the number is the smallest one
whose score equals the largest: ReduceMax, Equal, Where, ReduceMin, exact whatever an engine makes of them.
"""

import numpy as np

from edgeq.errors import InputError

from ..graph import Codebook, Edge, reach
from ..multiplier import FLOAT32_EXACT
from .writer import Writer

FLOAT, INT32 = 1, 6  # of onnx.TensorProto


def write_scores(w: Writer, node: Codebook, source: str, zero: int) -> None:
    """Write the int32 scores of a byte tensor."""
    weight, product = w.const(node.scores.weight), f"{node.name}:product"
    w.node("ConvInteger", [source, weight, w.const(np.uint8(zero))], product)
    w.node("Add", [product, w.const(node.bias.reshape(-1, 1, 1))], f"{node.name}:acc")


def write_argmax(w: Writer, node: Codebook) -> None:
    """Write the number of the largest score."""
    w.node("ArgMax", [f"{node.name}:acc"], f"{node.name}:number", axis=1, keepdims=0)


def write_lowest(w: Writer, node: Codebook) -> None:
    """Write the number of the largest float score without an ArgMax."""
    scores, axis, count = f"{node.name}:acc", w.const(np.array([1], np.int64)), len(node.weight)
    numbers = w.const(np.arange(count, dtype=np.float32).reshape(-1, 1, 1))
    w.node("ReduceMax", [scores, axis], f"{node.name}:largest", keepdims=1)
    w.node("Equal", [scores, f"{node.name}:largest"], f"{node.name}:equal")
    w.node("Where", [f"{node.name}:equal", numbers, w.const(np.float32(count))], f"{node.name}:numbers")
    w.node("ReduceMin", [f"{node.name}:numbers", axis], f"{node.name}:lowest", keepdims=0)
    w.node("Cast", [f"{node.name}:lowest"], f"{node.name}:number", to=INT32)


def write_words(w: Writer, node: Codebook, out: str, *, zero: int, kind: type[np.number]) -> None:
    """Write the codewords of these numbers, code 0 being `zero`."""
    words = w.const((node.weight.astype(np.int32) + zero).astype(kind))
    w.node("Gather", [words, f"{node.name}:number"], f"{node.name}:word")
    w.node("Transpose", [f"{node.name}:word"], out, perm=(0, 3, 1, 2))


def check_float(node: Codebook, edge: Edge) -> None:
    """Refuse scores that float32 does not hold.

    Raises:
        InputError: They may pass 2^24.
    """
    largest = int(reach(node.scores, edge).max())
    if largest > FLOAT32_EXACT:
        raise InputError(
            f"expected scores of codewords that float32 holds at {node.name!r}, got up to {largest}; choose the target "
            "ort or proof, which compare integers, or shorter codewords"
        )
