"""Which calls and modules of a traced network are moves: reshapes, transpositions, slices, upsampling.

The shapes are those of the trace, so `x.view(n, groups, c // groups, h, w)` and `torch.channel_shuffle` come out alike.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import TensorMetadata

from edgeq.errors import InputError
from edgeq.export.moves import Geometry, Reshape, Slice, Spread, Transpose, Upsample

RESHAPES = ("view", "reshape", torch.reshape, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "unflatten")
SWAPS = ("transpose", torch.transpose, "swapaxes", torch.swapaxes)
PERMUTES = ("permute", torch.permute)
SHUFFLES = (F.channel_shuffle, torch.channel_shuffle)
PARTS = ("chunk", torch.chunk, "split", torch.split)
NOTHING = ("contiguous",)


def is_shape(node: fx.Node) -> bool:
    """Tell whether a node computes numbers from shapes, and no tensor."""
    if node.op not in ("call_function", "call_method") or node.meta.get("tensor_meta") is not None:
        return False
    return node.target in ("size", "dim", getattr) or not any(tensors(node))


def tensors(node: fx.Node) -> list[fx.Node]:
    """Return the nodes with tensors that a node reads, in order."""
    return [n for n in node.all_input_nodes if n.meta.get("tensor_meta") is not None]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor without the batch axis."""
    meta = node.meta["tensor_meta"]
    return tuple(meta.shape[1:]) if isinstance(meta, TensorMetadata) else ()


def number(value: Any) -> Any:
    """Return an argument with each node that computes numbers as its number."""
    return map_arg(value, lambda node: node.meta.get("value", node))


def parts_of(node: fx.Node) -> tuple[int, list[int]] | None:
    """Return (axis after the batch, sizes) where a node cuts a tensor into several."""
    if node.op not in ("call_function", "call_method") or node.target not in PARTS:
        return None
    meta = node.meta["tensor_meta"]
    dim = number(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) % len(meta[0].shape)
    if dim == 0:
        raise _batch(node)
    return dim - 1, [int(part.shape[dim]) for part in meta]


def moves_of(node: fx.Node, module: nn.Module | None) -> list[Geometry] | None:
    """Return the moves that a node stands for, none if it has no effect, or None where it is something else."""
    target = type(module) if module is not None else node.target
    if target in (operator.getitem, "narrow", torch.narrow):
        return _slices(node)
    read = tensors(node)[:1]
    if not read or not isinstance(node.meta.get("tensor_meta"), TensorMetadata):
        return None
    given, result = shape_of(read[0]), shape_of(node)
    if target in NOTHING:
        return []
    if target in RESHAPES or target in (nn.Unflatten,):
        return _reshaped(node, given, result)
    if target in SWAPS or target in PERMUTES:
        return [Transpose(_order(node, len(given) + 1, target in SWAPS))]
    if target in SHUFFLES or target is nn.ChannelShuffle:
        return shuffled(given, module.groups if isinstance(module, nn.ChannelShuffle) else number(node.args[1]))
    if target in (F.pixel_shuffle, torch.pixel_shuffle, nn.PixelShuffle):
        factor = module.upscale_factor if isinstance(module, nn.PixelShuffle) else number(node.args[1])
        return pixels_shuffled(given, factor)
    if target in (F.interpolate, nn.Upsample, nn.UpsamplingNearest2d):
        mode = module.mode if isinstance(module, nn.Upsample) else node.kwargs.get("mode", _at(node, 3, "nearest"))
        return upsampled(node.name, given, result, str(mode))
    return None


