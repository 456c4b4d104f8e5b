"""How much a pipeline of purifier and classifier withstands: the minimum over all ways, and reasons to distrust it.

An image is withstood at some eps if the pipeline names it rightly clean and under every way of attack; `robust` is the
fraction of those. The way `fixed` needs the device's seed, so it counts for `robust_seed_known` alone. `bare` is the
classifier without the purifier under the same PGD, for comparison.

The warnings say where a number should not be believed: gradients vanish, a black box or a cruder gradient beats the
straight-through one beyond chance, more eps does not hurt more, or not even 64/255 brings the pipeline down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from edgeq.attacks.ball import Ball, Pace, ascend
from edgeq.attacks.checks import FEW, check_blackbox, check_growth
from edgeq.attacks.goal import Goal
from edgeq.attacks.pipeline import Attacked, Effort, attack_pipeline, right
from edgeq.attacks.success import Success, wilson
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.purifiers.base import AbstractPurifier, Draw
from edgeq.purifiers.deployed import AbstractDeployed, Purified
from edgeq.purifiers.shielded import BRANCHES

EPS = (2, 4, 8, 16, 32, 64)
BROUGHT_DOWN = 0.05  # what may be left at an eps at which nothing of an image need be left
WIDE = 64
UNSTEPPED = ("fab", "square")  # have steps of their own
JUDGE = 1_000_003  # seed of the deployed draws, which the attacker does not know


@runtime_checkable
class Keeping(Protocol):
    """What keeps attacked images, see `edgeq.robustness.found`."""

    def read(self, way: str, eps: int, images: UInt8[Tensor, "n c h w"]) -> Attacked | None:
        """Return what is kept, if anything."""

    def write(self, way: str, eps: int, images: UInt8[Tensor, "n c h w"], found: Attacked) -> None:
        """Keep."""


@dataclass(frozen=True)
class Assault:
    """What is tried.

    Attributes:
        ways: Ways of attack; empty is all that mean something.
        eps: Largest changes of a pixel, of 255.
        effort: How hard.
        seed: Of the attacker.
        auto_starts: Starts of Auto-PGD too, in every way that steps by gradients; 0 for none.
    """

    ways: tuple[str, ...] = ()
    eps: tuple[int, ...] = EPS
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    auto_starts: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.auto_starts < 0:
            raise InputError(f"expected auto_starts of 0 or more, got {self.auto_starts}; AutoAttack has 10")
        if not self.eps or min(self.eps) < 1 or max(self.eps) > 255:
            raise InputError(f"expected eps from 1 to 255 (of 255), got {list(self.eps)}; for example 8 64")


def withstood(
    deployed: AbstractDeployed,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    assault: Assault,
    *,
    progress: Callable[[str], None] | None = None,
    kept: Keeping | None = None,
) -> dict[str, Any]:
    """Attack in every way at every eps and return the JSON object; see the module docstring.

    Args:
        deployed: The pipeline; a stochastic purifier is judged on fresh draws, the way `fixed` on the pipeline's own.
        images: Bytes, on the pipeline's device.
        labels: Their classes.
        assault: What is tried.
        progress: Called with a line before each attack.
        kept: Where attacked images are kept, so that a stopped evaluation goes on.
    """
    ways = assault.ways or deployed.ways
    unknown = [way for way in ways if way not in deployed.ways]
    if unknown:
        raise InputError(f"expected attacks out of {', '.join(deployed.ways)}, got {unknown[0]!r}; choose some of them")
    judge = deployed.drawn(Draw((JUDGE, assault.seed), shared=False)) if deployed.stochastic else deployed
    clean = right(judge, images, labels)
    clean_fixed = right(deployed, images, labels)
    rows = []
    for eps in sorted(set(assault.eps)):
        row: dict[str, Any] = {"eps": eps, "ways": {}}
        secret, known = clean.clone(), clean & clean_fixed
        for way in ways:
            if progress is not None:
                progress(f"eps {eps}/255, {way}")
            found = None if kept is None else kept.read(way, eps, images)
            if found is None:
                found = attack_pipeline(
                    way, deployed, images, labels, eps=eps, effort=assault.effort, seed=assault.seed
                )
                if kept is not None:
                    kept.write(way, eps, images, found)
            still = right(deployed if way == "fixed" else judge, found.images, labels)
            before = clean_fixed if way == "fixed" else clean
            row["ways"][way] = _cell(still & before, before, found) | _movement(deployed, images, found)
            known &= still
            if way != "fixed":
                secret &= still
        row["robust"] = _rate(secret)
        if "fixed" in ways:
            row["robust_seed_known"] = _rate(known)
        rows.append(row)
    return {
        "images": len(images),
        "samples": deployed.samples,
        "clean": _rate(clean),
        "rows": rows,
        "warnings": _warnings(rows),
    }


def _tries(ways: tuple[str, ...], assault: Assault) -> list[tuple[str, str, Effort]]:
    """Return what is run: a name, the way, how hard."""
    found = [(way, way, assault.effort) for way in ways]
    if assault.auto_starts:
        auto = replace(assault.effort, ascent="auto", starts=assault.auto_starts)
        found += [(f"{way} auto", way, auto) for way in ways if way not in UNSTEPPED]
    return found


def published_accuracy(
    deployed: AbstractDeployed,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    assault: Assault,
    *,
    made_on: AbstractDeployed | None = None,
) -> dict[int, dict[str, Any]]:
    """Return at each eps what is right under the one attack by which such defences are usually judged.

    PGD on the cross-entropy, straight through, steps of eps / 4, one random start, the last iterate, in float32; on
    something else than what is judged, if `made_on` is given.
    """
    attacked = made_on or deployed
    found = {}
    for eps in sorted(set(assault.eps)):
        masks = []
        size = assault.effort.batch_size
        for number, (x, y) in enumerate(zip(images.split(size), labels.split(size), strict=True)):
            goal, gen = Goal(y), generator("published", f"{eps} {assault.seed} {number}")
            pace = Pace(assault.effort.steps, decay=False)
            worst = ascend(lambda z, goal=goal: goal.loss(attacked(z), "cross-entropy"), Ball(x, eps / 255), pace, gen)
            with torch.no_grad():
                masks.append((deployed(worst).argmax(1) == y) & (deployed(x).argmax(1) == y))
        found[eps] = _rate(torch.cat(masks))
    return found


def bare_accuracy(
    deployed: AbstractDeployed, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], assault: Assault
) -> dict[int, dict[str, Any]]:
    """Return at each eps what the classifier without its purifier withstands, by PGD on it."""
    alone, found = Purified(Nothing(), deployed.victim), {}
    clean = right(alone, images, labels)
    for eps in sorted(set(assault.eps)):
        attacked = attack_pipeline("straight", alone, images, labels, eps=eps, effort=assault.effort, seed=assault.seed)
        found[eps] = _rate(clean & right(alone, attacked.images, labels))
    return found


class Nothing(AbstractPurifier):
    """The purifier that leaves images as they are."""

    stochastic = False
    codewords = False

    def encode(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images

    def squeeze(self, latent: Tensor, draw: Draw, temperature: float) -> Tensor:
        """Return the images."""
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Return the images."""
        return latent

    def bits_per_image(self, image_shape: tuple[int, ...]) -> float:
        """Return no bound."""
        return math.inf

    def not_exportable(self) -> str:
        """Return no reason."""
        return ""


