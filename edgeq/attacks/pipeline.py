"""Attacks on a classifier behind a purifier: images changed by at most eps in every pixel.

A purifier is easily robust against an attacker who cannot differentiate it and weak against one who can, so each image
is attacked in several ways, and counts as withstood only if none of them wins:

    straight   PGD, gradients straight through the choice of codewords; one draw of the noise a step
    soft       PGD, codewords chosen by a softmax whose temperature falls
    identity   PGD, the purifier's derivative replaced by 1 (BPDA, Athalye et al. 2018)
    eot        PGD, gradients averaged over fresh draws of the noise
    fixed      PGD on the deployed draws themselves: for a device whose seed is known
    transfer   PGD on the bare classifier
    fab        the nearest image over a boundary, step by step (`edgeq.attacks.fab`), a start for each wrong class
    square     no gradients: random squares of +-eps, kept where the margin grows (Andriushchenko et al. 2020)

(what they mean for a shield: `edgeq.purifiers.shielded`)

    x_{t+1} = clip(x_t + a_t sign(grad loss), x_0 - eps, x_0 + eps),   a_t = eps / 4, falling along a half cosine

The first start climbs the margin, the second the cross-entropy, and so on in turn. With the ascent `auto` it is
AutoAttack's (`autopgd`): the first start climbs the cross-entropy, each of the others the DLR loss, towards the wrong
class that comes next in the clean answer, or under noise towards any (its `rand` version, which has no `fab` either).
What is judged are bytes. An image that the pipeline was seen to name wrongly is not attacked again, where it always
answers the same.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from edgeq.attacks.autopgd import Auto
from edgeq.attacks.ball import AbstractWay, Ball, Pace, uphill
from edgeq.attacks.base import VANISHED
from edgeq.attacks.fab import fab
from edgeq.attacks.goal import Goal, Loss, Victim, check_goal
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.purifiers.base import Draw, to_bytes
from edgeq.purifiers.deployed import AbstractDeployed, Look

LOSSES: tuple[Loss, ...] = ("margin", "cross-entropy")


@dataclass(frozen=True)
class Effort:
    """How hard the attacker tries.

    Attributes:
        steps: Gradient steps of one start.
        starts: Random starts.
        eot: Draws averaged in a step of `eot`.
        queries: Questions of `square` per image; under noise two for each square.
        ascent: "pgd", or "auto" for Auto-PGD.
        warm: Temperature of `soft` at the start, in units of squared distances to codewords.
        cold: Temperature of `soft` at the end.
        batch_size: Images at once.
    """

    steps: int = 100
    starts: int = 2
    eot: int = 20
    queries: int = 2000
    ascent: Literal["pgd", "auto"] = "pgd"
    warm: float = 2.0
    cold: float = 0.1  # colder, the mixture is a codeword and its gradient zero
    batch_size: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.steps, self.starts, self.eot, self.queries, self.batch_size) < 1:
            raise InputError(f"expected positive numbers of steps, starts, eot, queries and batch_size, got {self}")
        if self.ascent not in ("pgd", "auto"):
            raise InputError(f"expected the ascent pgd or auto, got {self.ascent!r}; choose one of them")
        if not 0 < self.cold <= self.warm < math.inf:
            raise InputError(f"expected 0 < cold <= warm, got {self.cold} and {self.warm}; soft cools down")

    @property
    def way(self) -> AbstractWay:
        """How the gradient steps go."""
        return Auto(self.steps) if self.ascent == "auto" else Pace(self.steps)


@dataclass(frozen=True)
class Attacked:
    """What one way found.

    Attributes:
        images: The attacked images.
        flat: Fraction of the gradients that were zero or not finite; 0 for `square`.
    """

    images: UInt8[Tensor, "n c h w"]
    flat: float


def attack_pipeline(
    way: str,
    deployed: AbstractDeployed,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: int,
    effort: Effort,
    seed: int = 0,
) -> Attacked:
    """Attack bytes in one way.

    Args:
        way: One of `deployed.ways`.
        deployed: The pipeline.
        images: Bytes, on the pipeline's device.
        labels: Their classes.
        eps: Largest change of a pixel, in 1/255.
        effort: How hard.
        seed: Decides the starts and the attacker's draws.
    """
    if way not in deployed.ways:
        raise InputError(f"expected an attack out of {', '.join(deployed.ways)}, got {way!r}; choose one of them")
    if not 1 <= eps <= 255:
        raise InputError(f"expected eps from 1 to 255 (of 255), got {eps}; choose another")
    check_goal(Goal(labels), images)
    parts = []
    for number, (x, y) in enumerate(zip(images.split(effort.batch_size), labels.split(effort.batch_size), strict=True)):
        key = f"{way} {eps} {seed} {number}"
        gen = generator("pipeline", key)
        if way == "square":
            parts.append(Attacked(_square(deployed, Ball(x, eps / 255), Goal(y), effort.queries, gen), 0.0))
        else:
            parts.append(_starts(_Climber(way, deployed, y, effort, key), x, eps / 255, gen))
    flat = sum(p.flat * len(p.images) for p in parts) / len(images)
    return Attacked(torch.cat([p.images for p in parts]), flat)


@torch.no_grad()
def right(
    deployed: AbstractDeployed, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, batch_size: int = 250
) -> Bool[Tensor, " n"]:
    """Return which images the pipeline names rightly."""
    pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([deployed(x).argmax(1) == y for x, y in pairs])


class _Climber:
    """The victim that one way differentiates, step by step, and the one that chooses among its iterates."""

    def __init__(
        self, way: str, deployed: AbstractDeployed, labels: Int64[Tensor, " n"], effort: Effort, key: str
    ) -> None:
        self.way, self.deployed, self.labels, self.effort = way, deployed, labels, effort
        self.seed = generator("attacker's draws", key).initial_seed()

    def view(self, start: int, t: int) -> Victim:
        """Return what is differentiated at step t."""
        effort = self.effort
        cooled = effort.warm * (effort.cold / effort.warm) ** (t / max(effort.steps - 1, 1))
        return self.deployed.seen(Look(self.way, Draw((self.seed, start, t), shared=False), effort.eot, cooled))

    def aim(self, start: int, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> tuple[Goal, Loss]:
        """Return what a start climbs."""
        if self.effort.ascent == "pgd":
            return Goal(labels), LOSSES[start % len(LOSSES)]
        if not start:
            return Goal(labels), "cross-entropy"
        if self.deployed.stochastic:
            return Goal(labels), "dlr"
        return Goal(labels, self.wrong(start - 1, images, labels)), "dlr"

    @torch.no_grad()
    def wrong(self, place: int, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """Return each image's likeliest wrong class, or the one that many places behind it, round and round."""
        order = self.deployed(images).scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
        return order[:, place % order.shape[1]]

    @property
    def chooses(self) -> bool:
        """Whether the attacker asks the pipeline which iterate is best; under noise one answer says little."""
        return self.way == "fixed" or (not self.deployed.stochastic and self.way != "transfer")


