"""Adversarial training on patches, for all widths of a shared backbone: the control arm of TriQDef.

    L = 1/|B| sum_b [ CE(f_b(x), y) + lambda_adv CE(f_b(x_adv), y) ]

The same patches as TriQDef's, without its penalties. Clean and patched images go through the network together, so
BatchNorm in training sees their mixture.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.defenses.base import NO_KEY, Key, Losses
from edgeq.defenses.patches import AbstractPatchedObjective
from edgeq.quant.bits import at_bits


class PatchATObjective(AbstractPatchedObjective):
    """See the module docstring."""

    def forward(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        active: tuple[int, ...],
        key: Key = NO_KEY,
    ) -> Losses:
        """Return `loss`, each width's clean cross-entropy (`ce_8`, …) and the patched images' mean (`adv`)."""
        widths = self.turns.drawn(active, key)
        patched = self.patcher.on(images, labels, widths, key)
        shown = torch.cat([images, patched])
        logits: dict[int, Tensor] = {}
        for bits in widths:
            with at_bits(self.net, bits):
                logits[bits] = self.net(shown)
        return cross_entropies(logits, labels, self.patcher.choices.lambda_adv, self.label_smoothing)


def cross_entropies(
    logits: dict[int, Float[Tensor, "m classes"]], labels: Int64[Tensor, " n"], lambda_adv: float, smoothing: float
) -> Losses:
    """Return the losses of the n images and, below them, of the first m - n again, patched."""
    n, extra = len(labels), len(next(iter(logits.values()))) - len(labels)
    clean = {bits: F.cross_entropy(z[:n], labels, label_smoothing=smoothing) for bits, z in logits.items()}
    losses = {f"ce_{bits}": ce.detach() for bits, ce in clean.items()}
    losses["loss"] = torch.stack(list(clean.values())).mean()
    if extra:
        patched = [F.cross_entropy(z[n:], labels[:extra], label_smoothing=smoothing) for z in logits.values()]
        adv = torch.stack(patched).mean()
        losses["loss"] = losses["loss"] + lambda_adv * adv
        losses["adv"] = adv.detach()
    return losses
