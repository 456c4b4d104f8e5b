"""Random precision training of Double-Win Quant (Fu et al., ICML 2021), with BatchNorm per width ("switchable").

Each step draws one width b of the active ones, attacks the batch at b by projected gradient descent inside a ball of
the maximum norm, and trains at b on what came out:

    L = CE(f_b(x + d), y)        d = PGD_b(x), |d| <= eps

The companion at inference, a random width for every image, is `edgeq.defenses.RandomWidth`. Perturbed images are
rounded to bytes, as a camera's are. The attack runs in the deployed arithmetic.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.attacks import Surrogate, surrogate
from edgeq.data.seeds import generator
from edgeq.defenses.base import NO_KEY, AbstractObjective, Key, Losses
from edgeq.defenses.turns import Turns
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class DWQ:
    """The attack's choices, in brightness steps of 255.

    Attributes:
        eps: Largest change of a pixel.
        step: Step size.
        steps: Gradient steps; 0 trains on clean images.
    """

    eps: float = 8.0
    step: float = 2.0
    steps: int = 7

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.eps <= 255.0 or not 0.0 < self.step <= 255.0 or self.steps < 0:
            raise InputError(
                f"expected eps and step up to 255 (of brightness), step above 0 and 0 or more steps, got {self.eps}, "
                f"{self.step} and {self.steps}; 8, 2 and 7 are usual"
            )


class DWQObjective(AbstractObjective):
    """See the module docstring."""

    def __init__(self, net: MultiBitNet, choices: DWQ, *, label_smoothing: float = 0.0) -> None:
        super().__init__(net, Turns(1, passes=1))
        self.choices = choices
        self.label_smoothing = label_smoothing

    def forward(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        active: tuple[int, ...],
        key: Key = NO_KEY,
    ) -> Losses:
        """Return `loss` and, under its own name, the drawn width's (`adv_4`)."""
        drawn = torch.randint(len(active), (1,), generator=generator("dwq width", *key[:3]))  # one for all processes
        bits = active[int(drawn)]
        attacked = pgd(surrogate(self.net, bits), images, labels, choices=self.choices, key=key)
        with at_bits(self.net, bits):
            logits = self.net(attacked)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, f"adv_{bits}": loss.detach()}


def pgd(
    victim: Surrogate, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, choices: DWQ, key: Key
) -> UInt8[Tensor, "n c h w"]:
    """Return the images after `choices.steps` sign steps up the cross-entropy, from a random start inside the ball."""
    if choices.steps == 0:
        return images
    clean, eps = images.float() / 255.0, choices.eps / 255.0
    noise = torch.rand(images.shape, generator=generator("pgd", *key)).to(images.device)
    found = (clean + eps * (2.0 * noise - 1.0)).clamp(0.0, 1.0)
    for _ in range(choices.steps):
        variable = found.requires_grad_()
        loss = F.cross_entropy(victim(variable), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, variable)
        moved = found.detach() + choices.step / 255.0 * gradient.sign()
        found = moved.clamp(clean - eps, clean + eps).clamp(0.0, 1.0)
    return (found * 255.0).round().to(torch.uint8)
