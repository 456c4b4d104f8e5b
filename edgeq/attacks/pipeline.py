"""Attacks on a classifier behind a purifier: images changed by at most eps in every pixel.

A purifier is easily robust against an attacker who cannot differentiate it and weak against one who can, so each image
is attacked in several ways, and counts as withstood only if none of them wins:

    straight   PGD, gradients straight through the choice of codewords; one draw of the noise a step
    soft       PGD, codewords chosen by a softmax whose temperature falls
    identity   PGD, the purifier's derivative replaced by 1 (BPDA, Athalye et al. 2018)
    eot        PGD, gradients averaged over fresh draws of the noise
    fixed      PGD on the deployed draws themselves: for a device whose seed is known
    transfer   PGD on the bare classifier
    square     no gradients: random squares of +-eps, kept where the margin grows (Andriushchenko et al. 2020)

    x_{t+1} = clip(x_t + a_t sign(grad loss), x_0 - eps, x_0 + eps),   a_t = eps / 4, falling along a half cosine

The first start climbs the margin, the second the cross-entropy, and so on in turn. What is judged are bytes.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from edgeq.attacks.ball import Ball, Pace
from edgeq.attacks.base import VANISHED
from edgeq.attacks.goal import Goal, Loss, Victim, check_goal
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.purifiers.base import AbstractPurifier, Draw, Purified, to_bytes

WAYS = ("straight", "soft", "identity", "eot", "fixed", "transfer", "square")
LOSSES: tuple[Loss, ...] = ("margin", "cross-entropy")


@dataclass(frozen=True)
class Effort:
    """How hard the attacker tries.

    Attributes:
        steps: Gradient steps of one start.
        starts: Random starts.
        eot: Draws averaged in a step of `eot`.
        queries: Questions of `square` per image.
        warm: Temperature of `soft` at the start, in units of squared distances to codewords.
        cold: Temperature of `soft` at the end.
        batch_size: Images at once.
    """

    steps: int = 100
    starts: int = 2
    eot: int = 20
    queries: int = 2000
    warm: float = 2.0
    cold: float = 0.1  # colder, the mixture is a codeword and its gradient zero
    batch_size: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.steps, self.starts, self.eot, self.queries, self.batch_size) < 1:
            raise InputError(f"expected positive numbers of steps, starts, eot, queries and batch_size, got {self}")
        if not 0 < self.cold <= self.warm < math.inf:
            raise InputError(f"expected 0 < cold <= warm, got {self.cold} and {self.warm}; soft cools down")


@dataclass(frozen=True)
class Attacked:
    """What one way found.

    Attributes:
        images: The attacked images.
        flat: Fraction of the gradients that were zero or not finite; 0 for `square`.
    """

    images: UInt8[Tensor, "n c h w"]
    flat: float


def ways_for(purifier: AbstractPurifier) -> tuple[str, ...]:
    """Return the ways that mean something for a purifier: `soft` needs codewords, `eot` and `fixed` need noise."""
    idle = (() if purifier.codewords else ("soft",)) + (() if purifier.stochastic else ("eot", "fixed"))
    return tuple(way for way in WAYS if way not in idle)


def attack_pipeline(
    way: str,
    deployed: Purified,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: int,
    effort: Effort,
    seed: int = 0,
) -> Attacked:
    """Attack bytes in one way.

    Args:
        way: One of `ways_for(deployed.purifier)`.
        deployed: The pipeline.
        images: Bytes, on the purifier's device.
        labels: Their classes.
        eps: Largest change of a pixel, in 1/255.
        effort: How hard.
        seed: Decides the starts and the attacker's draws.
    """
    if way not in ways_for(deployed.purifier):
        raise InputError(f"expected an attack out of {', '.join(ways_for(deployed.purifier))}, got {way!r}")
    if not 1 <= eps <= 255:
        raise InputError(f"expected eps from 1 to 255 (of 255), got {eps}; choose another")
    check_goal(Goal(labels), images)
    parts = []
    for number, (x, y) in enumerate(zip(images.split(effort.batch_size), labels.split(effort.batch_size), strict=True)):
        ball = Ball(x, eps / 255)
        key = f"{way} {eps} {seed} {number}"
        gen = generator("pipeline", key)
        if way == "square":
            parts.append(Attacked(_square(deployed, ball, Goal(y), effort.queries, gen), 0.0))
        else:
            parts.append(_starts(_Climber(way, deployed, Goal(y), effort, key), ball, gen))
    flat = sum(p.flat * len(p.images) for p in parts) / len(images)
    return Attacked(torch.cat([p.images for p in parts]), flat)


@torch.no_grad()
def right(
    deployed: Purified, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, batch_size: int = 250
) -> Bool[Tensor, " n"]:
    """Return which images the pipeline names rightly."""
    pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([deployed(x).argmax(1) == y for x, y in pairs])


class _Climber:
    """The victim that one way differentiates, step by step, and the one that chooses among its iterates."""

    def __init__(self, way: str, deployed: Purified, goal: Goal, effort: Effort, key: str) -> None:
        self.way, self.deployed, self.goal, self.effort = way, deployed, goal, effort
        self.seed = generator("attacker's draws", key).initial_seed()

    def view(self, start: int, t: int) -> Victim:
        """Return what is differentiated at step t."""
        deployed, effort = self.deployed, self.effort
        draw = Draw((self.seed, start, t), shared=False)
        if self.way == "transfer":
            return deployed.victim
        if self.way == "fixed" or not deployed.purifier.stochastic:
            view = deployed
        else:
            view = replace(deployed, samples=effort.eot if self.way == "eot" else 1, draw=draw)
        if self.way == "soft":
            cooled = effort.warm * (effort.cold / effort.warm) ** (t / max(effort.steps - 1, 1))
            return replace(view, temperature=cooled)
        return _identity(view) if self.way == "identity" else view

    @property
    def chooses(self) -> bool:
        """Whether the attacker asks the pipeline which iterate is best; under noise one answer says little."""
        return self.way == "fixed" or (not self.deployed.purifier.stochastic and self.way != "transfer")


def _identity(view: Purified) -> Victim:
    """Return the pipeline whose purifier has derivative 1."""

    def victim(x: Tensor) -> Tensor:
        with torch.no_grad():
            cleaned = view.purified(x, 0)
        return view.victim(x + (cleaned - x).detach())

    return victim


def _starts(climber: _Climber, ball: Ball, gen: torch.Generator) -> Attacked:
    """Climb from several starts and keep the end that the pipeline does worst on, image by image."""
    best = to_bytes(ball.centre)
    rank = torch.full((len(best),), -torch.inf, dtype=torch.float64, device=best.device)
    flats = []
    for start in range(climber.effort.starts):
        found, flat = _climb(climber, ball, start, gen)
        flats.append(flat)
        with torch.no_grad():
            # under noise with the attacker's own draws: those of the device are not known
            asked = replace(climber.deployed, draw=climber.deployed.draw if climber.chooses else Draw(start, False))
            new = climber.goal.rank(asked(found))
        best[new > rank] = found[new > rank]
        rank = torch.maximum(rank, new)
    return Attacked(best, sum(flats) / len(flats))


def _climb(climber: _Climber, ball: Ball, start: int, gen: torch.Generator) -> tuple[UInt8[Tensor, "n c h w"], float]:
    """Return the best iterate of one start (the last, if none can be told) and the fraction of vanished gradients."""
    goal, loss = climber.goal, LOSSES[start % len(LOSSES)]
    x, flats, pace = ball.random(gen), [], Pace(climber.effort.steps)
    best, rank = to_bytes(x), torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    for t in range(climber.effort.steps):
        x.requires_grad_()
        with torch.enable_grad():
            losses = goal.loss(climber.view(start, t)(x), loss)
            (grad,) = torch.autograd.grad(losses.sum(), (x,), materialize_grads=True)
        strongest = grad.flatten(1).abs().amax(1)
        flats.append(float((~(strongest > VANISHED)).float().mean()))
        x = ball.project(x.detach() + ball.eps * pace.at(t) * torch.nan_to_num(grad).sign())
        sent = to_bytes(x)
        if climber.chooses:
            with torch.no_grad():
                new = goal.rank(climber.deployed(sent))
            best[new > rank] = sent[new > rank]
            rank = torch.maximum(rank, new)
        else:
            best = sent
    return best, sum(flats) / len(flats)


@torch.no_grad()
def _square(deployed: Purified, ball: Ball, goal: Goal, queries: int, gen: torch.Generator) -> UInt8[Tensor, "n c h w"]:
    """Search by answers alone: one square of +-eps per image and question, kept where the margin grows."""
    n, c, h, w = ball.centre.shape
    device = ball.centre.device

    def signs(*shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=gen) * 2 - 1).to(ball.centre)

    x = ball.project(ball.centre + ball.eps * signs(n, c, 1, w))  # vertical stripes, as published
    margin = goal.margins(deployed(to_bytes(x)))
    rows, columns = torch.arange(h, device=device)[None, :, None], torch.arange(w, device=device)[None, None, :]
    for t in range(queries - 1):
        if bool((margin > 0).all()):
            break
        side = max(1, round((_share(t / queries) * h * w) ** 0.5))
        top = torch.randint(0, max(1, h - side + 1), (n, 1, 1), generator=gen).to(device)
        left = torch.randint(0, max(1, w - side + 1), (n, 1, 1), generator=gen).to(device)
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        new = torch.where(inside[:, None], ball.centre + ball.eps * signs(n, c, 1, 1), x)
        new = ball.project(new)
        asked = goal.margins(deployed(to_bytes(new)))
        better = (asked > margin) & (margin <= 0)
        x[better], margin[better] = new[better], asked[better]
    return to_bytes(x)


def _share(done: float) -> float:
    """Return the fraction of the image that a square covers after a fraction of the questions."""
    halvings = sum(done >= place for place in (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
    return 0.3 / 2**halvings
