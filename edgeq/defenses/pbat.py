"""Adversarial training of one width on location-optimised patches (Rao, Stutz, Schiele, arXiv 2005.02313).

    L = CE over the batch, of which a share rho shows a patch made for it in this step, on this very width

The baseline has no shared backbone: train one run per width. Patched images stand in for their clean ones, as in the
paper. Of `Patches` it reads rho, sizes, online_steps and online_scouts.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.defenses.base import NO_KEY, Key, Losses
from edgeq.defenses.patches import AbstractPatchedObjective, Patches
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


class PBATObjective(AbstractPatchedObjective):
    """See the module docstring."""

    def __init__(self, net: MultiBitNet, patches: Patches, *, label_smoothing: float = 0.0) -> None:
        super().__init__(net, replace(patches, online=1.0, warmup=0.0), label_smoothing=label_smoothing)
        if len(net.bits) != 1:
            raise InputError(
                f"expected one width with defense pbat, got {list(net.bits)}; train one run per width (--bits 4), or "
                "use patch-at for a shared backbone"
            )

    def forward(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        active: tuple[int, ...],
        key: Key = NO_KEY,
    ) -> Losses:
        """Return `loss` and, apart, the cross-entropy of the clean images (`ce_4`) and of the patched ones (`adv`)."""
        (bits,) = active
        patched = self.patcher.on(images, labels, active, key)
        count = len(patched)
        with at_bits(self.net, bits):
            logits = self.net(torch.cat([patched, images[count:]]))
        each = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        losses = {"loss": each.mean()}
        if count:
            losses["adv"] = each[:count].detach().mean()
        if count < len(images):
            losses[f"ce_{bits}"] = each[count:].detach().mean()
        return losses