def shuffled(shape: Sequence[int], groups: int) -> list[Geometry]:
    """Return a channel shuffle."""
    c, h, w = shape
    return [Reshape((groups, c // groups, h, w)), Transpose((1, 0, 2, 3)), Reshape((c, h, w))]


def pixels_shuffled(shape: Sequence[int], factor: int) -> list[Geometry]:
    """Return a pixel shuffle: channels become pixels."""
    c, h, w = shape
    out = c // factor**2
    grown = Reshape((out, h * factor, w * factor))
    return [Reshape((out, factor, factor, h, w)), Transpose((0, 3, 1, 4, 2)), grown]


def upsampled(name: str, given: Sequence[int], result: Sequence[int], mode: str) -> list[Geometry]:
    """Return nearest-neighbour upsampling by whole factors, or say what is not that."""
    if len(given) != 3 or mode != "nearest":
        raise InputError(
            f"expected mode='nearest' at {name!r}, got {mode!r}; a mixture of neighbours is no move of codes: "
            "upsample by 'nearest' and convolve"
        )
    if any(b % a for a, b in zip(given[1:], result[1:], strict=True)):
        raise InputError(
            f"expected upsampling by whole factors at {name!r}, got {tuple(given[1:])} to {tuple(result[1:])}; "
            "choose a size that is a multiple"
        )
    factors = result[1] // given[1], result[2] // given[2]
    return [] if factors == (1, 1) else [Upsample(factors)]


def as_convolution(path: str, layer: nn.ConvTranspose2d) -> tuple[list[Geometry], nn.Conv2d]:
    """Return a transposed convolution as zeros between the pixels and a convolution with the kernel turned around."""
    stride, extra, dilation = ((int(a), int(b)) for a, b in (layer.stride, layer.output_padding, layer.dilation))
    assert not isinstance(layer.padding, str)
    padding = tuple(d * (k - 1) - p for d, k, p in zip(dilation, layer.kernel_size, layer.padding, strict=True))
    if min(padding) < 0 or any(e >= s for e, s in zip(extra, stride, strict=True)):
        raise InputError(
            f"expected a transposed convolution with padding below its kernel and output_padding below its stride at "
            f"{path!r}, got padding {layer.padding} and output_padding {extra}; lower them"
        )
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
    ).to(layer.weight)
    with torch.no_grad():
        groups = layer.weight.reshape(layer.groups, layer.in_channels // layer.groups, -1, *layer.kernel_size)
        conv.weight.copy_(groups.transpose(1, 2).flip(3, 4).reshape(conv.weight.shape))
        if conv.bias is not None and layer.bias is not None:
            conv.bias.copy_(layer.bias)
    plain = (stride, extra) == ((1, 1), (0, 0))
    return ([] if plain else [Spread(stride, extra)]), conv


def _reshaped(node: fx.Node, given: tuple[int, ...], result: tuple[int, ...]) -> list[Geometry] | None:
    if int(torch.Size(given).numel()) != int(torch.Size(result).numel()):
        raise _batch(node)
    if len(result) == 1 and len(given) > 1:
        return None  # a flatten
    return [] if given == result else [Reshape(result)]


def _order(node: fx.Node, axes: int, swap: bool) -> tuple[int, ...]:
    numbers: Any = number(node.args[1:])
    flat: Any = numbers[0] if numbers and isinstance(numbers[0], (tuple, list)) else numbers
    if not flat:
        flat = number(node.kwargs.get("dims") or (node.kwargs["dim0"], node.kwargs["dim1"]))
    order = [int(axis) % axes for axis in flat]
    if swap:
        first, second = order
        order = list(range(axes))
        order[first], order[second] = second, first
    if order[0] != 0:
        raise _batch(node)
    return tuple(axis - 1 for axis in order[1:])


def _slices(node: fx.Node) -> list[Geometry]:
    (read,) = tensors(node)[:1]
    shape = shape_of(read)
    if node.target is not operator.getitem:
        given = dict(zip(("dim", "start", "length"), node.args[1:], strict=False)) | dict(node.kwargs)
        dim, start, length = (int(number(given[key])) for key in ("dim", "start", "length"))
        axis = dim % (len(shape) + 1) - 1
        if axis < 0:
            raise _batch(node)
        start %= shape[axis]
        return [Slice(axis, start, start + length)]
    index: Any = number(node.args[1])
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, slice) and part.step in (None, 1) for part in index) or index[0] != slice(None):
        raise InputError(
            f"expected slices without steps, and all of the batch, at {node.name!r}, got {index}; use those, or "
            "torch.chunk"
        )
    moves: list[Geometry] = []
    for axis, part in enumerate(index[1:]):
        start, stop, _ = part.indices(shape[axis])
        if (start, stop) != (0, shape[axis]):
            moves.append(Slice(axis, start, stop))
    return moves


def _at(node: fx.Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default


def _batch(node: fx.Node) -> InputError:
    return InputError(f"expected the batch axis to stay where it is at {node.name!r}; move the other axes only")
