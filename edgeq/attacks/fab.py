"""FAB, the fast adaptive boundary attack (Croce and Hein, arXiv 1907.02044), its targeted form in the maximum norm.

It looks for the nearest image over the boundary between the right class y and another one l, and knows no eps. With
f = z_l - z_y and the boundary that f is linearised to at the step's image x,

    d(p) = argmin |d|_max   over p + d on that boundary and in [0, 1]
    x'   = (1 - a) (x + eta d(x)) + a (x_0 + eta d(x_0)),   a = min(|d(x)| / (|d(x)| + |d(x_0)|), 0.1),   eta = 1.05

An x' that is named wrongly is kept if it is the nearest yet to the image x_0, and the search goes back towards it:
x'' = x_0 + 0.9 (x' - x_0). What is named is bytes, as everywhere here; each change is rounded away from 0, since a
boundary that x' has just crossed lies nearer than half a byte.

The step d(p) moves every pixel by t towards the boundary, or to 0 or 1 where that is nearer; t is where a function of
straight pieces, one for each pixel that has arrived, reaches the distance.
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks.ball import Ball, uphill
from edgeq.attacks.base import VANISHED
from edgeq.attacks.goal import Goal, Victim
from edgeq.purifiers.base import to_bytes

STRAY = 0.1  # the largest share of the step that starts from the clean image
BEYOND = 1.05  # how far over the linearised boundary a step goes
BACK = 0.9
TINY = 1e-12


def fab(
    victim: Victim, ball: Ball, labels: Int64[Tensor, " n"], targets: Int64[Tensor, " n"], *, steps: int
) -> tuple[UInt8[Tensor, "n c h w"], float]:
    """Search the nearest wrongly named image for each; the first step starts from the image itself.

    Args:
        victim: What is attacked; differentiable.
        ball: Its centre is attacked. Its eps only decides what to return where the nearest is farther: the nearest
            image of the ball.
        labels: Right classes.
        targets: The class whose boundary is looked for, of each image.
        steps: Gradient steps.

    Returns:
        Images of the ball as bytes, and the fraction of vanished gradients.
    """
    goal, clean, flats = Goal(labels, targets), ball.centre, []
    x, answer = clean, to_bytes(clean)
    nearest = torch.full_like(clean[:, 0, 0, 0], torch.inf)
    for _ in range(steps):
        values, grad = uphill(lambda x: goal.loss(victim(x), "logits"), x)
        flats.append(float((~(grad.flatten(1).abs().amax(1) > VANISHED)).float().mean()))
        x = _step(x, clean, values, grad)
        sent = _outward(x, clean)
        with torch.no_grad():
            wrong = Goal(labels).reached(victim(sent))
        far = (x - clean).flatten(1).abs().amax(1)
        better = wrong & (far < nearest)
        nearest = torch.where(better, far, nearest)
        answer = torch.where(_each(better | nearest.isinf()), sent, answer)  # the last one where none was wrong yet
        x = torch.where(_each(wrong), clean + BACK * (x - clean), x)
    return to_bytes(ball.project(answer.float() / 255.0)), sum(flats) / len(flats)


def to_boundary(
    points: Float[Tensor, "n c h w"], values: Float[Tensor, " n"], slopes: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """Return the least d in the maximum norm with values + slopes . d = 0 and points + d in [0, 1].

    Where the box does not reach the boundary, d goes as near as it does.
    """
    weight, towards = slopes.abs().flatten(1), (-values.reshape(-1, 1, 1, 1) * slopes).sign()
    room = torch.where(towards > 0, 1.0 - points, torch.where(towards < 0, points, 0.0)).flatten(1)
    order = room.argsort(1)
    rooms, weights = room.gather(1, order).double(), weight.gather(1, order).double()
    arrived = (weights * rooms).cumsum(1) - weights * rooms  # by the pixels with less room
    moving = weights.flip(1).cumsum(1).flip(1)  # of those with as much or more
    reached = arrived + rooms * moving  # by all of them, when this one arrives
    distance = values.abs().double()[:, None]
    k = (reached < distance).sum(1, keepdim=True).clamp_max(room.shape[1] - 1)
    t = (distance - arrived.gather(1, k)) / moving.gather(1, k).clamp_min(TINY)
    return towards * torch.minimum(t.to(room), room).reshape(points.shape)


def _step(x: Tensor, clean: Tensor, values: Float[Tensor, " n"], slopes: Tensor) -> Tensor:
    from_clean = values + (slopes * (clean - x)).flatten(1).sum(1)
    here, there = to_boundary(x, values, slopes), to_boundary(clean, from_clean, slopes)
    lengths = here.flatten(1).abs().amax(1), there.flatten(1).abs().amax(1)
    share = _each((lengths[0] / (lengths[0] + lengths[1]).clamp_min(TINY)).clamp_max(STRAY))
    return ((1 - share) * (x + BEYOND * here) + share * (clean + BEYOND * there)).clamp(0.0, 1.0)


def _outward(x: Tensor, clean: Tensor) -> UInt8[Tensor, "n c h w"]:
    change = (x - clean) * 255.0
    whole = (change.abs() - 1e-3).ceil()  # 1e-3 of a byte is float arithmetic
    return to_bytes(clean + change.sign() * whole / 255.0)


def _each(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
