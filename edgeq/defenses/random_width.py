"""A random width for every image, at inference (random precision inference; Fu et al., ICML 2021).

The attacker does not know the draw. The right attack is one on its expectation (EOT over widths), and with a handful of
widths that is no sampling: `expected` is the mean over all of them, exactly.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeq.attacks import Surrogate, surrogate
from edgeq.quant.network import MultiBitNet


class RandomWidth:
    """A victim that answers every image at a width of its own, drawn anew at each call.

    Args:
        net: The network.
        bits: The widths to draw from; all of the network's by default.
        seed: Starts the generator of the draws; the same seed and calls give the same answers.
    """

    def __init__(self, net: MultiBitNet, bits: tuple[int, ...] = (), *, seed: int = 0) -> None:
        self.expected: Surrogate = surrogate(net, bits)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths that are drawn from."""
        return self.expected.bits

    def __call__(self, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits, each image's at its width. Give `expected` to an attack, not this."""
        drawn = torch.randint(len(self.bits), (len(images),), generator=self.generator).to(images.device)
        parts, places = [], []
        for position, bits in enumerate(self.bits):
            index = (drawn == position).nonzero()[:, 0]
            if len(index):
                parts.append(surrogate(self.expected.net, bits)(images[index]))
                places.append(index)
        return torch.cat(parts)[torch.cat(places).argsort()]
