"""Networks that torchao's PT2E flow quantized: their exported graph as Q/DQ ONNX, and that as an integer graph."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from edgeq.errors import InputError
from edgeq.pixels import Pixels

from .agreement import Original
from .qdq import Imported, import_onnx

if TYPE_CHECKING:
    import onnx

VERSION = 19, 9  # opset and IR
DTYPES = {torch.int8: np.int8, torch.uint8: np.uint8}
LIMITS = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def import_pt2e(
    module: fx.GraphModule, *, pixels: Pixels | None = None, classes: tuple[str, ...] = (), name: str = "imported"
) -> Imported:
    """Read what `convert_pt2e` returned.

    Args:
        module: The converted module, in evaluation form (`move_exported_model_to_eval`).
        pixels: How the network sees an image; by default x = pixel / 255.
        classes: Class names.
        name: For people.

    Raises:
        InputError: Some operator has no integer form; it is named.
    """
    return import_onnx(to_onnx(module), pixels=pixels, classes=classes, name=name)


def pt2e_original(module: fx.GraphModule) -> Original:
    """Return the original as torch runs it."""

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in kept and isinstance(value, torch.Tensor):
                found[n.name].append(value.detach().cpu().numpy())
            return value

    kept: set[str] = set()
    found: dict[str, list[np.ndarray]] = {}
    batch = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"].shape[0]

    def run(images: np.ndarray, tensors: list[str]) -> dict[str, np.ndarray]:
        kept.update(tensors)
        found.update({name: [] for name in tensors})
        device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
        size = batch if isinstance(batch, int) else len(images)
        if len(images) % size:
            raise InputError(f"expected a multiple of {size} images, got {len(images)}; the graph has a fixed batch")
        with torch.no_grad():
            for at in range(0, len(images), size):
                Keeping(module).run(torch.from_numpy(images[at : at + size]).to(device))
        return {name: np.concatenate(found[name]) for name in tensors}

    return run


def to_onnx(module: fx.GraphModule) -> "onnx.ModelProto":
    """Return a converted PT2E module as Q/DQ ONNX with the names of its graph.

    Raises:
        InputError: There is no ONNX operator for one of its operators here.
    """
    return _Translation(module).run()


class _Translation:
    """One translation: the module, and the operators written so far."""

    def __init__(self, module: fx.GraphModule) -> None:
        from onnx import helper, numpy_helper

        self.module = module
        self.helper, self.from_array = helper, numpy_helper.from_array
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.output = ""
        self.alias: dict[str, str] = {}

    def run(self) -> "onnx.ModelProto":
        for node in self.module.graph.nodes:
            self._node(node)
        floats = self.helper.make_tensor_value_info(self.output, 1, None)
        graph = self.helper.make_graph(self.nodes, "pt2e", self.inputs, [floats], self.constants)
        imports = [self.helper.make_opsetid("", VERSION[0])]
        return self.helper.make_model(graph, opset_imports=imports, ir_version=VERSION[1])

    def _node(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            value = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            self._constant(value.detach().cpu().numpy(), node.name)  # type: ignore[union-attr]
        elif node.op == "placeholder":
            shape = [size if isinstance(size, int) else "batch" for size in node.meta["val"].shape]
            self.inputs.append(self.helper.make_tensor_value_info(node.name, 1, shape))
        elif node.op == "output":
            (results,) = node.args
            flat = [results] if isinstance(results, fx.Node) else list(results)  # type: ignore[arg-type]
            if len(flat) != 1:
                raise InputError(f"expected one output, got {len(flat)}; return the logits alone")
            self.output = self._tensor(flat[0])
        elif node.op == "call_function":
            self._call(node)
        elif not str(node.target).endswith("_guards_fn"):
            raise InputError(f"expected operators, got {node.op} {node.name!r}; export the model with torch.export")

    def _call(self, node: fx.Node) -> None:
        name = str(node.target)
        namespace, _, rest = name.partition(".")
        operator = rest.partition(".")[0].rstrip("_")
        writers: dict[tuple[str, str], Callable[..., None]] = {
            ("quantized_decomposed", "quantize_per_tensor"): self._quantize,
            ("quantized_decomposed", "dequantize_per_tensor"): self._dequantize,
            ("quantized_decomposed", "quantize_per_channel"): self._quantize_channels,
            ("quantized_decomposed", "dequantize_per_channel"): self._dequantize_channels,
            ("aten", "conv2d"): self._conv,
            ("aten", "linear"): self._linear,
            ("aten", "relu"): lambda node, x: self._write(node, "Relu", [x]),
            ("aten", "relu6"): lambda node, x: self._clip(node, x, 0.0, 6.0),
            ("aten", "hardtanh"): self._clip,
            ("aten", "add"): self._add,
            ("aten", "max_pool2d"): self._max_pool,
            ("aten", "avg_pool2d"): self._avg_pool,
            ("aten", "adaptive_avg_pool2d"): self._adaptive,
            ("aten", "mean"): self._mean,
            ("aten", "flatten"): self._flatten,
            ("aten", "view"): self._view,
            ("aten", "reshape"): self._view,
            ("aten", "sym_size"): lambda node, x, axis: None,  # of the batch, which a view keeps
            ("aten", "cat"): self._cat,
            ("aten", "dropout"): lambda node, x, *_: self._write(node, "Identity", [x]),
            ("aten", "clone"): lambda node, x: self._write(node, "Identity", [x]),
            ("aten", "contiguous"): lambda node, x: self._write(node, "Identity", [x]),
        }
        if (namespace, operator) not in writers:
            known = ", ".join(sorted({key[1] for key in writers if key[0] == "aten"}))
            raise InputError(f"expected operators of {known}, got {name} {node.name!r}; fold or replace it")
        extra = {key: value for key, value in node.kwargs.items() if value is not None}
        extra.pop("memory_format", None)
        try:
            writers[namespace, operator](node, *node.args, **extra)
        except TypeError as error:
            raise InputError(f"expected a plain {operator}, got {name} {node.name!r} ({error}); replace it") from error

    def _tensor(self, value: Any) -> str:
        return value.name

    def _constant(self, value: np.ndarray | np.generic, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(self.from_array(np.array(value, order="C"), name))
        return name

    def _write(self, node: fx.Node, op: str, inputs: Sequence[fx.Node | str | None], out: str = "", **attributes: Any):
        names = [value.name if isinstance(value, fx.Node) else value or "" for value in inputs]
        while names and not names[-1]:
            names.pop()
        self.nodes.append(self.helper.make_node(op, names, [out or node.name], name=out or node.name, **attributes))

    def _quantize(self, node: fx.Node, x: fx.Node, scale: float, zero: int, low: int, high: int, dtype: torch.dtype):
        self._known(node, dtype)
        pair = [self._constant(np.float32(scale)), self._constant(np.array(zero, DTYPES[dtype]))]
        self._narrowed(node, [x, *pair], (low, high), dtype)

    def _quantize_channels(self, node: fx.Node, x, scale, zero, axis: int, low: int, high: int, dtype: torch.dtype):
        self._known(node, dtype)
        self._narrowed(node, [x, scale, self._zeros(node, zero, dtype)], (low, high), dtype, axis=axis)

    def _narrowed(self, node: fx.Node, inputs, limits: tuple[int, int], dtype: torch.dtype, **attributes: Any) -> None:
        if limits == LIMITS[dtype]:
            self._write(node, "QuantizeLinear", inputs, **attributes)
            return
        self._write(node, "QuantizeLinear", inputs, f"{node.name}_wide", **attributes)
        ends = [self._constant(np.array(limit, DTYPES[dtype])) for limit in limits]
        self._write(node, "Clip", [f"{node.name}_wide", *ends])

    def _dequantize(self, node: fx.Node, x, scale: float, zero: int, low: int, high: int, dtype: torch.dtype, **_: Any):
        self._known(node, dtype)
        pair = [self._constant(np.float32(scale)), self._constant(np.array(zero, DTYPES[dtype]))]
        self._write(node, "DequantizeLinear", [x, *pair])

    def _dequantize_channels(self, node: fx.Node, x, scale, zero, axis: int, low: int, high: int, dtype, **_: Any):
        self._known(node, dtype)
        self._write(node, "DequantizeLinear", [x, scale, self._zeros(node, zero, dtype)], axis=axis)

    def _zeros(self, node: fx.Node, zero: fx.Node | None, dtype: torch.dtype) -> str | None:
        """Return zero points in the type of the codes, as ONNX wants them."""
        if zero is None:
            return None
        value = next(item for item in self.constants if item.name == zero.name)
        from onnx import numpy_helper

        return self._constant(numpy_helper.to_array(value).astype(DTYPES[dtype]), f"{node.name}_zero")

    def _known(self, node: fx.Node, dtype: torch.dtype) -> None:
        if dtype not in DTYPES:
            raise InputError(f"expected int8 or uint8 codes, got {dtype} at {node.name!r}; quantize to 8 bits or fewer")

    def _conv(self, node: fx.Node, x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
        if isinstance(padding, str):
            raise InputError(f"expected numbers for padding, got {padding!r} at {node.name!r}; write them out")
        pads = [*_pair(padding), *_pair(padding)]
        shape: dict[str, Any] = {"strides": _pair(stride), "pads": pads, "dilations": _pair(dilation), "group": groups}
        self._write(node, "Conv", [x, weight, bias], **shape)

    def _linear(self, node: fx.Node, x, weight, bias=None) -> None:
        self._write(node, "Gemm", [x, weight, bias], transB=1)

    def _clip(self, node: fx.Node, x, low: float = -1.0, high: float = 1.0) -> None:
        ends = [self._constant(np.float32(limit)) for limit in (low, high)]
        self._write(node, "Clip", [x, *ends])

    def _add(self, node: fx.Node, a, b) -> None:
        if not isinstance(b, fx.Node):
            raise InputError(f"expected a sum of two tensors, got a number at {node.name!r}; fold it into a layer")
        self._write(node, "Add", [a, b])

    def _max_pool(self, node: fx.Node, x, kernel, stride=(), padding=0, dilation=1, ceil=False) -> None:
        window: dict[str, Any] = _window(kernel, stride, padding)
        self._write(node, "MaxPool", [x], dilations=_pair(dilation), ceil_mode=int(ceil), **window)

    def _avg_pool(self, node: fx.Node, x, kernel, stride=(), padding=0, ceil=False, count_include_pad=True) -> None:
        window: dict[str, Any] = _window(kernel, stride, padding)
        self._write(node, "AveragePool", [x], ceil_mode=int(ceil), count_include_pad=int(count_include_pad), **window)

    def _adaptive(self, node: fx.Node, x, size) -> None:
        if _pair(size) != [1, 1]:
            raise InputError(f"expected an average over the whole plane, got {size} at {node.name!r}; use 1")
        self._write(node, "GlobalAveragePool", [x])

    def _mean(self, node: fx.Node, x, dims, keepdim=False) -> None:
        self._write(node, "ReduceMean", [x, self._constant(np.array(dims, np.int64))], keepdims=int(keepdim))

    def _flatten(self, node: fx.Node, x, start=0, end=-1) -> None:
        if start != 1 or end not in (-1, 3):
            raise InputError(f"expected flatten(1), got flatten({start}, {end}) at {node.name!r}; flatten from axis 1")
        self._write(node, "Flatten", [x], axis=1)

    def _view(self, node: fx.Node, x, shape) -> None:
        target = np.array([size if isinstance(size, int) else 0 for size in shape], np.int64)
        self._write(node, "Reshape", [x, self._constant(target)])

    def _cat(self, node: fx.Node, parts, dim=0) -> None:
        self._write(node, "Concat", parts, axis=dim)


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, Any]:
    return {"kernel_shape": _pair(kernel), "strides": _pair(stride or kernel), "pads": _pair(padding) * 2}


def _pair(value: Any) -> list[int]:
    """Return a number or one or two of them as two."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
