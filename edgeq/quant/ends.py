"""How a network begins and ends: what it sees of the pixels, and whether logits or pixels come out of it."""

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeq.errors import InputError
from edgeq.pixels import Pixels
from edgeq.quant.network import IMAGE
from edgeq.quant.trace import Op, free_name
from edgeq.quant.units import PIXEL_STEP, PIXEL_ZERO

LAYERS = ("conv", "linear")


def seen(ops: tuple[Op, ...], pixels: Pixels, image_shape: tuple[int, int, int]) -> tuple[Op, ...]:
    """Return a network that reads what `pixels` makes of the image."""
    channels = image_shape[0]
    gain, shift = torch.from_numpy(pixels.line(channels))
    layer = nn.Conv2d(channels, channels, 1, groups=channels)
    layer.weight = nn.Parameter((gain / PIXEL_STEP).float().reshape(-1, 1, 1, 1))
    layer.bias = nn.Parameter((shift + gain * PIXEL_ZERO).float())
    name = free_name("pixels", {op.name for op in ops})
    first = Op(name, "conv", (IMAGE,), tuple(image_shape), module=layer, args={"affine": True, "pixels": True})
    rest = (replace(op, inputs=tuple(name if read == IMAGE else read for read in op.inputs)) for op in ops)
    return (first, *rest)


def back(pixels: Pixels, channels: int) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return the gain and shift from (pixel / 255 - mean) / std, as a network draws it, to (pixel - 128) / 64."""
    gain, shift = torch.from_numpy(pixels.line(channels))
    return PIXEL_STEP / gain, -PIXEL_STEP * (shift / gain + PIXEL_ZERO)


def drawn(ops: tuple[Op, ...], pixels: Pixels, image_shape: tuple[int, int, int]) -> tuple[Op, ...]:
    """Return a network that draws an image, with results (pixel - 128) / 64: its last layer takes that over."""
    *rest, last = ops
    layer = last.module
    if last.kind != "conv" or not isinstance(layer, nn.Conv2d) or last.shape[0] != image_shape[0]:
        raise InputError(
            f"expected a network that draws images to end in a plain convolution with {image_shape[0]} channels, got "
            f"{last.kind} at {last.name!r} with results of shape {last.shape}; leave out what follows it"
        )
    gain, shift = back(pixels, image_shape[0])
    new, bias = copy.deepcopy(layer), torch.zeros(len(gain)) if layer.bias is None else layer.bias.detach()
    gain, shift = gain.to(layer.weight.device), shift.to(layer.weight.device)
    new.weight = nn.Parameter((layer.weight.detach() * gain.reshape(-1, 1, 1, 1)).float())
    new.bias = nn.Parameter((bias.to(gain) * gain + shift).float())
    return (*rest, replace(last, module=new))


def as_logits(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Return a network that ends in an average over the plane with its sums as logits."""
    if len(ops) < 2 or ops[-1].kind != "flatten" or ops[-2].kind != "avgpool" or ops[-2].args["kernel"] is not None:
        return ops
    *rest, average, last = ops
    return (*rest, Op(last.name, "planesum", average.inputs, last.shape))


def check_ends(ops: tuple[Op, ...]) -> None:
    """Refuse a network that does not end in a plain layer or sums, or whose image several operators read."""
    last = ops[-1] if ops else None
    plain = last is not None and last.kind in LAYERS and last.norm is None and last.relu is None
    if last is None or not (plain or last.kind == "planesum"):
        got = "nothing" if last is None else f"{last.kind} at {last.name!r}"
        raise InputError(
            f"expected a network that ends in its logits, a plain Linear layer, a plain convolution (logits of every "
            f"pixel) or an average over the plane, got {got}; add one, or leave out what follows the logits"
        )
    pixels = {IMAGE}  # the image, and what only moves it
    readers = []
    for op in ops:
        if pixels & set(op.inputs):
            if op.kind in ("flatten", "move"):
                pixels.add(op.name)
            else:
                readers.append(op)
    if len(readers) != 1 or readers[0].kind not in LAYERS:
        got = readers[0] if readers else ops[0]
        raise InputError(f"expected one convolution or linear layer to read the image, got {got.kind} at {got.name!r}")
