"""What a report shows of an evaluation: some patched images, and the maps in which widths look alike or do not.

The maps are of the input gradient at each width: its magnitude, its Sobel edges, and its histograms of orientations.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeq.files import load_tensors, read_json, save_tensors, write_json
from edgeq.perceptual.edges import edge_magnitude
from edgeq.perceptual.gradients import central, normalise
from edgeq.perceptual.hog import cell_size
from edgeq.perceptual.orientation import hard_histograms
from edgeq.quant.network import MultiBitNet
from edgeq.robustness.arsenal import LOCATED
from edgeq.robustness.matrix import Entry, Matrix
from edgeq.robustness.perception import alignment, input_gradients

TENSORS, CAPTIONS = "pictures.safetensors", "pictures.json"
SHOWN = 6  # images per attack
MAPS = 2  # images whose gradients are shown
COMPARED = 64  # images over which similarities are averaged
BINS = 9


@dataclass(frozen=True)
class Pictures:
    """Tensors by name, and what to write beside them."""

    tensors: dict[str, Tensor]
    captions: dict[str, Any]  # Any: JSON


def look(net: MultiBitNet, matrix: Matrix, *, classes: tuple[str, ...]) -> tuple[list[dict[str, object]], Pictures]:
    """Return the similarities of the widths on patched images, and the pictures of a report."""
    entry = _typical(matrix)
    patched = entry.result.on(matrix.shown, seed=(matrix.plan.seed, entry.cell.size))
    order = torch.linspace(0, len(patched) - 1, min(COMPARED, len(patched))).long()
    rows = alignment(net, patched[order], matrix.labels[order], matrix.bits, seed=matrix.plan.seed)
    return rows, _pictures(net, matrix, classes)


def keep_pictures(folder: Path, pictures: Pictures) -> None:
    """Write the pictures; the captions last."""
    save_tensors(folder / TENSORS, pictures.tensors)
    write_json(folder / CAPTIONS, pictures.captions)


def open_pictures(folder: Path) -> Pictures | None:
    """Read the pictures, if there are any."""
    if not (folder / CAPTIONS).exists():
        return None
    return Pictures(load_tensors(folder / TENSORS), read_json(folder / CAPTIONS))


def _typical(matrix: Matrix) -> Entry:
    """Return the smallest located patches made on the highest width, or what comes closest."""
    real = [e for e in matrix.entries if not e.cell.probe]
    return min(real, key=lambda e: (e.cell.attack != LOCATED, e.cell.size, e.cell.surrogate != str(matrix.bits[0])))


def _pictures(net: MultiBitNet, matrix: Matrix, classes: tuple[str, ...]) -> Pictures:
    picked = torch.linspace(0, len(matrix.shown) - 1, min(SHOWN, len(matrix.shown))).long()
    tensors = {"clean": matrix.shown[picked].cpu()}
    strips: list[dict[str, Any]] = []
    low = str(matrix.bits[-1])
    smallest = min(matrix.plan.sizes)
    for attack in matrix.plan.attacks:
        found = [e for e in matrix.entries if e.cell.attack == attack and e.cell.size == smallest]
        entry = next((e for e in found if e.cell.surrogate == low), found[0] if found else None)
        if entry is None:
            continue
        name = f"strip-{len(strips)}"
        tensors[name] = entry.result.on(matrix.shown, seed=(matrix.plan.seed, smallest))[picked].cpu()
        named = {who: [classes[i] for i in entry.answers[who].named[picked].tolist()] for who in matrix.names}
        strips.append({"tensor": name, "name": entry.cell.name, "named": named})
    named = {who: [classes[i] for i in matrix.clean[who].named[picked].tolist()] for who in matrix.names}
    captions = {
        "true": [classes[i] for i in matrix.labels[picked].tolist()],
        "clean": named,
        "strips": strips,
        "bits": list(matrix.bits),
    }
    return Pictures(tensors | _maps(net, matrix, picked[:MAPS]), captions)


def _maps(net: MultiBitNet, matrix: Matrix, picked: Tensor) -> dict[str, Tensor]:
    gradients = input_gradients(net, matrix.shown[picked], matrix.labels[picked], matrix.bits)
    if min(gradients.shape[-2:]) < 3:
        return {}
    maps = normalise(gradients.mean(2))
    size = cell_size(*maps.shape[-2:])
    height, width = (side - side % size for side in maps.shape[-2:])
    flat = maps.flatten(0, 1)
    dx, dy = (d[:, :height, :width] for d in central(flat))
    cells = hard_histograms(dx, dy, bins=BINS, cell=size).movedim(0, -1)
    found = {
        "gradient": gradients.abs().sum(2),
        "sobel": edge_magnitude(maps),
        "hog": cells.unflatten(0, maps.shape[:2]),
    }
    return {name: value.detach().float().cpu() for name, value in found.items()}
