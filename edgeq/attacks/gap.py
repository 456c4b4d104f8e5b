"""GAP: the universal adversarial patch of Brown et al. (arXiv 1712.09665).

One patch maximises the mean log-probability of a target class over images, places, scales and rotations. Without
targets it maximises -log p of the true class instead.
"""

from dataclasses import dataclass, field

from torch import Tensor

from edgeq.attacks.base import AbstractPatchAttack, Ascent, PatchResult, Progress, Seed
from edgeq.attacks.eot import EOT
from edgeq.attacks.goal import Goal, Loss, Victim
from edgeq.attacks.universal import Universal, universal_patch

# Long steps that shrink: from noise the target's probability is often 0 and its gradient small and rough. On a hard
# target, steps of 0.05 stayed there (5 % success), 0.2 left (58 to 68 %); on easy ones the two were alike. Each step
# sees one batch, and momentum makes of several one direction for all images: without it, benchmarks/patch_strength.py
# found ART's best of four settings level with us.
ASCENT = Ascent(steps=500, step=0.2, rule="sign", decay=True, momentum=0.9)


@dataclass(frozen=True)
class GAP(AbstractPatchAttack):
    """The choices of the attack.

    Attributes:
        size: Side of the patch in pixels.
        ascent: Steps.
        eot: Views that it must survive.
        loss: What is climbed.
        batch_size: Images per step.
    """

    size: int = 6
    ascent: Ascent = ASCENT
    eot: EOT = field(default_factory=EOT)
    loss: Loss = "cross-entropy"
    batch_size: int = 64

    def _run(self, victim: Victim, images: Tensor, goal: Goal, seed: Seed, progress: Progress | None) -> PatchResult:
        choices = Universal(self.size, self.ascent, self.eot, self.loss, self.batch_size)
        return universal_patch(victim, images, goal, choices, seed=seed, progress=progress)
