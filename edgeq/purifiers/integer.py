"""A trained purifier in integers: bytes in, bytes out, in a few widths.

The two halves and what lies between them are operators that `edgeq.multibit` knows, so a purifier becomes a multi-bit
network that draws (`draws=True`), is calibrated on images without training, and is lowered like any other. Noise has
no integer form here, and a deterministic stand-in would be another purifier: such purifiers are refused by name.
"""

from collections import OrderedDict
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from edgeq import calib
from edgeq.data import ImageFiles, Split, batches
from edgeq.errors import InputError
from edgeq.pixels import Pixels
from edgeq.purifiers.base import AbstractPurifier, to_bytes
from edgeq.purifiers.metrics import psnr, ssim
from edgeq.purifiers.purevq import PureVQPurifier
from edgeq.purifiers.srl import SRLPurifier
from edgeq.purifiers.vae import VAEPurifier
from edgeq.quant.bits import FLOAT_BITS, at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.quant.units import PIXEL_STEP, PIXEL_ZERO

SEEN = Pixels((0.5,), (0.5,))  # purifiers see and draw -1...1
DECODER = "decoder_0_0"  # the first layer that reads what passed the bottleneck


@dataclass(frozen=True)
class IntegerFidelity:
    """What a width keeps, on the bytes that it draws.

    Attributes:
        bits: The width; 32 is the float purifier.
        psnr: Of the clean images, in dB.
        ssim: Of the clean images.
        psnr_to_float: Of what the float purifier draws.
        codes_agree: Share of places where the float purifier's codeword is chosen; None without codewords.
    """

    bits: int
    psnr: float
    ssim: float
    psnr_to_float: float
    codes_agree: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """Return it as JSON has it."""
        return asdict(self)


def integer_purifier(
    purifier: AbstractPurifier,
    images: UInt8[Tensor, "n c h w"],
    *,
    bits: tuple[int, ...],
    passes: tuple[str, ...] = (),
) -> MultiBitNet:
    """Return a multi-bit network of a trained purifier, calibrated on images; the purifier stays as it is.

    Args:
        purifier: In evaluation mode.
        images: Bytes, some hundred; the integer models take images of their size.
        bits: Widths below 32, which is there too.
        passes: What improves the result, see `edgeq.calib.calibrate`.

    Raises:
        InputError: The purifier has no integer form.
    """
    channels, height, width = images.shape[1:]
    config = QuantConfig(bits=(FLOAT_BITS, *bits))
    net = multibit(
        operators(purifier), image_shape=(channels, height, width), config=config, pixels=SEEN, draws=True
    ).eval()
    calib.calibrate(net, images, passes=passes)
    return net


def operators(purifier: AbstractPurifier) -> nn.Module:
    """Return a purifier as one network of operators, from -1...1 to -1...1.

    Raises:
        InputError: It has no integer form.
    """
    reason = purifier.not_exportable()
    if isinstance(purifier, SRLPurifier):
        purifier = purifier.smooth  # type: ignore[assignment]
    if reason or not isinstance(purifier, PureVQPurifier | VAEPurifier):
        reason = reason or f"{type(purifier).__name__} is not made of the operators that become integers"
        raise InputError(f"expected a purifier that can run in integers, got one that cannot: {reason}")
    if isinstance(purifier, VAEPurifier):
        parts = {"encoder": _means(purifier.encoder, purifier.config.latent), "decoder": purifier.decoder}
    else:
        scale, between = _affine(purifier.scale), purifier.bottleneck.operator()
        parts = {"encoder": purifier.encoder, "scale": scale, "bottleneck": between, "decoder": purifier.decoder}
    return nn.Sequential(OrderedDict(parts)).eval()


def _affine(norm: nn.Module) -> nn.BatchNorm2d:
    """Return a BatchNorm without parameters as one whose gain is 1 and whose shift is 0."""
    assert isinstance(norm, nn.BatchNorm2d)
    whole = nn.BatchNorm2d(norm.num_features, eps=norm.eps)
    whole.load_state_dict({**whole.state_dict(), **norm.state_dict()})
    return whole


def _means(encoder: nn.Sequential, count: int) -> nn.Sequential:
    """Return an encoder without the rows of its last layer that give log variances."""
    *rest, last = encoder
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    means = nn.Conv2d(last.in_channels, count, 1)
    means.weight, means.bias = nn.Parameter(last.weight[:count].detach()), nn.Parameter(last.bias[:count].detach())
    return nn.Sequential(*rest, means)


@torch.no_grad()
def redrawn(net: MultiBitNet, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Return the bytes that a network draws at its active width."""
    return _pixels(net(images))


def _pixels(drawn: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    return (drawn / PIXEL_STEP + PIXEL_ZERO).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def integer_fidelity(
    purifier: AbstractPurifier, net: MultiBitNet, split: Split | ImageFiles, *, batch_size: int = 250
) -> tuple[IntegerFidelity, ...]:
    """Return what each width of a purifier's network keeps on a split; modes are put back.

    Args:
        purifier: The float purifier, in evaluation mode.
        net: From `integer_purifier`.
        split: Images.
        batch_size: Images at a time.
    """
    device, was_training, total = next(net.parameters()).device, net.training, 0
    sums = {b: torch.zeros(4, dtype=torch.float64) for b in net.bits}
    net.eval()
    try:
        for images, _ in batches(split, batch_size, device=device):
            total += len(images)
            target = to_bytes(purifier(images))
            for b in net.bits:
                with at_bits(net, b):
                    sums[b] += _measured(purifier, net, images, target)
    finally:
        net.train(was_training)
    rows = []
    for b in net.bits:
        clean, similar, near, agree = (float(value) / max(total, 1) for value in sums[b])
        rows.append(IntegerFidelity(b, clean, similar, near, agree if isinstance(purifier, PureVQPurifier) else None))
    return tuple(rows)


def _measured(purifier: AbstractPurifier, net: MultiBitNet, images: Tensor, target: Tensor) -> Tensor:
    """Return the sums of PSNR, SSIM, PSNR to the float purifier's images, and of the share of equal codewords."""
    behind = next(step.inputs[0] for step in net.steps if step.name == DECODER)
    values = net.values(images, keep=(behind,))
    clean, float_drawn, got = (x / 255.0 for x in (images, target, _pixels(values[net.names[-1]].real)))
    agree = torch.zeros(1)
    if isinstance(purifier, PureVQPurifier):
        agree = (purifier.bottleneck.numbers(values[behind].real) == purifier.indices(images)).float().mean((1, 2))
    found = (psnr(clean, got), ssim(clean, got), psnr(float_drawn, got), agree)
    return torch.stack([x.sum().double().cpu() for x in found])
