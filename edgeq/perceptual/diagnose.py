"""Measures of alignment for reports: hard and soft, raw and centred, each with its null."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from edgeq.perceptual.edges import hard_edges
from edgeq.perceptual.hog import centred, hard_hog
from edgeq.perceptual.null import derangement
from edgeq.perceptual.pairs import all_pairs, cosine, dice, overlap
from edgeq.perceptual.similarity import Alignment, describe, prepare


@dataclass(frozen=True)
class Measured:
    """One measure, for each pair of widths and image.

    Attributes:
        similarity: Of the same image at both widths.
        null: Of different images at the two widths, the mean over several orders.
    """

    similarity: Tensor
    null: Tensor

    @property
    def excess(self) -> Tensor:
        """Similarity above the null, each pair's mean over the images."""
        return self.similarity.mean(1) - self.null.mean(1)


@torch.no_grad()
def diagnose(
    maps: Float[Tensor, "widths batch c h w"],
    choices: Alignment | None = None,
    *,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
    orders: int = 8,
    generator: torch.Generator | None = None,
) -> dict[str, Measured]:
    """Return every measure of alignment with its null.

    Args:
        maps: One map per width, image and channel.
        choices: Quantile, bins, cells and channels; its weights and switches do not matter here.
        pairs: Positions of the widths to compare; all unordered pairs by default.
        orders: How many random orders the null is averaged over.
        generator: Where the orders come from.

    Returns:
        "cosine" (of the maps as vectors), "edge_iou" and "hog" (hard), "hog_centred", "soft_dice", "soft_hog" and
        "soft_hog_centred".
    """
    choices = choices or Alignment()
    pairs = all_pairs(len(maps)) if pairs is None else pairs
    shuffles = [derangement(maps.shape[1], generator).to(maps.device) for _ in range(orders)]
    ready = prepare(maps, choices)
    hard = hard_hog(ready, bins=choices.bins, cell=choices.cell, block=choices.block).flatten(2)
    soft = describe(maps, replace(choices, alpha=1.0, beta=1.0, centred=False))
    assert soft.edges is not None and soft.hog is not None
    vectors = maps if maps.dtype == torch.float64 else maps.float()
    sources = {
        "cosine": (cosine, vectors / vectors.abs().amax((2, 3, 4), keepdim=True).clamp_min(1e-30)),
        "edge_iou": (overlap, hard_edges(ready, q=choices.q)),
        "hog": (cosine, hard),
        "hog_centred": (cosine, centred(hard)),
        "soft_dice": (dice, soft.edges),
        "soft_hog": (cosine, soft.hog),
        "soft_hog_centred": (cosine, centred(soft.hog)),
    }
    result = {}
    for name, (measure, values) in sources.items():
        rows = values.flatten(2)
        null = torch.stack([measure(rows, pairs, order) for order in shuffles]).mean(0)
        result[name] = Measured(measure(rows, pairs), null)
    return result
