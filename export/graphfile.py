"""The integer graph as two files: `graph.json` (nodes, edges) and `graph.safetensors` (packed weights, biases, ...).

Loading gives back an equal graph, so an artefact carries the definition that it is verified against. In the JSON a
node is its fields; an array is the name of its tensor.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np

from edgeq.errors import InputError

from .graph import INPUT, Conv, Edge, IntegerGraph, Linear, Node
from .moves import GEOMETRIES
from .multiplier import Requant
from .pack import pack, unpack

FORMAT = 1
KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Node)}
MOVES: dict[str, type] = {kind.__name__: kind for kind in GEOMETRIES}


def to_bytes(graph: IntegerGraph) -> tuple[bytes, bytes]:
    """Return the contents of graph.json and graph.safetensors."""
    import safetensors.numpy

    tensors: dict[str, np.ndarray] = {}
    record = {
        "format": FORMAT,
        "name": graph.name,
        "bits": graph.bits,
        "classes": list(graph.classes),
        "edges": {name: [edge.lo, edge.hi, edge.scale, list(edge.shape)] for name, edge in graph.edges.items()},
        "nodes": [_plain(node, index, tensors) for index, node in enumerate(graph.nodes)],
    }
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return text.encode(), safetensors.numpy.save(tensors)


def from_bytes(record_bytes: bytes, tensor_bytes: bytes) -> IntegerGraph:
    """Return the graph of the two files.

    Raises:
        InputError: They do not hold a graph of this format.
    """
    import safetensors.numpy

    try:
        record = json.loads(record_bytes)
        if record["format"] != FORMAT:
            raise InputError(f"expected graph.json of format {FORMAT}, got {record['format']}; export the model again")
        tensors = safetensors.numpy.load(tensor_bytes)
        edges = {name: Edge(lo, hi, scale, tuple(shape)) for name, (lo, hi, scale, shape) in record["edges"].items()}
        nodes = tuple(_node(fields, tensors) for fields in record["nodes"])
        _check_order(nodes, edges)
        return IntegerGraph(record["name"], record["bits"], nodes, edges, tuple(record["classes"]))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"expected an integer graph in graph.json and graph.safetensors, got '{error}'; export the model again"
        ) from error


def _check_order(nodes: tuple[Node, ...], edges: Mapping[str, Edge]) -> None:
    """Check that every node reads edges that are there already, and has one."""
    known = {INPUT}
    for node in nodes:
        strange = [name for name in node.inputs if name not in known] + [node.name] * (node.name not in edges)
        if strange:
            raise ValueError(f"no edge {strange[0]!r} at node {node.name!r}")
        known.add(node.name)
    if not nodes or INPUT not in edges:
        raise ValueError("no image or no nodes")


def _plain(node: Node, index: int, tensors: dict[str, np.ndarray]) -> dict[str, Any]:  # Any: JSON
    fields: dict[str, Any] = {"kind": type(node).__name__}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        key = f"{index}.{field.name}"
        if isinstance(value, Requant):
            tensors[key] = value.m
            value = {"m": key, "n": value.n, "lo": value.lo, "hi": value.hi}
        elif isinstance(value, np.ndarray) and field.name == "weight":
            tensors[key] = pack(value, cast(Conv | Linear, node).weight_bits)
            value = {"packed": key, "shape": value.shape}
        elif isinstance(value, np.ndarray):
            tensors[key] = value
            value = {"tensor": key}
        elif isinstance(value, GEOMETRIES):
            value = {"move": type(value).__name__, **dataclasses.asdict(value)}
        fields[field.name] = value
    return fields


def _node(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Node:  # Any: JSON
    kind = KINDS[fields["kind"]]
    values = {name: _value(name, value, fields, tensors) for name, value in fields.items() if name != "kind"}
    return cast(Node, kind(**values))


def _value(name: str, value: Any, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> object:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if name == "requant":
        return Requant(tensors[value["m"]], value["n"], value["lo"], value["hi"])
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "move" in value:
        given = {key: tuple(part) if isinstance(part, list) else part for key, part in value.items() if key != "move"}
        return MOVES[value["move"]](**given)
    shape = tuple(value["shape"])
    return unpack(tensors[value["packed"]], fields["weight_bits"], int(np.prod(shape))).reshape(shape)
