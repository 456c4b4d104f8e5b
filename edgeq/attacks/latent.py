"""Attacks on an autoencoder: images changed by at most eps in every pixel, so that their latents land elsewhere.

    x' = argmin |E(x') - t|^2,   |x' - x| <= eps     from random starts, by projected gradient steps

The four differ by the target t alone:

    photoguard      0, the middle of the prior (Salman et al., arXiv 2302.06588, the encoder attack)
    mist            the latent of a pattern (Liang and Wu, arXiv 2305.12683, the textural loss; ours is a checkerboard)
    glaze           the latent of an image of another class, one for each image (Shan et al., arXiv 2302.04222)
    nightshade      the latent of the next class's anchor, its most typical image (Shan et al., arXiv 2310.13828)

Glaze's style transfer and its perceptual bound, and Nightshade's generated anchors and prompts, are not here: the bound
is eps, and the images are the data's. None of the four climbs what is measured, the error of the reconstruction, so a
fifth way does:

    reconstruction  x' = argmax |D(E(x')) - x|^2

The attacker knows the network that is attacked. What is judged are bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from edgeq.attacks.ball import Ball, Losses, ascend
from edgeq.attacks.pipeline import Effort
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.purifiers.base import AbstractPurifier, as_unit, to_bytes

TARGETED = ("photoguard", "mist", "glaze", "nightshade")
LATENT_WAYS = (*TARGETED, "reconstruction")
SQUARE = 4  # pixels of the checkerboard's squares


@dataclass(frozen=True)
class Autoencoder:
    """What the attacker differentiates; both take bytes or floats in [0, 1].

    Attributes:
        encode: Images to latents.
        redraw: Images to images in [0, 1].
    """

    encode: Callable[[Tensor], Tensor]
    redraw: Callable[[Tensor], Tensor]


def autoencoder(purifier: AbstractPurifier) -> Autoencoder:
    """Return a deterministic purifier as an attacker sees it."""
    return Autoencoder(lambda images: purifier.encode(as_unit(images)), purifier)


def check_way(way: str, labels: Int64[Tensor, " n"]) -> None:
    """Say why an attack cannot be made on images of these classes."""
    if way not in LATENT_WAYS:
        raise InputError(f"expected an attack out of {', '.join(LATENT_WAYS)}, got {way!r}")
    if way in ("glaze", "nightshade") and len(labels.unique()) < 2:
        raise InputError(f"expected images of two classes or more for {way}, got one class; attack more images")


@torch.no_grad()
def target(
    way: str, model: Autoencoder, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, seed: int = 0
) -> Float[Tensor, "n d h2 w2"]:
    """Return the latent that each image is drawn to."""
    check_way(way, labels)
    latents = model.encode(images)
    if way == "photoguard":
        return torch.zeros_like(latents)
    if way == "mist":
        return model.encode(checkerboard(images[:1])).expand_as(latents)
    if way == "glaze":
        return latents[others(labels, generator("glaze", seed))]
    assert way == "nightshade"
    return latents[anchors(latents, labels)]


def checkerboard(like: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Return black and white squares."""
    rows, columns = (torch.arange(side, device=like.device) // SQUARE for side in like.shape[2:])
    return ((rows[:, None] + columns) % 2 * 255).to(torch.uint8).expand_as(like)


def others(labels: Int64[Tensor, " n"], gen: torch.Generator) -> Int64[Tensor, " n"]:
    """Return for each image a random one of another class."""
    rank = torch.rand(len(labels), len(labels), generator=gen).to(labels.device)
    return rank.masked_fill(labels[:, None] == labels, -1).argmax(1)


def anchors(latents: Float[Tensor, "n d h w"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return for each image the one of the next class that is nearest to that class's mean latent."""
    flat = latents.flatten(1)
    classes, which = labels.unique(return_inverse=True)
    found = []
    for number in range(len(classes)):
        mine = (which == number).nonzero()[:, 0]
        found.append(mine[(flat[mine] - flat[mine].mean(0)).norm(dim=1).argmin()])
    return torch.stack(found)[(which + 1) % len(classes)]


def attack_autoencoder(
    way: str,
    model: Autoencoder,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    eps: int,
    effort: Effort,
    seed: int = 0,
) -> UInt8[Tensor, "n c h w"]:
    """Attack bytes in one way and return the best of all starts, image by image.

    Args:
        way: One of LATENT_WAYS.
        model: What is attacked.
        images: Bytes, on the model's device.
        labels: Their classes.
        eps: Largest change of a pixel, in 1/255.
        effort: How hard: its steps, ascent, starts and batch size.
        seed: Decides the starts and the targets.
    """
    check_way(way, labels)
    if not 1 <= eps <= 255:
        raise InputError(f"expected eps from 1 to 255 (of 255), got {eps}; choose another")
    goals = target(way, model, images, labels, seed=seed) if way in TARGETED else images / 255.0
    parts = []
    pairs = zip(images.split(effort.batch_size), goals.split(effort.batch_size), strict=True)
    for number, (x, goal) in enumerate(pairs):
        gen = generator("latent", f"{way} {eps} {seed} {number}")
        parts.append(_strongest(_losses(way, model, goal), Ball(x, eps / 255), effort, gen))
    return torch.cat(parts)


def _losses(way: str, model: Autoencoder, goal: Float[Tensor, "n c h w"]) -> Losses:
    """Return what is climbed: the nearness to a latent, or the distance from the image."""
    towards = way in TARGETED

    def losses(x: Shaped[Tensor, "n c h w"]) -> Tensor:
        reached = model.encode(x) if towards else model.redraw(x)
        distance = (reached - goal).square().flatten(1).mean(1)
        return -distance if towards else distance

    return losses


def _strongest(losses: Losses, ball: Ball, effort: Effort, gen: torch.Generator) -> UInt8[Tensor, "n c h w"]:
    best = to_bytes(ball.centre)
    highest = torch.full((len(best),), -torch.inf, device=best.device)
    for _ in range(effort.starts):
        found = to_bytes(ascend(losses, ball, effort.way, gen))
        with torch.no_grad():
            reached = losses(found)
        best[reached > highest] = found[reached > highest]
        highest = torch.maximum(highest, reached)
    return best
