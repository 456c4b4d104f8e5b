"""Where to look at features: the ends of a network's early and middle stages.

A stage is the run of steps whose maps have one resolution. Its tap is its last step that computes something (a narrow
copy of an edge shows the same map again). The last stage is left out, unless it is the only one: its maps carry the
classes, and penalising them costs accuracy. So are maps under 4 x 4 pixels.

    resnet20    the ends of the 32 x 32 and 16 x 16 stages
    vgg16_bn    the last convolutions at 32 x 32, 16 x 16 and 8 x 8
"""

from collections.abc import Sequence

import torch

from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from edgeq.quant.units import FlattenUnit, InputUnit, NarrowUnit

SMALLEST = 4  # pixels along a side


def feature_taps(net: MultiBitNet, names: Sequence[str] = (), *, most: int = 3) -> tuple[str, ...]:
    """Return step names to keep: `MultiBitNet.values(images, keep=names)` gives the maps.

    Args:
        net: The network; it is run once on a black image, without a gradient or a trace.
        names: Your own choice, which is then only checked.
        most: How many stages at the most, from the first.
    """
    sides = _sides(net)
    if names:
        return _checked(tuple(names), sides, net)
    ends: dict[tuple[int, int], str] = {}
    for name, side in sides.items():
        if min(side) >= SMALLEST and not isinstance(net.units[name], (NarrowUnit, InputUnit, FlattenUnit)):
            ends[side] = name
    if not ends:
        raise InputError(
            f"expected feature maps of {SMALLEST} x {SMALLEST} pixels or more, got none in this network; use gpdp alone"
        )
    stages = list(ends.values())
    return tuple((stages[:-1] or stages)[:most])


def _sides(net: MultiBitNet) -> dict[str, tuple[int, int]]:
    """The height and width of every step that has them, in the order of the steps."""
    device = next(net.parameters()).device
    black = torch.zeros((1, *net.image_shape), dtype=torch.uint8, device=device)
    before = net.training
    net.eval()
    try:
        with torch.no_grad():
            values = net.values(black, keep=net.names)
    finally:
        net.train(before)
    shapes = {name: values[name].codes.shape for name in net.names}
    return {name: (shape[2], shape[3]) for name, shape in shapes.items() if len(shape) == 4}


def _checked(names: tuple[str, ...], sides: dict[str, tuple[int, int]], net: MultiBitNet) -> tuple[str, ...]:
    unknown = [name for name in names if name not in net.names]
    if unknown:
        raise InputError(f"expected steps of the network, got {unknown}; it has {', '.join(sides)}")
    flat = [name for name in names if min(sides.get(name, (0, 0))) < 3]
    if flat:
        raise InputError(
            f"expected steps with maps of 3 x 3 pixels or more, got {flat}; try {', '.join(feature_taps(net))}"
        )
    return names
