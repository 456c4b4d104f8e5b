"""Attackers who know the defence: one width, all widths jointly, all but the deployed one, or a tuned surrogate.

A defence that makes widths disagree must be judged by the attacker who looks at several of them. The victims here are
for the attack alone; success is then counted on the deployed width. The tuned surrogate follows QAA (Yang et al., IEEE
TIFS 2024, arXiv 2305.05875): a copy of the network is trained for a short while with a bit-width drawn anew at each
step, so that one set of weights serves all of them and gradients lose what is special to one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.attacks.victim import Surrogate, all_but, surrogate
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class FineTune:
    """How the surrogate is tuned.

    Attributes:
        steps: Gradient steps, one width each.
        lr: Learning rate (SGD with momentum 0.9), falling linearly to 0.
        batch_size: Images per step.
        seed: Decides batches and widths.
    """

    steps: int = 300
    lr: float = 0.02
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1 or self.batch_size < 1 or not self.lr > 0:
            raise InputError(
                f"expected steps and batch_size of 1 or more and lr > 0, got {self.steps}, {self.batch_size} and "
                f"{self.lr}; correct them"
            )


def tuned_copy(
    net: MultiBitNet,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    bits: tuple[int, ...] = (),
    choices: FineTune = FineTune(),
    progress: Callable[[int, int, float], None] | None = None,
) -> MultiBitNet:
    """Return a copy of the network, tuned at a random width each step in the deployed arithmetic; `net` is untouched.

    Args:
        net: The network under attack.
        images: What the attacker has: training images.
        labels: Their classes.
        bits: Widths to draw from; all of the network's by default.
        choices: Steps, rate, seed.
        progress: Called after each step.
    """
    tuned = copy.deepcopy(net).eval()
    victims = [surrogate(tuned, b) for b in surrogate(tuned, bits).bits]
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=choices.lr, momentum=0.9)
    gen = generator("tuned", choices.seed)
    with torch.enable_grad():
        for t in range(choices.steps):
            victim = victims[int(torch.randint(len(victims), (1,), generator=gen))]
            index = torch.randint(len(images), (choices.batch_size,), generator=gen).to(images.device)
            loss = F.cross_entropy(victim(images[index]), labels[index])
            if not bool(torch.isfinite(loss)):
                raise InputError(f"expected a surrogate that can be tuned, got a loss of {float(loss)}; lower lr")
            for group in optimizer.param_groups:
                group["lr"] = choices.lr * (1 - t / choices.steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(t + 1, choices.steps, float(loss.detach()))
    optimizer.zero_grad(set_to_none=True)
    return tuned


def attackers(net: MultiBitNet, bits: int, *, tuned: MultiBitNet | None = None) -> dict[str, Surrogate]:
    """Return by name the victims to make patches on when `bits` is the deployed width.

    `white-box` is that width itself, `from-B` another one, `all-but` the others jointly, `joint` all jointly, and
    `tuned` the tuned copy, all widths jointly. Report the largest success over them, and `white-box` apart from the
    rest: only the rest is about transfer.
    """
    found = {"white-box": surrogate(net, bits)}
    if len(net.bits) > 1:
        found |= {f"from-{b}": surrogate(net, b) for b in net.bits if b != bits}
        found |= {"all-but": all_but(net, bits), "joint": surrogate(net)}
    if tuned is not None:
        found["tuned"] = surrogate(tuned)
    return found
