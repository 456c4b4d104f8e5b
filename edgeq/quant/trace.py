"""Read a PyTorch network into a list of operators, by torch.fx, or say by name what cannot be read.

The result is independent of how the author spelled things: modules, functions and methods (`nn.ReLU`, `F.relu`,
`x.relu()`) become the same `Op`, BatchNorm and ReLU are attached to the layer they follow, and everything without
effect (Identity, a Flatten of a flat tensor) is gone.
"""

import contextlib
import io
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from edgeq.errors import InputError
from edgeq.export.moves import Geometry, Slice
from edgeq.quant.codebook import Codewords
from edgeq.quant.tables import Levels
from edgeq.quant.trace_functions import check_operators, function_of
from edgeq.quant.trace_moves import as_convolution, is_shape, moves_of, parts_of, shape_of, tensors, upsampled

INF = float("inf")
RESERVED = ("image", "image_codes")  # the network's input, before and after it became codes
SUPPORTED = (
    "Conv2d, ConvTranspose2d, Linear, BatchNorm, ReLU and other pointwise functions (docs/coverage.md), add, product "
    "of two tensors, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, mean over the plane, cat of channels, reshape, permute, "
    "chunk, slices, upsampling by 'nearest', nearest codewords (edgeq.quant.codebook), flatten, Dropout, Identity"
)


@dataclass(frozen=True)
class Op:
    """One operator of the traced network.

    Attributes:
        name: The module's path or the fx node's name, with dots turned into underscores.
        kind: "conv", "linear", "add", "mul", "relu", "table", "maxpool", "avgpool", "concat", "move", "flatten",
            "codebook", "dropout", "batchnorm".
        inputs: Names of the operators read ("image" for the network's input).
        shape: Output shape without the batch.
        module: The layer, for conv, linear, batchnorm and codebook.
        norm: The BatchNorm that follows, if any.
        relu: None, infinity for ReLU, 6 for ReLU6.
        args: What else the kind needs (kernel, stride, padding, p, how, function).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    module: nn.Module | None = None
    norm: nn.BatchNorm2d | nn.BatchNorm1d | None = None
    relu: float | None = None
    args: dict[str, Any] = field(default_factory=dict)


def trace(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Op, ...]:
    """Return the network's operators in order, layers fused with the BatchNorm and ReLU behind them."""
    check_operators(model)
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # whatever the user's forward raises under tracing
        raise InputError(
            f"expected a network that torch.fx can trace, got {type(model).__name__} which stopped with: {error}; "
            "move data-dependent control flow out of forward"
        ) from error
    example = torch.zeros(1, *image_shape, device=next(model.parameters(), torch.zeros(())).device)
    was_training = model.training
    graph.eval()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # ShapeProp prints the traceback that the error carries anyway
            _Shapes(graph).propagate(example)
    except Exception as error:
        reason = str(error.__cause__ or error).partition("While executing")[0].strip()
        raise InputError(
            f"expected a network for images of shape {image_shape}, got one that stops at them: {reason}; "
            "pass image_shape=(channels, height, width)"
        ) from error
    finally:
        model.train(was_training)
    return _fuse(_read(graph))


class _Tracer(fx.Tracer):
    """Traces through all modules but torch's and ours, which are operators."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is one operator."""
        return isinstance(m, (Codewords, Levels)) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(ShapeProp):
    """Shapes of all tensors, and the numbers that are computed from them."""

    def run_node(self, n: fx.Node) -> Any:  # Any: as in torch
        """Run a node and keep what it gives."""
        result = super().run_node(n)
        if n.meta.get("tensor_meta") is None:
            n.meta["value"] = result
        return result


