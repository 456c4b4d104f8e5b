"""The integer graph in batched torch, for evaluation: the same codes as `reference.py`, many times faster.

Codes live in float32 tensors. They and the weights have at most 8 significant bits, and a sum of products whose terms
add up to at most 2^24 in magnitude is exact in float32 in any order, without relying on cancellation. A layer beyond
that is cut into groups of input channels that keep it, whose sums meet in float64. Requantization multiplies by the
short multiplier where the inequality of `multiplier.py` holds and uses 64-bit integers elsewhere.

What would spoil this is switched off around every call and put back afterwards: autocast, TF32, and transformed
convolutions (NNPACK on the CPU; on CUDA cuDNN, instead of which windows are unfolded and multiplied as matrices).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

from edgeq.errors import InputError
from edgeq.quant.exact import full_float32
from edgeq.quant.moves import moved

from .graph import (
    INPUT,
    INPUT_ZERO,
    Add,
    AvgPool,
    Codebook,
    Concat,
    Conv,
    Edge,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool,
    Move,
    Mul,
    Node,
    PlaneSum,
    Rescale,
    Table,
)
from .graph import reach as layer_reach
from .multiplier import FLOAT32_EXACT, Requant, requant_is_exact, requantize
from .reference import half_even_ratio

Step = Callable[..., Tensor]


@dataclass(frozen=True)
class _Compiled:
    name: str
    inputs: tuple[str, ...]
    step: Step
    last_use: tuple[str, ...]


class TorchExecutor:
    """Runs an integer graph on a torch device, bit for bit as the reference interpreter.

    Args:
        graph: The network.
        device: Where to run it; the inputs may be anywhere.
        batch: Images at a time, which bounds the memory.
    """

    def __init__(self, graph: IntegerGraph, device: torch.device | str = "cpu", *, batch: int = 256) -> None:
        if batch < 1:
            raise InputError(f"expected a batch of at least 1, got {batch}; give the number of images to run at once")
        self.graph = graph
        self.device = torch.device(device)
        self.batch = batch
        last = {name: node.name for node in graph.nodes for name in node.inputs}
        self._steps = [
            _Compiled(
                node.name,
                node.inputs,
                _compile(node, [graph.edges[name] for name in node.inputs], self.device),
                tuple(name for name in dict.fromkeys(node.inputs) if last[name] == node.name),
            )
            for node in graph.nodes
        ]

    def __call__(self, images: UInt8[Tensor, "batch channels height width"]) -> Int32[Tensor, "batch classes *plane"]:
        """Return the int32 logits, or codes of the images that are drawn, on the executor's device."""
        output = self.graph.output
        with _exact_arithmetic(self.device):
            parts = [self._run(part, keep=False)[output] for part in self._batches(images)]
        return torch.cat(parts).to(torch.int32)

    def edges(self, images: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Return the int32 codes of every edge, by name."""
        with _exact_arithmetic(self.device):
            parts = [self._run(part, keep=True) for part in self._batches(images)]
        return {name: torch.cat([part[name] for part in parts]).to(torch.int32) for name in parts[0]}

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.graph.input_shape:
            raise InputError(
                f"expected uint8 images of shape (batch, {', '.join(map(str, self.graph.input_shape))}), "
                f"got {images.dtype} {tuple(images.shape)}; resize and convert them first"
            )
        return iter(images.split(self.batch))

    def _run(self, images: Tensor, *, keep: bool) -> dict[str, Tensor]:
        x = images.to(self.device).float() - INPUT_ZERO
        if self.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        codes = {INPUT: x}
        for compiled in self._steps:
            codes[compiled.name] = compiled.step(*(codes[name] for name in compiled.inputs))
            if not keep:
                for name in compiled.last_use:
                    del codes[name]
        return codes


@contextmanager
def _exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Switch off what may round or transform float32 products; the caller's settings come back afterwards."""
    plain = torch.autocast(device.type, enabled=False), torch.backends.nnpack.flags(enabled=False)
    with torch.no_grad(), plain[0], plain[1], full_float32(device):
        yield  # a CPU's bfloat16 products would still be exact: codes have 8 significant bits


def _compile(node: Node, edges: list[Edge], device: torch.device) -> Step:
    match node:
        case Conv():
            return _conv(node, edges[0], device)
        case Linear():
            return _linear(node, edges[0], device)
        case Add():
            return _add(node, edges[0], edges[1])
        case Mul():
            return _multiply(node, edges[0], edges[1], device)
        case Rescale():
            return _rescale(node, edges[0], device)
        case Table():
            table = torch.from_numpy(node.table).float().to(device)
            return lambda x: table[(x - node.lo).long()]
        case MaxPool():
            return lambda x: F.max_pool2d(_padded(x, node.padding, -torch.inf), node.kernel, node.stride)
        case AvgPool():
            return _average(node, edges[0], device)
        case Codebook():
            return _codebook(node, edges[0], device)
        case PlaneSum():
            return lambda x: x.double().sum((2, 3))
        case Move():
            return lambda x: moved(x, node.how)
        case Concat():
            return lambda *operands: torch.cat(operands, 1)
        case Flatten():
            return lambda x: x.contiguous().flatten(1)  # in NCHW order


def _conv(node: Conv, edge: Edge, device: torch.device) -> Step:
    parts = _parts(node, edge)
    exact = len(parts) == 1 and _largest(layer_reach(node, edge)) <= FLOAT32_EXACT
    dtype = torch.float64 if parts == [] else torch.float32
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    slices = parts or [slice(None)]
    weights = [
        torch.from_numpy(node.weight[:, part]).to(device, dtype).contiguous(memory_format=layout) for part in slices
    ]
    bias = torch.from_numpy(node.bias).view(1, -1, 1, 1).to(device, torch.float32 if exact else torch.float64)
    requant = _sums if node.requant is None else _requant(node.requant, layer_reach(node, edge), device)
    convolve = _unfolded if device.type == "cuda" else F.conv2d
    options = {"stride": node.stride, "dilation": node.dilation, "groups": node.groups}

    def step(x: Tensor) -> Tensor:
        x = _padded(x, node.padding, 0.0).to(dtype)
        if exact:
            return requant(convolve(x, weights[0], **options).add_(bias))
        sums = (convolve(x[:, part], weight, **options) for part, weight in zip(slices, weights, strict=True))
        return requant(sum((part.double() for part in sums), bias))

    return step


def _codebook(node: Codebook, edge: Edge, device: torch.device) -> Step:
    """Score by a convolution; torch's argmax takes the first of equals."""
    scores, words = _conv(node.scores, edge, device), torch.from_numpy(node.weight).float().to(device)
    return lambda x: F.embedding(scores(x).argmax(1), words).permute(0, 3, 1, 2)


def _linear(node: Linear, edge: Edge, device: torch.device) -> Step:
    exact = _largest(layer_reach(node, edge)) <= FLOAT32_EXACT
    dtype = torch.float32 if exact else torch.float64
    weight, bias = (torch.from_numpy(value.astype(np.float64)).to(device, dtype) for value in (node.weight, node.bias))
    requant = _sums if node.requant is None else _requant(node.requant, layer_reach(node, edge), device)
    return lambda x: requant(F.linear(x.to(dtype), weight, bias))


def _sums(acc: Tensor) -> Tensor:
    """Keep accumulators as they are; int32 logits may need more than 24 bits."""
    return acc.double()


def _add(node: Add, a: Edge, b: Edge) -> Step:
    exact = a.reach * abs(node.m_a) + b.reach * abs(node.m_b) <= FLOAT32_EXACT
    dtype = torch.float32 if exact else torch.float64  # 2^53 is beyond every pair of codes and 31-bit multipliers
    scale = 2.0**-node.n

    def step(x: Tensor, y: Tensor) -> Tensor:
        total = x.to(dtype).mul(node.m_a).add_(y.to(dtype), alpha=node.m_b)
        return total.mul_(scale).round_().clamp_(node.lo, node.hi).float()

    return step


def _multiply(node: Mul, a: Edge, b: Edge, device: torch.device) -> Step:
    """Products of two bytes are exact in float32; one multiplier for all of them."""
    requant = _requant(node.requant, np.array([a.reach * b.reach]), device)
    return lambda x, y: requant(x * y)


def _rescale(node: Rescale, edge: Edge, device: torch.device) -> Step:
    codes = np.arange(edge.lo, edge.hi + 1, dtype=np.int32)
    table = torch.from_numpy(np.clip(half_even_ratio(codes, node.num, node.den), node.lo, node.hi)).float()
    same = torch.from_numpy(codes).float().mul_(node.num).div_(node.den).round_().clamp_(node.lo, node.hi)
    if torch.equal(same, table):  # all codes were tried
        return lambda x: x.mul(node.num).div_(node.den).round_().clamp_(node.lo, node.hi)
    table = table.to(device)
    return lambda x: table[(x - edge.lo).long()]


def _average(node: AvgPool, edge: Edge, device: torch.device) -> Step:
    channels, height, width = edge.shape
    kernel = node.kernel or (height, width)
    reach = np.full(channels, edge.reach * kernel[0] * kernel[1], np.int64)
    dtype = torch.float32 if _largest(reach) <= FLOAT32_EXACT else torch.float64
    rq = node.requant
    m = np.broadcast_to(rq.m, (channels,)).astype(np.int32)
    requant = _requant(Requant(m, rq.n, rq.lo, rq.hi), reach, device)
    stride = kernel if node.kernel is None else node.stride
    return lambda x: requant(F.avg_pool2d(_padded(x, node.padding, 0.0).to(dtype), kernel, stride, divisor_override=1))


def _requant(rq: Requant, reach: np.ndarray, device: torch.device) -> Step:
    """Return the function from accumulators (float32 or float64, integers) to codes (float32)."""
    if requant_is_exact(rq, reach).all():
        factor = torch.from_numpy(rq.m.astype(np.float32)).mul_(2.0**-rq.n).to(device)

        def fast(acc: Tensor) -> Tensor:
            scale = factor.view(-1, *(1,) * (acc.ndim - 2))
            return acc.float().mul_(scale).round_().clamp_(rq.lo, rq.hi)

        return fast

    def slow(acc: Tensor) -> Tensor:
        codes = requantize(acc.cpu().to(torch.int64).numpy(), rq)
        return torch.from_numpy(codes).to(device).float()

    return slow


def _unfolded(x: Tensor, weight: Tensor, *, stride, dilation, groups: int) -> Tensor:
    """Convolve by one matrix product per group: plain sums of products, whatever cuDNN would choose."""
    out, per_group, kh, kw = weight.shape
    height, width = (
        (size - (k - 1) * d - 1) // s + 1 for size, k, d, s in zip(x.shape[2:], (kh, kw), dilation, stride, strict=True)
    )
    columns = F.unfold(x, (kh, kw), dilation=dilation, stride=stride)
    columns = columns.view(len(x), groups, per_group * kh * kw, height * width)
    product = weight.reshape(groups, out // groups, per_group * kh * kw) @ columns
    return product.reshape(len(x), out, height, width)


def _padded(x: Tensor, padding: tuple[int, int, int, int], value: float) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any(padding) else x


def _parts(node: Conv, edge: Edge) -> list[slice]:
    """Cut the input channels so that every part's sum of magnitudes is within 2^24; empty where that is impossible."""
    channels = node.weight.shape[1]
    magnitude = np.abs(node.weight.astype(np.int64)).sum((2, 3)) * edge.reach  # out, in per group
    if _largest(magnitude.sum(1)) <= FLOAT32_EXACT:
        return [slice(None)]
    if node.groups > 1 or _largest(magnitude) > FLOAT32_EXACT:
        return []
    parts, start, total = [], 0, np.zeros(len(magnitude), np.int64)
    for channel in range(channels):
        total = total + magnitude[:, channel]
        if _largest(total) > FLOAT32_EXACT:
            parts.append(slice(start, channel))
            start, total = channel, magnitude[:, channel]
    return [*parts, slice(start, channels)]


def _largest(values: np.ndarray) -> int:
    return int(values.max(initial=0))
