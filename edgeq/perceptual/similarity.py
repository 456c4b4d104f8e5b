"""The alignment penalty of TriQDef: how alike two widths' maps look, as one differentiable number.

For maps f_b of widths b (features of the patched images: FDP; input gradients of their loss: GPDP),

    L = mean over pairs i < j and images of [ alpha SoftDice(S(f_i), S(f_j)) + beta cos(H(f_i), H(f_j)) ]

with soft edge masks S (edges.py) and smooth histograms of oriented gradients H (hog.py). Our decisions where the paper
leaves a choice:

* the *mean* over unordered pairs, and over taps, so that a weight lambda means the same for two widths as for five (the
  paper's sums count every ordered pair and layer: 60 times as much for 5 widths and 3 layers);
* S and H are made per channel and joined into one long descriptor per image (`channels="each"`), so SoftDice and the
  cosine sum over channels before they divide: a channel that is dead at both widths changes nothing, one that is dead
  at one of them counts as unlike; or they are made from the mean over channels (`channels="mean"`), for a fraction of
  the cost;
* `centred` subtracts each width's mean histogram over the batch, and `excess` the similarity of *different* images: L
  becomes the mean over pairs of max(0, L_pair - null_pair), the null being that of image n at one
  width and image n+1 of the batch at the other, through both of which gradients flow. Below chance nothing is to be
  gained, hence the hinge. Its minimum can be reached from above (different maps) or from below (maps that look alike
  for all images); watch both terms with `edgeq.perceptual.diagnose`.

Everything is computed once per width and in one product per image for all pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from edgeq.errors import InputError
from edgeq.perceptual.edges import soft_edges
from edgeq.perceptual.gradients import normalise
from edgeq.perceptual.hog import centred, soft_hog
from edgeq.perceptual.null import neighbours
from edgeq.perceptual.pairs import all_pairs, cosine, dice


@dataclass(frozen=True)
class Alignment:
    """What counts as alike.

    Attributes:
        alpha: Weight of SoftDice.
        beta: Weight of the histograms' cosine.
        q: Share of a map's pixels that are no edges.
        sharpness: k of the soft threshold.
        bins: Orientations of a histogram.
        cell: Width of a cell in pixels; None: a quarter of the map's shorter side, at least 2.
        block: Cells along the side of a block that is normalised together.
        channels: "each" (a map per channel) or "mean" (of the channels, one map).
        centred: Subtract each width's mean histogram over the batch.
        excess: Penalise only what lies above the similarity of different images.
    """

    alpha: float = 0.5
    beta: float = 1.0
    q: float = 0.85
    sharpness: float = 100.0
    bins: int = 9
    cell: int | None = None
    block: int = 2
    channels: str = "each"
    centred: bool = False
    excess: bool = False

    def __post_init__(self) -> None:
        """Check the choices."""
        if not (0.0 <= self.alpha < math.inf and 0.0 <= self.beta < math.inf and self.alpha + self.beta > 0.0):
            raise InputError(f"expected alpha and beta of 0 or more, not both 0, got {self.alpha} and {self.beta}")
        if not 0.0 < self.q < 1.0:
            raise InputError(f"expected q between 0 and 1, got {self.q}; 0.85 leaves 15 % of the pixels as edges")
        if not 0.0 < self.sharpness < math.inf:
            raise InputError(f"expected a finite, positive sharpness, got {self.sharpness}; 100 is usual")
        if self.bins < 3 or self.block < 1 or (self.cell is not None and self.cell < 1):
            raise InputError(
                f"expected bins >= 3, block >= 1 and cell >= 1 (or none), got {self.bins}, {self.block}, {self.cell}"
            )
        if self.channels not in ("each", "mean"):
            raise InputError(f"expected channels 'each' or 'mean', got {self.channels!r}")


class Descriptors(NamedTuple):
    """What is compared: soft edge masks and histograms, each [widths, batch, numbers]; None where its weight is 0."""

    edges: Tensor | None
    hog: Tensor | None


def prepare(maps: Float[Tensor, "widths batch c h w"], choices: Alignment) -> Float[Tensor, "widths batch c2 h w"]:
    """Return the normalised maps, of each channel or of their mean, in float32 or float64."""
    if min(maps.shape[-2:]) < 3:
        raise InputError(f"expected maps of at least 3 x 3 pixels, got {tuple(maps.shape[-2:])}; use earlier taps")
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return normalise((maps if choices.channels == "each" else maps.mean(2, keepdim=True)).contiguous())


def describe(maps: Float[Tensor, "widths batch c h w"], choices: Alignment) -> Descriptors:
    """Return the descriptors of every width and image; outside autocast, whose 8 bits of mantissa are too few."""
    with torch.autocast(maps.device.type, enabled=False):
        ready = prepare(maps, choices)
        edges = hog = None
        if choices.alpha:
            edges = soft_edges(ready, q=choices.q, sharpness=choices.sharpness).flatten(2)
        if choices.beta:
            hog = soft_hog(ready, bins=choices.bins, cell=choices.cell, block=choices.block).flatten(2)
        return Descriptors(edges, centred(hog) if hog is not None and choices.centred else hog)


def similarity(
    maps: Float[Tensor, "widths batch c h w"],
    choices: Alignment,
    *,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
    order: Int64[Tensor, " batch"] | None = None,
) -> Float[Tensor, "pairs batch"]:
    """Return alpha SoftDice + beta cosine for each pair of widths and image; with `order`, of n and order[n]."""
    pairs = all_pairs(len(maps)) if pairs is None else pairs
    with torch.autocast(maps.device.type, enabled=False):
        return _weighted(describe(maps, choices), choices, pairs, order)


def alignment_penalty(
    maps: Float[Tensor, "widths batch c h w"],
    choices: Alignment,
    *,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
) -> Float[Tensor, ""]:
    """Return the penalty L of one set of maps: 0 to alpha + beta.

    Args:
        maps: One map per width, image and channel; give only the widths that `pairs` speaks of.
        choices: What counts as alike.
        pairs: Positions of the widths to compare; all unordered pairs by default.
    """
    if len(maps) < 2:
        raise InputError(f"expected maps of at least 2 widths, got {len(maps)}; a single width is aligned with nothing")
    pairs = all_pairs(len(maps)) if pairs is None else pairs
    descriptors = describe(maps, choices)
    with torch.autocast(maps.device.type, enabled=False):
        raw = _weighted(descriptors, choices, pairs, None).mean(1)
        if not choices.excess:
            return raw.mean()
        order = neighbours(maps.shape[1]).to(maps.device)
        return (raw - _weighted(descriptors, choices, pairs, order).mean(1)).relu().mean()


def fdp(
    features: Sequence[Float[Tensor, "widths batch _ _ _"]],
    choices: Alignment | None = None,
    *,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
) -> Float[Tensor, ""]:
    """Return the feature disalignment penalty: the mean of the alignment penalty over the taps' feature maps."""
    if not features:
        raise InputError("expected the feature maps of at least one tap, got none; see edgeq.perceptual.taps")
    choices = choices or Alignment()
    return torch.stack([alignment_penalty(maps, choices, pairs=pairs) for maps in features]).mean()


def gpdp(
    gradients: Float[Tensor, "widths batch c h w"],
    choices: Alignment | None = None,
    *,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
) -> Float[Tensor, ""]:
    """Return the gradient perceptual dissonance penalty: the alignment penalty of the loss's input gradients.

    The gradients need a graph of their own (`torch.autograd.grad(loss, images, create_graph=True)`) for the penalty to
    reach the weights.
    """
    return alignment_penalty(gradients, choices or Alignment(), pairs=pairs)


def _weighted(d: Descriptors, choices: Alignment, pairs: Tensor, order: Tensor | None) -> Tensor:
    terms = []
    if d.edges is not None:
        terms.append(choices.alpha * dice(d.edges, pairs, order))
    if d.hog is not None:
        terms.append(choices.beta * cosine(d.hog, pairs, order))
    return torch.stack(terms).sum(0)