def _starts(climber: _Climber, images: UInt8[Tensor, "n c h w"], eps: float, gen: torch.Generator) -> Attacked:
    """Climb from several starts and keep the end that the pipeline does worst on, image by image."""
    best, labels = images.clone(), climber.labels
    rank = torch.full((len(best),), -torch.inf, dtype=torch.float64, device=best.device)
    flat, tried = 0.0, 0
    for start in range(climber.effort.starts):
        todo = torch.arange(len(best), device=best.device)
        if climber.chooses and start:
            with torch.no_grad():
                named = Goal(labels).reached(climber.deployed(best))
            todo = todo[~named.reshape(-1, len(best)).all(0)]
        if not len(todo):
            break
        goal = Goal(labels[todo])
        found, vanished = _climb(climber, start, images[todo], labels[todo], eps, gen)
        flat, tried = flat + vanished * len(todo), tried + len(todo)
        with torch.no_grad():
            # under noise with the attacker's own draws: those of the device are not known
            asked = climber.deployed.drawn(climber.deployed.draw if climber.chooses else Draw(start, False))
            new = goal.rank(asked(found))
        better = new > rank[todo]
        best[todo[better]], rank[todo[better]] = found[better], new[better]
    return Attacked(best, flat / tried)


def _climb(
    climber: _Climber,
    start: int,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    eps: float,
    gen: torch.Generator,
) -> tuple[UInt8[Tensor, "n c h w"], float]:
    """Return the best iterate of one start and the fraction of vanished gradients."""
    ball = Ball(images, eps)
    if climber.way == "fab":
        targets = climber.wrong(start, images, labels)
        return fab(climber.deployed, ball, labels, targets, steps=climber.effort.steps)
    aim, loss = climber.aim(start, images, labels)
    x, flats, search = ball.random(gen), [], climber.effort.way.start(ball)
    best, rank = to_bytes(x), torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    for t in range(climber.effort.steps):
        view = climber.view(start, t)
        losses, grad = uphill(lambda x, view=view: aim.loss(view(x), loss), x)
        flats.append(float((~(grad.flatten(1).abs().amax(1) > VANISHED)).float().mean()))
        x = search.move(x, losses, grad, t)
        if climber.chooses:
            sent = to_bytes(x)
            with torch.no_grad():
                new = Goal(labels).rank(climber.deployed(sent))
            best[new > rank] = sent[new > rank]
            rank = torch.maximum(rank, new)
    return best if climber.chooses else to_bytes(search.answer), sum(flats) / len(flats)


