"""Accuracy of a multi-bit network, width by width, in the deployed arithmetic."""

from dataclasses import dataclass

import torch

from edgeq.data import ImageFiles, Split, batches
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class Accuracy:
    """How many images of a split a network names rightly at one width."""

    bits: int
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """The fraction."""
        return self.correct / max(self.total, 1)


@torch.no_grad()
def accuracies(
    net: MultiBitNet, split: Split | ImageFiles, *, bits: tuple[int, ...] | None = None, batch_size: int = 500
) -> tuple[Accuracy, ...]:
    """Return the accuracy at each width (all of the network's by default); the mode is put back afterwards."""
    widths = net.bits if bits is None else bits
    device = next(net.parameters()).device
    correct = dict.fromkeys(widths, 0)
    total = 0
    was_training = net.training
    net.eval()
    try:
        for images, labels in batches(split, batch_size, device=device):
            total += len(labels)
            for b in widths:
                with at_bits(net, b):
                    correct[b] += int((net(images).argmax(1) == labels).sum())
    finally:
        net.train(was_training)
    return tuple(Accuracy(b, correct[b], total) for b in widths)
