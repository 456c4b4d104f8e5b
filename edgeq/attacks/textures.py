"""A dictionary of textures from the user's own images, for PatchAttack's texture form.

Random crops of each class are described by the Gram matrix of simple maps (the colours, their horizontal and vertical
differences, and a constant), which keeps what the texture is made of and forgets where. k-means groups the descriptions
of a class; the crop nearest to each centre enters the dictionary. (The original clusters Gram matrices of VGG-19's
features; ours needs no other network.)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from edgeq.attacks.patch import allowed, as_float, cut, draw_places
from edgeq.data.seeds import generator
from edgeq.errors import InputError

ROUNDS = 20  # of k-means; it settles in fewer


@dataclass(frozen=True)
class Textures:
    """Texture images, and the class that each was cut from."""

    images: Float[Tensor, "m c side side"]
    classes: Int64[Tensor, " m"]

    def of(self, label: int | None) -> Int64[Tensor, " k"]:
        """Return the positions of a class's textures, or of all."""
        found = torch.arange(len(self.classes)) if label is None else (self.classes == label).nonzero()[:, 0]
        if len(found) == 0:
            raise InputError(f"expected textures of class {label}, got none; build the dictionary with its images")
        return found


def build_textures(
    images: Shaped[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    side: int = 16,
    per_class: int = 10,
    crops: int = 300,
    seed: int = 0,
) -> Textures:
    """Return a dictionary of `per_class` textures of each class.

    Args:
        images: Where they are cut from: training images, never the attacked ones.
        labels: Their classes.
        side: Side of a texture; at least that of the patch, which is cut out of it.
        per_class: Clusters of each class.
        crops: Random crops of each class that are clustered.
        seed: Decides crops and clusters.
    """
    gen = generator("textures", seed)
    places = allowed((images.shape[2], images.shape[3]), side, "anywhere")
    found, classes = [], []
    for label in labels.unique().tolist():
        own = (labels.cpu() == label).nonzero()[:, 0]
        chosen = own[torch.randint(len(own), (crops,), generator=gen)]
        cropped = cut(as_float(images[chosen.to(images.device)]).cpu(), draw_places(places, crops, gen), side)
        medoids = cluster(gram(cropped), min(per_class, crops), gen)
        found.append(cropped[medoids])
        classes.append(torch.full((len(medoids),), label))
    return Textures(torch.cat(found), torch.cat(classes))


def gram(crops: Float[Tensor, "n c h w"]) -> Float[Tensor, "n features"]:
    """Return the upper triangle of the Gram matrix of colours, differences and a constant, each feature normalised."""
    dy = F.pad(crops[:, :, 1:] - crops[:, :, :-1], (0, 0, 0, 1))
    dx = F.pad(crops[:, :, :, 1:] - crops[:, :, :, :-1], (0, 1))
    maps = torch.cat([crops, dx.abs(), dy.abs(), torch.ones_like(crops[:, :1])], 1).flatten(2)
    products = maps @ maps.transpose(1, 2) / maps.shape[2]
    row, column = torch.triu_indices(maps.shape[1], maps.shape[1])
    features = products[:, row, column]
    return (features - features.mean(0)) / features.std(0).clamp_min(1e-6)


def cluster(features: Float[Tensor, "n d"], count: int, gen: torch.Generator) -> Int64[Tensor, " k"]:
    """Return the rows nearest to the centres of k-means (k-means++ start); fewer than `count` where rows repeat."""
    centres = features[torch.randint(len(features), (1,), generator=gen)]
    while len(centres) < count:
        distance = torch.cdist(features, centres).amin(1).square()
        if not bool((distance > 0).any()):
            break
        centres = torch.cat([centres, features[torch.multinomial(distance, 1, generator=gen)]])
    for _ in range(ROUNDS):
        nearest = torch.cdist(features, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
    return torch.cdist(features, centres).argmin(0).unique()