@torch.no_grad()
def _square(
    deployed: AbstractDeployed, ball: Ball, goal: Goal, queries: int, gen: torch.Generator
) -> UInt8[Tensor, "n c h w"]:
    """Search by answers alone: one square of +-eps per image and question, kept where the margin grows.

    Under noise an answer on one draw says little of the next: old and new image are then both asked about, on draws
    that are fresh each time and the same for the two, and the search goes on where it has won.
    """
    n, c, h, w = ball.centre.shape
    device, noisy = ball.centre.device, deployed.stochastic
    key = int(torch.randint(1 << 40, (), generator=gen))

    def signs(*shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=gen) * 2 - 1).to(ball.centre)

    x = ball.project(ball.centre + ball.eps * signs(n, c, 1, w))  # vertical stripes, as published
    margin = goal.margins(deployed(to_bytes(x)))
    rows, columns = torch.arange(h, device=device)[None, :, None], torch.arange(w, device=device)[None, None, :]
    rounds = queries // 2 if noisy else queries - 1
    for t in range(rounds):
        if not noisy and bool((margin > 0).all()):
            break
        victim = deployed.drawn(Draw((key, t), shared=False)) if noisy else deployed
        side = max(1, round((_share(t / rounds) * h * w) ** 0.5))
        top = torch.randint(0, max(1, h - side + 1), (n, 1, 1), generator=gen).to(device)
        left = torch.randint(0, max(1, w - side + 1), (n, 1, 1), generator=gen).to(device)
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        new = torch.where(inside[:, None], ball.centre + ball.eps * signs(n, c, 1, 1), x)
        new = ball.project(new)
        asked = goal.margins(victim(to_bytes(new)))
        if noisy:
            margin = goal.margins(victim(to_bytes(x)))
        better = (asked > margin) & (noisy | (margin <= 0))
        x[better], margin[better] = new[better], asked[better]
    return to_bytes(x)


def _share(done: float) -> float:
    """Return the fraction of the image that a square covers after a fraction of the questions."""
    halvings = sum(done >= place for place in (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
    return 0.3 / 2**halvings
