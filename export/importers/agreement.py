"""How far an imported network is from its original: every code of every quantized tensor, and the classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from ..graph import IntegerGraph
from ..reference import run as interpret
from .qdq import Imported

if TYPE_CHECKING:
    import onnx

Original = Callable[[np.ndarray, list[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Layer:
    """Codes of one tensor beside the original's."""

    name: str
    codes: int
    differ: int
    largest: int
    distance: int  # sum of all differences


@dataclass(frozen=True)
class Agreement:
    """An integer graph beside its original.

    Attributes:
        images: Number of images.
        layers: Per quantized tensor of the original, in order.
        same_class: Images with the same argmax.
    """

    images: int
    layers: tuple[Layer, ...]
    same_class: int

    @property
    def codes(self) -> int:
        """Codes compared."""
        return sum(layer.codes for layer in self.layers)

    @property
    def differ(self) -> int:
        """Codes that differ."""
        return sum(layer.differ for layer in self.layers)

    @property
    def largest(self) -> int:
        """Largest difference, in codes."""
        return max((layer.largest for layer in self.layers), default=0)


def agreement(
    imported: Imported,
    original: Original,
    images: UInt8[np.ndarray, "batch channels height width"],
    *,
    graph: IntegerGraph | None = None,
) -> Agreement:
    """Compare codes and classes on images.

    Args:
        imported: What `import_onnx` or `import_pt2e` returned.
        original: From float images and names of tensors to these tensors, for example `onnx_original(...)`.
        images: What to compare on.
        graph: `imported.long` instead of `imported.graph`.
    """
    graph = graph or imported.graph
    wanted = [tensor for tensor, _ in imported.observed.values()]
    real = original(imported.pixels.floats(images), [*dict.fromkeys([*wanted, imported.output])])
    ours = interpret(graph, images)
    layers = []
    for edge, (tensor, scale) in imported.observed.items():
        want = np.rint(real[tensor].astype(np.float64) / scale).astype(np.int64)
        distance = np.abs(ours[edge].astype(np.int64) - want.reshape(ours[edge].shape))
        counts = distance.size, int(np.count_nonzero(distance)), int(distance.max()), int(distance.sum())
        layers.append(Layer(edge, *counts))
    classes = real[imported.output].reshape(len(images), -1).argmax(1)
    same = int((ours[graph.output].argmax(1) == classes).sum())
    return Agreement(len(images), tuple(layers), same)


def onnx_original(model: "onnx.ModelProto | bytes | str", level: str = "all") -> Original:
    """Return the original as ONNX Runtime runs it, at one of its optimisation levels."""
    import onnx
    from onnx import TensorProto, helper

    from ..dialects.qonnx import DOMAIN, quant_function
    from ..engines import session
    from ..modelfile import loaded

    read = onnx.ModelProto()
    read.CopyFrom(loaded(model))
    if any(node.domain == DOMAIN for node in read.graph.node) and not read.functions:
        function = quant_function()
        next(item for item in read.opset_import if item.domain == DOMAIN).version = 1
        function.opset_import[0].version = next(item.version for item in read.opset_import if not item.domain)
        read.functions.append(function)
    fed = next(v.name for v in read.graph.input if v.name not in {i.name for i in read.graph.initializer})
    fixed = next(v for v in read.graph.input if v.name == fed).type.tensor_type.shape.dim[0].dim_value

    def run(images: np.ndarray, tensors: list[str]) -> dict[str, np.ndarray]:
        copy = onnx.ModelProto()
        copy.CopyFrom(read)
        present = {value.name for value in copy.graph.output}
        extra = [name for name in tensors if name not in present]
        copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in extra)
        running, size = session(copy.SerializeToString(), level), fixed or len(images)
        parts = [running.run(tensors, {fed: images[at : at + size]}) for at in range(0, len(images), size)]
        return {name: np.concatenate(values) for name, *values in zip(tensors, *parts, strict=True)}

    return run
