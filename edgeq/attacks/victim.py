"""Victims made from a multi-bit network: one width, several together, or all but one.

The victim runs the *deployed* integer arithmetic, whatever mode the network is in, and gradients pass straight through
its roundings; so what is attacked is what ships. Nothing of the network is changed: not its mode, its active width, its
statistics, nor any gradient that it holds.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class Surrogate:
    """A network's logits at some of its widths; made by `surrogate`.

    Attributes:
        net: The network.
        bits: The widths. One gives logits `(n, classes)`, several `(widths, n, classes)`.
    """

    net: MultiBitNet
    bits: tuple[int, ...]

    def __call__(
        self, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "*widths n classes"]:
        """Return the logits."""
        logits = [self._at(images, b) for b in self.bits]
        return logits[0] if len(logits) == 1 else torch.stack(logits)

    def _at(self, images: Tensor, bits: int) -> Tensor:
        width = self.net.width
        before, width.deployed = width.deployed, True
        try:
            with at_bits(self.net, bits):
                return self.net(images).float()
        finally:
            width.deployed = before


def surrogate(net: MultiBitNet, bits: int | tuple[int, ...] = ()) -> Surrogate:
    """Return a victim: white-box on one width, joint over several, or over all of the network's (no widths given)."""
    wanted = (bits,) if isinstance(bits, int) else tuple(bits) or net.bits
    unknown = [b for b in wanted if b not in net.bits]
    if unknown:
        raise InputError(f"expected some of the network's widths {list(net.bits)}, got {unknown}; leave them out")
    return Surrogate(net, wanted)


def all_but(net: MultiBitNet, bits: int) -> Surrogate:
    """Return the victim of an attacker who has every width but the one that is deployed (leave one out)."""
    others = tuple(b for b in net.bits if b != bits)
    if not others:
        raise InputError(f"expected a network with other widths than {bits}, got none; train it at several")
    return surrogate(net, others)


@torch.no_grad()
def answers(
    victim: Surrogate, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"], *, batch_size: int = 500
) -> Float[Tensor, "*widths n classes"]:
    """Return the logits of many images, batch by batch."""
    return torch.cat([victim(part) for part in images.split(batch_size)], -2)
