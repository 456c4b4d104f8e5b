"""Standard multi-bit training: the mean cross-entropy over the active widths, optionally with distillation.

    L = 1/|B| sum_b [ (1 - d_b) CE(f_b(x), y) + d_b KL(softmax(f_t(x)) || softmax(f_b(x))) ]

where t is the next higher active width (recursive distillation, as in Any-Precision networks, arXiv 1911.07346), whose
logits are constants here; the highest width has no teacher and d_b = 0.

`widths_per_step` says which widths are in a step:

    0           all active ones, on the same images
    1           one, in turns; an epoch goes through the images `passes` times, in another order each time. With as many
                passes as widths, every width takes as many steps on as many images as with 0, at the same cost, and
                the shared weights take as many times more steps, each on other images
    2 and more  the highest, the lowest and random ones between (the sandwich rule of slimmable networks, arXiv
                1903.05134), on the same images: an epoch costs as much less
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
        distill: Weight of the distillation term of every width but the highest, 0 to 1; needs its teacher in the step.
        label_smoothing: Of the cross-entropy.
        widths_per_step: Widths in a step, see the module; 0 for all that are active, 1 for turns.
        passes: Where they take turns: passes over the images in an epoch, at most one per active width; 0 for that.
    """

    distill: float = 0.0
    label_smoothing: float = 0.0
    widths_per_step: int = 1
    passes: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.distill <= 1.0:
            raise InputError(f"expected distill between 0 and 1, got {self.distill}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"expected label_smoothing from 0 to below 1, got {self.label_smoothing}")
        if self.widths_per_step < 0:
            raise InputError(f"expected 0 or more widths per step, got {self.widths_per_step}; 0 takes all")
        if self.passes < 0:
            raise InputError(f"expected 0 or more passes, got {self.passes}; 0 takes one per active width")
        if self.widths_per_step == 1 and self.distill:
            raise InputError(
                f"expected no distillation where widths take turns, got distill {self.distill}: the teacher must be in "
                "the step; choose 0 or 2 and more widths per step"
            )


class StandardObjective(AbstractObjective):
    """See the module docstring."""

    def __init__(self, net: MultiBitNet, choices: Standard) -> None:
        super().__init__(net)
        self.choices = choices

    def passes(self, active: tuple[int, ...]) -> int:
        """Return one pass per width where they take turns."""
        if self.choices.widths_per_step != 1:
            return 1
        return min(self.choices.passes or len(active), len(active))

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
    """Return the widths in a step: all, or the one whose turn it is, or the ends and random ones between."""
    if count == 1:
        return (active[key[2] % len(active)],)
    if count == 0 or count >= len(active):
        return active
    order = torch.randperm(len(active) - 2, generator=generator("widths", *key[:3]))  # the same in every process
    between = sorted(order[: count - 2].tolist())
    return (active[0], *(active[1 + i] for i in between), active[-1])
