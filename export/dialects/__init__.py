"""Translations of the integer graph, one file per target; `DIALECTS` is the whole list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeq.errors import InputError

from ..graph import IntegerGraph
from . import ort, proof, qonnx, trt

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Dialect:
    """One way to write an integer graph as ONNX.

    Attributes:
        build: From the graph to the model.
        observe: From the graph to the tensor of the model that carries each node's edge, and the number that stands
            for code 0 there.
        dtype: Of those tensors, the int32 logits excepted.
        about: What the manifest says about running the model, besides what it says for every target.
    """

    build: "Callable[[IntegerGraph], onnx.ModelProto]"
    observe: Callable[[IntegerGraph], dict[str, tuple[str, int]]]
    dtype: type[np.integer] | type[np.floating]
    about: Callable[[IntegerGraph], dict[str, object]]


DIALECTS: dict[str, Dialect] = {
    "ort": Dialect(ort.build, ort.observe, np.uint8, ort.about),
    "proof": Dialect(proof.build, proof.observe, np.uint8, proof.about),
    "trt": Dialect(trt.build, trt.observe, np.int8, trt.about),
    "qonnx": Dialect(qonnx.build, qonnx.observe, np.float32, qonnx.about),
}
TARGETS: tuple[str, ...] = tuple(DIALECTS)


def dialect(target: str) -> Dialect:
    """Return the dialect of a target.

    Raises:
        InputError: There is no such target.
    """
    if target not in DIALECTS:
        raise InputError(f"expected a target of {', '.join(TARGETS)}, got {target!r}; choose one of them")
    return DIALECTS[target]


def build(graph: IntegerGraph, target: str) -> "onnx.ModelProto":
    """Return the model of `graph` for a target.

    Raises:
        InputError: There is no such target, or it cannot hold this graph.
    """
    return dialect(target).build(graph)
