"""An exponential moving average of a network's tensors.

    a <- d a + (1 - d) t,   d = min(decay, (1 + n) / (10 + n)) after n updates

The ramp forgets the initial weights in a short run too: with a decay of 0.999 from the start, they would still make
up 60 % of the average after 500 steps.
"""

import torch

from edgeq.quant.network import MultiBitNet


class Average:
    """The averaged copy of a network that is being trained."""

    def __init__(self, net: MultiBitNet, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: MultiBitNet, updates: int) -> None:
        """Move towards the network's present tensors; `updates` came before."""
        weight = 1.0 - min(self.decay, (1 + updates) / (10 + updates))
        for name, t in net.state_dict().items():
            if t.is_floating_point():
                self.tensors[name].lerp_(t, weight)
            else:
                self.tensors[name].copy_(t)

    def adopt(self, net: MultiBitNet, bits: int) -> None:
        """Take the steps and the BatchNorm of a width that enters as they are: what they were before means nothing."""
        for name, t in net.state_dict().items():
            if str(bits) in name.split(".")[2:]:  # after units.LAYER or grids.EDGE
                self.tensors[name].copy_(t)

    def adopt_statistics(self, net: MultiBitNet) -> None:
        """Take BatchNorm's statistics as they are: they were just measured."""
        for name, t in net.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                self.tensors[name].copy_(t)

    def copy_to(self, net: MultiBitNet) -> None:
        """Replace the network's tensors by the averages."""
        net.load_state_dict(self.tensors)
