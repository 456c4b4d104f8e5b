"""The permutation null: how alike maps of *different* images look.

Perceptual similarities have a floor far above 0. Two independent noise maps have a raw histogram cosine of 0.8 to 0.9,
two maps that share no more than an object's outline have an edge IoU of 0.4. A similarity says something only as excess
over the same measure between width i on image n and width j on another image.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from edgeq.errors import InputError


def neighbours(batch: int, shift: int = 1) -> Int64[Tensor, " batch"]:
    """Return the order n -> n + shift, around the end: for images that are already shuffled."""
    if batch < 2 or shift % batch == 0:
        raise InputError(
            f"expected a batch of 2 or more and a shift that moves it, got a batch of {batch} and {shift}; "
            "without another image there is no null"
        )
    return (torch.arange(batch) + shift) % batch


def derangement(batch: int, generator: torch.Generator | None = None) -> Int64[Tensor, " batch"]:
    """Return a random order without fixed points: neighbours on a random circle."""
    if batch < 2:
        raise InputError(f"expected a batch of 2 or more, got {batch}; without another image there is no null")
    circle = torch.randperm(batch, generator=generator)
    order = torch.empty_like(circle)
    order[circle] = circle.roll(-1)
    return order
