"""Standard multi-bit training: the mean cross-entropy over the active widths, optionally with distillation.

    L = 1/|B| sum_b [ (1 - d_b) CE(f_b(x), y) + d_b KL(softmax(f_t(x)) || softmax(f_b(x))) ]

where t is the next higher active width (recursive distillation, as in Any-Precision networks, arXiv 1911.07346), whose
logits are constants here; the highest width has no teacher and d_b = 0.

`widths_per_step` trains the highest and the lowest active width and random ones between them in a step, instead of all
(the sandwich rule of slimmable networks, arXiv 1903.05134): the cost of a step follows the widths that are in it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.data.seeds import generator
from edgeq.defenses.base import NO_KEY, AbstractObjective, Key, Losses
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class Standard:
    """The objective's choices.

    Attributes:
        distill: Weight of the distillation term of every width but the highest, 0 to 1. Off by default: in short
            trainings it cost accuracy at every width (an arm of benchmarks/shared_vs_dedicated.py).
        label_smoothing: Of the cross-entropy.
        widths_per_step: Widths in a step, 2 or more; 0 for all that are active.
    """

    distill: float = 0.0
    label_smoothing: float = 0.0
    widths_per_step: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.distill <= 1.0:
            raise InputError(f"expected distill between 0 and 1, got {self.distill}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"expected label_smoothing from 0 to below 1, got {self.label_smoothing}")
        if self.widths_per_step < 0 or self.widths_per_step == 1:
            raise InputError(
                f"expected 2 or more widths per step (the highest, the lowest, others), got {self.widths_per_step}; "
                "0 takes all"
            )


class StandardObjective(AbstractObjective):
    """See the module docstring."""

    def __init__(self, net: MultiBitNet, choices: Standard) -> None:
        super().__init__(net)
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
        for bits in drawn(active, self.choices.widths_per_step, key):
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


def drawn(active: tuple[int, ...], count: int, key: Key) -> tuple[int, ...]:
    """Return the highest and the lowest width and random ones between, `count` in all, from high to low."""
    if count == 0 or count >= len(active):
        return active
    order = torch.randperm(len(active) - 2, generator=generator("widths", *key[:3]))  # the same in every process
    between = sorted(order[: count - 2].tolist())
    return (active[0], *(active[1 + i] for i in between), active[-1])
