"""Which test image an attack on single images is after, and what it shall be named."""

import torch
from jaxtyping import Bool
from torch import Tensor

from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.poison.base import Scene, draw
from edgeq.poison.goals import Targets
from edgeq.poison.networks import named


def choose(scene: Scene) -> Targets:
    """Return the scene's target: one of the test images that all surrogates name rightly, towards another class.

    An image that is named wrongly from the start would prove nothing.
    """
    right = _right(scene)
    order = [i for i in draw("poison target", scene, len(right)).tolist() if bool(right[i])]
    if scene.number >= len(order):
        raise InputError(
            f"expected a target below {len(order)}, the test images that the surrogate names rightly, got "
            f"{scene.number}; choose a smaller number or train longer"
        )
    place = torch.tensor([order[scene.number]])
    true = int(scene.test.labels[place])
    other = torch.randint(scene.classes - 1, (), generator=generator("poison label", scene.seed, scene.number))
    return Targets(scene.test.images[place], scene.test.labels[place], int((true + 1 + other) % scene.classes))


def possible(scene: Scene) -> int:
    """Return how many targets there are."""
    return int(_right(scene).sum())


def _right(scene: Scene) -> Bool[Tensor, " n"]:
    right = torch.ones(len(scene.test), dtype=torch.bool)
    for net in scene.nets:
        right &= (named(net, scene.test.images) == scene.test.labels).cpu()
    return right