def _read(graph: fx.GraphModule) -> list[Op]:
    modules: dict[str, nn.Module] = dict(graph.named_modules())
    names: dict[fx.Node, str] = {}
    ops: list[Op] = []
    used: dict[str, str] = {}
    owners: dict[int, str] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            if names:
                raise InputError(
                    "expected a network with one input, got several; wrap it in a module that takes the image"
                )
            names[node] = "image"
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or not ops or names[result] != ops[-1].name:
                raise InputError(
                    "expected a network whose last operator gives the logits, got another output structure"
                )
        elif parts_of(node):
            names[node] = names[tensors(node)[0]]  # its items are slices of that
        elif not is_shape(node):
            found = _convert(node, modules, names, {op.name for op in ops})
            if not found:  # no effect
                names[node] = names[_nodes(node)[0]]
                continue
            if found[-1].module is not None:
                if node.target in used:
                    raise InputError(
                        f"expected each layer to be used once, got {node.target!r} twice; give each use a layer"
                    )
                used[str(node.target)] = found[-1].name
                _check_untied(modules[str(node.target)], str(node.target), owners)
            ops += found
            if not ops[-1].args.get("keepdim", True):  # a mean that drops the plane: our averages keep it as 1x1
                flat = free_name(ops[-1].name + "_flat", {op.name for op in ops})
                ops.append(Op(flat, "flatten", (ops[-1].name,), ops[-1].shape))
            names[node] = ops[-1].name
    return ops


def _check_untied(module: nn.Module, path: str, owners: dict[int, str]) -> None:
    """Refuse a weight that two layers share: each layer gets its own copy here, and training would part them."""
    for parameter in module.parameters():
        if id(parameter) in owners:
            raise InputError(
                f"expected layers with weights of their own, got {owners[id(parameter)]!r} and {path!r} with one "
                "between them; give each its own"
            )
        owners[id(parameter)] = path


def _convert(node: fx.Node, modules: dict[str, nn.Module], names: dict[fx.Node, str], taken: set[str]) -> list[Op]:
    """Return the operators that a node stands for, in order; none if it has no effect."""
    name = free_name((str(node.target) if node.op == "call_module" else node.name).replace(".", "_"), taken)
    shape = shape_of(node)
    inputs = tuple(names[n] for n in _nodes(node))
    make: Callable[..., Op] = lambda kind, **kw: Op(name, kind, inputs, shape, **kw)  # noqa: E731
    if node.op not in ("call_module", "call_function", "call_method"):
        raise InputError(f"expected {SUPPORTED}; got {node.op} {node.target!r}, which has no integer form here")
    module = modules[str(node.target)] if node.op == "call_module" else None
    if (cut := _part(node)) is not None:
        return _chain((name, taken), cut, inputs[0], tensors(_nodes(node)[0])[0])
    function = function_of(node, module)
    if function is not None:
        return [make("table", args={"function": function})]
    if isinstance(module, nn.ConvTranspose2d):
        moves, layer = as_convolution(str(node.target), module)
        before = _chain((free_name(f"{name}_zeros", taken), taken), moves, inputs[0], _nodes(node)[0])
        read = (before[-1].name,) if before else inputs
        return [*before, Op(name, "conv", read, shape, module=layer)]
    moves = moves_of(node, module)
    if moves is not None:
        return _chain((name, taken), moves, inputs[0], _nodes(node)[0])
    op = _function(node, make) if module is None else _module(module, str(node.target), make, node)
    if op is not None and op.kind == "upsample":
        moves = upsampled(name, shape_of(_nodes(node)[0]), shape, "nearest")
        return _chain((name, taken), moves, inputs[0], _nodes(node)[0])
    return [] if op is None else [op]


