"""Translations of the integer graph, one file per target; `BUILDERS` is the whole list."""

# ruff: noqa: TID252  the absolute name would be another module to a type checker that reads export/ itself

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeq.errors import InputError

from ..graph import IntegerGraph
from . import ort

if TYPE_CHECKING:
    import onnx

BUILDERS: dict[str, "Callable[[IntegerGraph], onnx.ModelProto]"] = {"ort": ort.build}
TARGETS: tuple[str, ...] = tuple(BUILDERS)


def build(graph: IntegerGraph, target: str) -> "onnx.ModelProto":
    """Return the model of `graph` for a target.

    Raises:
        InputError: There is no such target, or it cannot hold this graph.
    """
    if target not in BUILDERS:
        raise InputError(f"expected a target of {', '.join(TARGETS)}, got {target!r}; choose one of them")
    return BUILDERS[target](graph)
