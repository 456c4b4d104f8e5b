"""Standard multi-bit training: the mean cross-entropy over the active widths, optionally with distillation.

    L = 1/|B| sum_b [ (1 - d_b) CE(f_b(x), y) + d_b KL(softmax(f_t(x)) || softmax(f_b(x))) ]

where t is the next higher active width (recursive distillation, as in Any-Precision networks, arXiv 1911.07346), whose
logits are constants here; the highest width has no teacher and d_b = 0.

Which widths a step has is `Turns`' choice: one by default, so that all of them take turns.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.defenses.base import NO_KEY, AbstractObjective, Key, Losses
from edgeq.defenses.turns import ALL, Turns
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class Standard:
    """The objective's choices.

    Attributes:
        distill: Weight of the distillation term of every width but the highest, 0 to 1; needs its teacher in the step.
        label_smoothing: Of the cross-entropy.
    """

    distill: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.distill <= 1.0:
            raise InputError(f"expected distill between 0 and 1, got {self.distill}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"expected label_smoothing from 0 to below 1, got {self.label_smoothing}")


class StandardObjective(AbstractObjective):
    """See the module docstring."""

    def __init__(self, net: MultiBitNet, choices: Standard, turns: Turns = ALL) -> None:
        super().__init__(net, turns)
        self.choices = choices

    def forward(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        active: tuple[int, ...],
        key: Key = NO_KEY,
    ) -> Losses:
        """Return `loss` and the cross-entropy of each width in the step (`ce_8`, …)."""
        losses: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        teacher: Tensor | None = None
        for bits in self.turns.drawn(active, key):
            with at_bits(self.net, bits):
                logits = self.net(images)
            ce = F.cross_entropy(logits, labels, label_smoothing=self.choices.label_smoothing)
            losses[f"ce_{bits}"] = ce.detach()
            d = self.choices.distill
            if teacher is None or d == 0.0:
                terms.append(ce)
            else:
                kl = F.kl_div(F.log_softmax(logits, 1), teacher, reduction="batchmean", log_target=True)
                terms.append((1.0 - d) * ce + d * kl)
            teacher = F.log_softmax(logits.detach(), 1)
        losses["loss"] = sum(terms, start=terms[0] * 0.0) / len(terms)
        return losses
