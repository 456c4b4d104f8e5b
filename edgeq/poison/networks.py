"""What an attacker takes from a run: its features, its logits, and which test images it names rightly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks.victim import surrogate
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet
from edgeq.quant.weighted import LinearUnit


@dataclass(frozen=True)
class Features:
    """What a network's last, linear layer reads, in the deployed arithmetic of one width.

    Attributes:
        net: The network.
        bits: The width.
    """

    net: MultiBitNet
    bits: int

    def __post_init__(self) -> None:
        """Check that there is such a layer."""
        last = self.net.steps[-1].name
        if not isinstance(self.net.units[last], LinearUnit):
            raise InputError(f"expected a network that ends in a linear layer, got {last!r}; choose another model")

    def __call__(self, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features."""
        width, (name,) = self.net.width, self.net.steps[-1].inputs
        before, width.deployed = width.deployed, True
        try:
            with at_bits(self.net, self.bits):
                return self.net.values(images, keep=(name,))[name].real.flatten(1)
        finally:
            width.deployed = before


@torch.no_grad()
def named(net: MultiBitNet, images: UInt8[Tensor, "n c h w"], *, batch_size: int = 250) -> Int64[Tensor, " n"]:
    """Return the classes that a network names at its highest width, on the images' own device."""
    view, device = surrogate(net, max(net.bits)), next(net.parameters()).device
    return torch.cat([view(part.to(device)).argmax(1) for part in images.split(batch_size)]).to(images.device)


@torch.no_grad()
def featured(features: Features, images: UInt8[Tensor, "n c h w"], *, batch_size: int = 250) -> Float[Tensor, "n d"]:
    """Return the features of many images, batch by batch."""
    device = next(features.net.parameters()).device
    return torch.cat([features(part.to(device)) for part in images.split(batch_size)])
