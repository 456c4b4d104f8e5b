"""How alike the widths look: features and input gradients on patched images, pair by pair, beside their null."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks import surrogate
from edgeq.attacks.patch import as_float
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.perceptual import diagnose, feature_taps
from edgeq.perceptual.pairs import all_pairs
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet

GRADIENT = "input gradient"
MEASURES = ("cosine", "edge_iou", "hog", "hog_centred")


def alignment(
    net: MultiBitNet,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    bits: tuple[int, ...],
    *,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Return one row per place (input gradient, feature tap) and pair of widths: each measure, its null, its excess.

    Args:
        net: The network.
        images: Usually patched ones, two or more.
        labels: Their classes.
        bits: The widths to compare.
        seed: Decides the shuffles of the null.
    """
    if len(bits) < 2 or len(images) < 2:
        return []
    maps = {GRADIENT: input_gradients(net, images, labels, bits)} | _features(net, images, bits)
    pairs = all_pairs(len(bits))
    rows: list[dict[str, object]] = []
    for place, values in maps.items():
        try:
            measured = diagnose(values, pairs=pairs, generator=generator("alignment", seed))
        except InputError:  # maps too small for edges or cells
            continue
        for number, (i, j) in enumerate(pairs.tolist()):
            row: dict[str, object] = {"where": place, "first": bits[i], "second": bits[j]}
            for name in MEASURES:
                raw, null = (float(v[number].mean()) for v in (measured[name].similarity, measured[name].null))
                row[name] = {"similarity": raw, "null": null, "excess": raw - null}
            rows.append(row)
    return rows


def input_gradients(
    net: MultiBitNet, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], bits: tuple[int, ...]
) -> Float[Tensor, "widths n c h w"]:
    """Return the gradient of each image's cross-entropy with respect to its pixels, at each width."""
    found = []
    with torch.enable_grad():
        for b in bits:
            variable = as_float(images).clone().requires_grad_()
            loss = F.cross_entropy(surrogate(net, b)(variable), labels.to(images.device), reduction="sum")
            found.append(torch.autograd.grad(loss, variable)[0])
    return torch.nan_to_num(torch.stack(found), nan=0.0, posinf=0.0, neginf=0.0)


@torch.no_grad()
def _features(net: MultiBitNet, images: Tensor, bits: tuple[int, ...]) -> dict[str, Tensor]:
    try:
        taps = feature_taps(net)
    except InputError:  # a network without maps
        return {}
    before, net.width.deployed = net.width.deployed, True
    kept: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    try:
        for b in bits:
            with at_bits(net, b):
                values = net.values(images, keep=taps)
            for tap in taps:
                kept[tap].append(values[tap].real)
    finally:
        net.width.deployed = before
    return {f"features of {tap}": torch.stack(maps) for tap, maps in kept.items()}
