"""The optimizer and the learning-rate schedules."""

import math

import torch

from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet

STEP_FACTOR = 0.1  # learned steps move slower than weights: their gradients change sign with every rounding


def make_optimizer(net: MultiBitNet, *, lr: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum 0.9; weight decay on weights alone, a smaller rate for learned steps."""
    weights, norms, steps = [], [], []
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        place = name.split(".")[2]  # after units.LAYER or grids.EDGE, which may have any name
        if place in ("steps", "weight_steps"):
            steps.append(parameter)
        elif place in ("norm", "bias"):
            norms.append(parameter)
        else:
            weights.append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": norms, "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": steps, "weight_decay": 0.0, "lr_factor": STEP_FACTOR},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=0.9, nesterov=True)


def update(net: MultiBitNet, optimizer: torch.optim.Optimizer, *, clip: float = 0.0) -> None:
    """Let the optimizer step, and keep learned weight steps where all their codes can be used.

    Args:
        net: The network.
        optimizer: Of its parameters, which have their gradients.
        clip: Largest norm of all gradients together; a longer one is shortened. 0 for any.
    """
    if clip:
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()
    for unit in net.weighted().values():
        unit.bound_weight_steps()


def learning_rate(schedule: str, done: float, *, warmup: float) -> float:
    """Return the factor of the peak rate after a fraction `done` of the run.

    Args:
        schedule: "cosine" (to 0), or "step" (a tenth from 50 %, a hundredth from 75 %).
        done: Fraction of all epochs.
        warmup: Fraction that rises linearly from 0; cosine only.
    """
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    if schedule != "cosine":
        raise InputError(f"expected schedule cosine or step, got {schedule!r}")
    if done < warmup:
        return max(done / warmup, 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))