def _part(node: fx.Node) -> list[Geometry] | None:
    """Return the slice that an item of a chunk or split is."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    cut = parts_of(node.args[0])
    if cut is None:
        return None
    (axis, sizes), index = cut, int(str(node.args[1]))
    index %= len(sizes)
    return [Slice(axis, sum(sizes[:index]), sum(sizes[: index + 1]))]


def _chain(names: tuple[str, set[str]], moves: list[Geometry], source: str, read: fx.Node) -> list[Op]:
    """Return one operator per move, the last of them under the first of `names`, beside which others are taken."""
    name, taken = names
    shape = shape_of(read)
    ops: list[Op] = []
    for index, how in enumerate(moves):
        shape = how.result(shape)
        own = name if index == len(moves) - 1 else free_name(f"{name}_{index}", taken)
        ops.append(Op(own, "move", (source,), shape, args={"how": how}))
        source = own
    return ops


def free_name(name: str, taken: set[str]) -> str:
    """Return a name that no operator has, nor the image, nor nn.ModuleDict for itself (`keys`, `pop`, ...)."""
    while name in RESERVED or name in taken or hasattr(nn.ModuleDict, name):
        name += "_"
    return name


def _module(module: nn.Module, path: str, make: Callable[..., Op], node: fx.Node) -> Op | None:
    match module:
        case nn.Conv2d():
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise InputError(
                    f"expected zero padding given in numbers at {path!r}, got {module.padding_mode} {module.padding}"
                )
            return make("conv", module=module)
        case nn.Linear():
            return make("linear", module=module)
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            if not module.affine or not module.track_running_stats:
                raise InputError(f"expected BatchNorm with affine=True and running statistics at {path!r}; set both")
            return make("batchnorm", module=module)
        case nn.ReLU6():
            return make("relu", relu=6.0)
        case nn.ReLU():
            return make("relu", relu=INF)
        case nn.MaxPool2d():
            return _maxpool(
                path, make, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            )
        case nn.AvgPool2d():
            args = (module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad)
            return _avgpool(path, make, *args, module.divisor_override)
        case nn.AdaptiveAvgPool2d():
            return _adaptive(path, make, module.output_size, node)
        case Codewords():
            return make("codebook", module=module)
        case nn.Flatten():
            return make("flatten")
        case nn.Dropout() | nn.Dropout2d():
            return make("dropout", args={"p": module.p})
        case nn.Identity():
            return None
    raise InputError(f"expected {SUPPORTED}; got {type(module).__name__} at {path!r}: replace it or keep it outside")


def _function(node: fx.Node, make: Callable[..., Op]) -> Op | None:
    target, name = node.target, node.name

    def arg(position: int, key: str, default: Any) -> Any:
        return node.args[position] if len(node.args) > position else node.kwargs.get(key, default)

    if target in (operator.add, operator.iadd, torch.add, "add", "add_"):
        if len(_nodes(node)) != 2 or arg(2, "alpha", 1) != 1:
            raise InputError(
                f"expected a sum of two tensors at {name!r}, got a constant or a factor; use a layer's bias"
            )
        return make("add")
    if target in (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"):
        if len(_nodes(node)) != 2:
            raise InputError(
                f"expected a product of two tensors at {name!r}, got a constant; put the factor into a layer"
            )
        return make("mul")
    if target in (torch.relu, F.relu, "relu", "relu_", torch.relu_):
        return make("relu", relu=INF)
    if target is F.relu6:
        return make("relu", relu=6.0)
    if target is torch.cat or target is torch.concat:
        if arg(1, "dim", 0) not in (1, -3):
            raise InputError(f"expected a concatenation of channels (dim=1) at {name!r}, got dim={arg(1, 'dim', 0)}")
        return make("concat")
    if target in (torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze", torch.squeeze):
        return make("flatten")
    if target in ("mean", torch.mean):
        dims = arg(1, "dim", ())
        if sorted(d % 4 for d in (dims if isinstance(dims, (tuple, list)) else [dims])) != [2, 3]:
            raise InputError(f"expected a mean over height and width at {name!r}, got dim={dims}")
        return make("avgpool", args={"kernel": None, "keepdim": bool(arg(2, "keepdim", False))})
    if getattr(target, "__name__", "") == "stochastic_depth" and arg(2, "mode", "") == "row":
        return make("dropout", args={"p": arg(1, "p", 0.0), "whole": True})
    if target is F.dropout:
        return make("dropout", args={"p": arg(1, "p", 0.5)})
    if target in (F.max_pool2d, torch.max_pool2d):
        kernel = arg(1, "kernel_size", None)
        rest = (
            arg(2, "stride", None) or kernel,
            arg(3, "padding", 0),
            arg(4, "dilation", 1),
            arg(5, "ceil_mode", False),
        )
        return _maxpool(name, make, kernel, *rest)
    if target is F.avg_pool2d:
        kernel = arg(1, "kernel_size", None)
        rest = (
            arg(2, "stride", None),
            arg(3, "padding", 0),
            arg(4, "ceil_mode", False),
            arg(5, "count_include_pad", True),
            arg(6, "divisor_override", None),
        )
        return _avgpool(name, make, kernel, *rest)
    if target is F.adaptive_avg_pool2d:
        return _adaptive(name, make, arg(1, "output_size", 1), node)
    spelled = getattr(target, "__name__", str(target))
    raise InputError(f"expected {SUPPORTED}; got {spelled!r} at {name!r}: replace it or keep it outside the network")


def _maxpool(name: str, make: Callable[..., Op], kernel, stride, padding, dilation, ceil_mode) -> Op:
    if dilation not in (1, (1, 1)):
        raise InputError(f"expected MaxPool2d without dilation at {name!r}; set dilation=1")
    return make("maxpool", args={"pool": nn.MaxPool2d(kernel, stride, padding, ceil_mode=bool(ceil_mode))})


def _avgpool(name: str, make: Callable[..., Op], kernel, stride, padding, ceil_mode, count_include_pad, divisor) -> Op:
    if ceil_mode or (padding not in (0, (0, 0)) and not count_include_pad) or divisor is not None:
        raise InputError(
            f"expected AvgPool2d whose windows all have one size at {name!r}, which divides; "
            "set ceil_mode=False, padding=0, divisor_override=None"
        )
    return make("avgpool", args={"kernel": kernel, "stride": stride, "padding": padding})


def _adaptive(name: str, make: Callable[..., Op], size, node: fx.Node) -> Op | None:
    want = (size, size) if isinstance(size, int) or size is None else tuple(size)
    have = tuple(_nodes(node)[0].meta["tensor_meta"].shape[2:])
    want = tuple(h if w is None else w for w, h in zip(want, have, strict=True))
    if want == (1, 1):
        return make("avgpool", args={"kernel": None, "keepdim": True})
    if want == have:
        return None
    if all(w % h == 0 for w, h in zip(want, have, strict=True)):
        return make("upsample")
    if all(h % w == 0 for w, h in zip(want, have, strict=True)):
        kernel = (have[0] // want[0], have[1] // want[1])
        return make("avgpool", args={"kernel": kernel, "stride": kernel, "padding": 0})
    raise InputError(
        f"expected an adaptive pooling that divides its input at {name!r}, got {have} to {want}; use a fixed kernel"
    )


def _nodes(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that a node reads, in order, one that it reads twice two times."""
    found: list[fx.Node] = []
    for value in (*node.args, *node.kwargs.values()):
        found += [v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, fx.Node)]
    read = set(tensors(node))
    return [n for n in found if n in read]


def _fuse(ops: list[Op]) -> tuple[Op, ...]:
    """Attach each BatchNorm and ReLU to the layer before it, where that layer feeds nothing else."""
    fused: dict[str, Op] = {}
    renamed: dict[str, str] = {}
    readers: dict[str, int] = {}
    for op in ops:
        for name in op.inputs:
            readers[name] = readers.get(name, 0) + 1
    for op in ops:
        alone = readers.get(op.inputs[0], 0) == 1
        op = replace(op, inputs=tuple(renamed.get(n, n) for n in op.inputs))
        before = fused.get(op.inputs[0])
        if before is not None and alone and _absorbs(before, op):
            fused[before.name] = replace(before, norm=before.norm or op.module, relu=op.relu)
            renamed[op.name] = before.name
        else:
            fused[op.name] = op
    return tuple(fused.values())


def _absorbs(layer: Op, op: Op) -> bool:
    """Tell whether a BatchNorm or ReLU becomes part of the operator before it."""
    if layer.relu is not None:
        return False
    if op.kind == "batchnorm":
        return layer.kind in ("conv", "linear") and layer.norm is None
    return op.kind == "relu" and layer.kind in ("conv", "linear", "add", "concat", "batchnorm")