def _rate(mask: Bool[Tensor, " n"]) -> dict[str, Any]:
    low, high = wilson(int(mask.sum()), len(mask))
    return {"right": int(mask.sum()), "total": len(mask), "rate": float(mask.float().mean()), "low": low, "high": high}


def _cell(still: Bool[Tensor, " n"], before: Bool[Tensor, " n"], found: Attacked) -> dict[str, Any]:
    return _rate(still) | {"wins": int((before & ~still).sum()), "tried": int(before.sum()), "flat": found.flat}


@torch.no_grad()
def _movement(deployed: AbstractDeployed, images: UInt8[Tensor, "n c h w"], found: Attacked) -> dict[str, float]:
    """Return how much of a perturbation passes the bottleneck, |P(x + d) - P(x)| / |d|, and the share of new codes."""
    sizes, flips = [], []
    for a, b in zip(images.split(250), found.images.split(250), strict=True):
        clean, attacked = deployed.inside(a), deployed.inside(b)
        pairs = ((clean.before, attacked.before), (clean.after, attacked.after))
        sizes.append(torch.stack([(y - x).norm() ** 2 for x, y in pairs]))
        if clean.codes is not None and attacked.codes is not None:
            flips.append((clean.codes != attacked.codes).float().mean((1, 2)))
    before, after = torch.stack(sizes).sum(0).sqrt()
    body = {"survival": float((after / before.clamp(min=1e-12)).clamp(max=1e6))}
    return body | ({"code_flip": float(torch.cat(flips).mean())} if flips else {})


def _warnings(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    if not any(cell["tried"] for cell in rows[0]["ways"].values()):
        return ["no image is named rightly without an attack; there is nothing to withstand"]
    for row in rows:
        ways = {name: Success(c["wins"], c["tried"]) for name, c in row["ways"].items() if name != "fixed"}
        name = f"eps {row['eps']}/255"
        found += [
            f"{name}, {way}: {100 * cell['flat']:.0f} % of the gradients vanish; this way of attack is blind"
            for way, cell in row["ways"].items()
            if cell["flat"] > FEW
        ]
        white = [ways[w] for w in ("straight", "soft", "eot") if w in ways]
        if white:
            best = max(white, key=lambda s: s.rate)
            for crude in ("square", "transfer", "identity", *BRANCHES):
                if crude in ways:
                    found += check_blackbox(best, ways[crude], name=f"{name}, {crude} against true gradients")
    for way in rows[0]["ways"]:
        rates = {row["eps"]: Success(row["ways"][way]["wins"], row["ways"][way]["tried"]) for row in rows}
        if way != "transfer":  # a transferred attack may saturate honestly
            found += check_growth(rates, budget="eps", name=way)
    last = rows[-1]
    if last["eps"] < WIDE:
        found.append(f"no eps of {WIDE}/255 or more was tried; without it nobody knows whether the attacks work at all")
    elif last["robust"]["rate"] > BROUGHT_DOWN:
        found.append(
            f"at eps {last['eps']}/255, where an attack should leave nothing, {100 * last['robust']['rate']:.1f} % are "
            "withstood; the attacks are too weak or their gradients masked, and the smaller eps prove nothing"
        )
    return found
