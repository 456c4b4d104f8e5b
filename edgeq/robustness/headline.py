"""From the matrix to the numbers that are reported: for each width the maximum over attacks and surrogates.

White-box (patches made on the very width) and transfer (made on anything else: another width, all jointly, all but this
one, a tuned copy) are kept apart, because a defence against transfer says nothing about the first. `blind` is the part
of transfer whose maker never saw the width's answers: other widths, and all but this one. `worst` counts an image as
lost as soon as any patch of the kind fools it, so it is at least the maximum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeq.attacks import Success
from edgeq.robustness.matrix import Entry, Matrix
from edgeq.robustness.plan import Cell

Belongs = Callable[[Cell, int], bool]

KINDS: dict[str, Belongs] = {
    "white_box": lambda cell, bits: cell.white_box(bits),
    "transfer": lambda cell, bits: not cell.white_box(bits),
    "blind": lambda cell, bits: cell.blind(bits),
}


@dataclass(frozen=True)
class Top:
    """The largest success of a kind, and where it came from.

    Attributes:
        success: Wins and total.
        cell: Which patches.
        worst: Images lost to any patch of the kind; None for targeted success.
        tried: Cells of the kind.
    """

    success: Success
    cell: Cell
    worst: Success | None
    tried: int


@dataclass(frozen=True)
class Headline:
    """What one width, or another victim, withstands.

    Attributes:
        name: The width, or the victim's name.
        size: Side of the patches; None is all sizes.
        clean: Accuracy without a patch.
        untargeted: By kind; a kind without a cell is missing.
        targeted: By kind.
    """

    name: str
    size: int | None
    clean: Success
    untargeted: dict[str, Top]
    targeted: dict[str, Top]


def headlines(matrix: Matrix, *, size: int | None = None) -> tuple[Headline, ...]:
    """Return the headline of everyone who was asked, over all sizes or for one."""
    return tuple(_headline(matrix, name, size) for name in matrix.names)


def _headline(matrix: Matrix, name: str, size: int | None) -> Headline:
    entries = [e for e in matrix.entries if not e.cell.probe and size in (None, e.cell.size)]
    untargeted: dict[str, Top] = {}
    targeted: dict[str, Top] = {}
    for kind in KINDS:
        found = [entry for entry in entries if belongs(kind, entry.cell, name)]
        if not found:
            continue
        best = max(found, key=lambda entry: matrix.untargeted(entry, name).rate)
        untargeted[kind] = Top(matrix.untargeted(best, name), best.cell, worst_case(matrix, found, name), len(found))
        aimed = [(s, e) for e in found if (s := matrix.targeted(e, name)) is not None]
        if aimed:
            top, entry = max(aimed, key=lambda pair: pair[0].rate)
            targeted[kind] = Top(top, entry.cell, None, len(aimed))
    return Headline(name, size, matrix.accuracy(name), untargeted, targeted)


def belongs(kind: str, cell: Cell, name: str) -> bool:
    """Return whether a cell is of a kind, seen from a width; for another victim all widths jointly are white-box."""
    if name.isdecimal():
        return KINDS[kind](cell, int(name))
    white = cell.surrogate == "joint"
    return {"white_box": white, "transfer": not white, "blind": False}[kind]


def worst_case(matrix: Matrix, entries: list[Entry], name: str) -> Success:
    """Return how many images at least one of the cells fools, of those named rightly without a patch."""
    fooled = torch.stack([matrix.fooled(entry, name) for entry in entries]).any(0)
    return Success(int(fooled.sum()), int((matrix.clean[name].named == matrix.labels).sum()))
