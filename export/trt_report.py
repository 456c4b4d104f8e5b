"""The audit of a TensorRT engine, from the report of its layers.

`trtexec --profilingVerbosity=detailed --exportLayerInfo=layers.json` (the manifest of a `trt` artefact has the whole
command) and the engine inspector write what every layer of an engine became: its kind, the types of what it reads and
writes, its weights. TensorRT 10 names the type within `Format/Datatype`, TensorRT 11 apart in `DataType`; both work.
`Precision` is what was asked for, not what runs, and is not looked at.

Written against the documentation and the reports that it shows; none of an engine of ours was at hand.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeq.errors import InputError

from .audit import Audit, Island
from .audit_causes import Cause

Layer = Mapping[str, Any]  # JSON of one layer
FORM = "trtexec --profilingVerbosity=detailed --exportLayerInfo=layers.json"
INTEGER = re.compile(r"\b(u?int8|u?int4|int32|int64|bool)\b", re.IGNORECASE)
FLOAT = re.compile(r"\b(float|half|fp32|fp16|bf16|bfloat16|fp8|tf32)\b", re.IGNORECASE)
MOVES = {"Reformat", "Shuffle", "NoOp", "Identity", "Constant", "Cast", "Slice", "Concatenation", "Signal", "Wait"}
OPAQUE = ("kgen", "myelin", "ForeignNode", "Plugin")


def audit_report(report: object) -> Audit:
    """Count what a TensorRT engine runs in integers.

    Args:
        report: The JSON document.

    Raises:
        InputError: It is no report of layers, or one with their names alone.
    """
    layers = report.get("Layers") if isinstance(report, Mapping) else None
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise InputError(f"expected TensorRT's report of layers, got another JSON document; write one with {FORM}")
    if not all(isinstance(layer, Mapping) and "LayerType" in layer for layer in layers):
        raise InputError(f"expected layers with their types and tensors, got their names alone; write them with {FORM}")
    totals: Counter[str] = Counter()
    islands, uncounted = [], set()
    for layer in layers:
        macs, adds, integer = _macs(layer), _adds(layer), _is_integer(layer)
        totals["macs"] += macs
        totals["adds"] += adds
        totals["integer_macs"] += macs * integer
        totals["integer_adds"] += adds * integer
        kind = str(layer["LayerType"])
        if any(word in kind for word in OPAQUE) and not macs:
            uncounted.add(kind)  # a compiled group of operators, which says nothing of what is in it
        if not integer and (macs or kind not in MOVES):
            islands.append(_island(layer, macs, adds))
    return Audit(
        engine="TensorRT, as its report of layers says",
        macs=totals["macs"],
        integer_macs=totals["integer_macs"],
        adds=totals["adds"],
        integer_adds=totals["integer_adds"],
        islands=tuple(islands),
        uncounted=tuple(sorted(uncounted)),
    )


def _tensors(layer: Layer, side: str) -> list[Layer]:
    found = layer.get(side, [])
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, Sequence) else []


def _type(tensor: Layer) -> str:
    return str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or "")


def _is_integer(layer: Layer) -> bool:
    """Whether a layer reads integers alone, and multiplies by integers; what it writes may be its float result."""
    kinds = [_type(tensor) for tensor in _tensors(layer, "Inputs")]
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Count"):
        kinds.append(str(weights.get("Type", "")))
    return all(INTEGER.search(kind) and not FLOAT.search(kind) for kind in kinds) and bool(kinds)


def _size(tensors: list[Layer]) -> int:
    if not tensors:
        return 0
    batch, *sizes = [int(size) for size in tensors[0].get("Dimensions", [])] or [1]
    if any(size < 0 for size in sizes) or any("N/A" in _type(tensor) for tensor in tensors):
        raise InputError(
            f"expected shapes and types in TensorRT's report, got {[batch, *sizes]} and {_type(tensors[0])!r} at "
            f"{tensors[0].get('Name')!r}; state --shapes when writing it, or build the engine for one batch size"
        )
    return max(batch, 1) * int(np.prod(sizes, dtype=np.int64))


def _macs(layer: Layer) -> int:
    """Return the multiplications: by the weights of one output each, or along the axis that a product sums over."""
    weights, kind = layer.get("Weights"), f"{layer.get('ParameterType', '')} {layer['LayerType']}"
    if isinstance(weights, Mapping) and weights.get("Count") and layer.get("OutMaps"):
        if "Deconvolution" in kind:
            inputs = _tensors(layer, "Inputs")
            return _size(inputs) * int(weights["Count"]) // int(inputs[0]["Dimensions"][1])
        return _size(_tensors(layer, "Outputs")) * int(weights["Count"]) // int(layer["OutMaps"])
    if re.search("MatrixMultiply|gemm", kind, re.IGNORECASE) and _tensors(layer, "Inputs"):
        first = _tensors(layer, "Inputs")[0].get("Dimensions", [1])
        return _size(_tensors(layer, "Outputs")) * int(first[-1])
    return 0


def _adds(layer: Layer) -> int:
    """Return the elements of additions of activations: an operator of its own, or drawn into a convolution."""
    given = len(_tensors(layer, "Inputs"))
    kind = f"{layer.get('ParameterType', '')} {layer['LayerType']}"
    sums = "ElementWise" in kind and str(layer.get("Operation", layer.get("EWOperation", "SUM"))).upper() == "SUM"
    pointwise = "PointWise" in kind and not layer.get("Weights")
    fused = "onvolution" in kind
    return (given - 1) * _size(_tensors(layer, "Outputs")) if given > 1 and (sums or pointwise or fused) else 0


def _island(layer: Layer, macs: int, adds: int) -> Island:
    name, kind = str(layer.get("Name", "")), str(layer["LayerType"])
    types = sorted({_type(tensor) or "of no stated type" for tensor in _tensors(layer, "Inputs")})
    weights = layer.get("Weights")
    stored = str(weights.get("Type", "")) if isinstance(weights, Mapping) and weights.get("Count") else ""
    floats = bool(stored) and not INTEGER.search(stored)
    reason = f"it reads {' and '.join(types) or 'nothing'}" + (f", its weights are {stored}" if floats else "")
    change = "put QuantizeLinear and DequantizeLinear on each of its inputs"
    change += ", its weights too" if floats else ""
    cause = Cause("weights" if floats else "types", name, kind, reason, change)
    return Island((name,), {kind: 1}, macs, adds, (cause,))
