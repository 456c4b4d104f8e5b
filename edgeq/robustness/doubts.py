"""Reasons to distrust the numbers of a matrix, in words, found without being asked."""

from edgeq.attacks import Success, surrogate
from edgeq.attacks.checks import (
    ENOUGH,
    check_climb,
    check_gradients,
    check_growth,
    check_paired,
    check_settled,
    check_victim,
)
from edgeq.attacks.patch import as_float
from edgeq.quant.network import MultiBitNet
from edgeq.robustness.arsenal import LOCATED, arm
from edgeq.robustness.matrix import Entry, Matrix

FEW = 100  # attacked images, below which an interval spans ten points or more


def doubts(matrix: Matrix, net: MultiBitNet) -> tuple[str, ...]:
    """Return all warnings; none is the good case."""
    found: list[str] = []
    for bits in matrix.bits:
        found += check_victim(surrogate(net, bits), as_float(matrix.shown[:8]), name=f"{bits} bits")
    for entry in matrix.entries:
        if arm(entry.cell.attack).gradients and not _won(matrix, entry):
            found += check_gradients(entry.result, name=entry.cell.name)
            found += check_climb(entry.result, name=entry.cell.name)
            found += check_settled(entry.result, name=entry.cell.name)
    for bits in matrix.bits:
        found += _masked(matrix, bits) + _stuck(matrix, bits) + _unequal(matrix, bits)
    if matrix.attacked < FEW:
        found.append(
            f"{matrix.attacked} attacked images are few: an interval spans ten points and more; take more with --images"
        )
    return tuple(dict.fromkeys(found))


def _won(matrix: Matrix, entry: Entry) -> bool:
    """Whether patches work on nearly all images where they were made: then no gradient is missed."""
    names = [str(b) for b in entry.cell.widths if b in matrix.bits]
    return bool(names) and all(_aimed(matrix, entry, int(name)).rate >= ENOUGH for name in names)


def _masked(matrix: Matrix, bits: int) -> list[str]:
    """Warn where patches made otherwise beat those made with this width's own gradients."""
    found: list[str] = []
    name = str(bits)
    for size in sorted(matrix.plan.sizes):
        cells = [e for e in matrix.entries if e.cell.size == size and not e.cell.probe]
        white = [e for e in cells if e.cell.white_box(bits) and arm(e.cell.attack).gradients]
        others = [e for e in cells if e not in white]
        if not white or not others:
            continue
        best, strongest = _best(matrix, others, bits), _best(matrix, white, bits)
        title = f"{bits} bits, {size}x{size}: {best.cell.name} against the gradients of {bits} bits"
        found += check_paired(matrix.fooled(strongest, name), matrix.fooled(best, name), name=title)
    return found


def _stuck(matrix: Matrix, bits: int) -> list[str]:
    """Warn where success does not grow with the patch, or with the steps."""
    found: list[str] = []
    own = [e for e in matrix.entries if e.cell.white_box(bits)]
    for attack in matrix.plan.attacks:
        for towards in {e.cell.towards for e in own if e.cell.attack == attack}:
            same = [e for e in own if e.cell.attack == attack and e.cell.towards == towards]
            rates = {e.cell.size: _aimed(matrix, e, bits) for e in same}
            found += check_growth(rates, budget="patch side", name=f"{attack} on {bits} bits")
    short = [e for e in own if e.cell.probe]
    for entry in short:
        full = [e for e in own if e.cell.attack == LOCATED and e.cell.size == entry.cell.size]
        steps = matrix.plan.effort.steps
        if full and steps > 1:
            rates = {max(1, steps // 8): _aimed(matrix, entry, bits), steps: _aimed(matrix, full[0], bits)}
            found += check_growth(rates, budget="number of steps", name=f"{LOCATED} on {bits} bits")
    return found


def _unequal(matrix: Matrix, bits: int) -> list[str]:
    name = str(bits)
    if bits in matrix.refused:
        return [f"{bits} bits: there is no integer model to measure on: {matrix.refused[bits]}"]
    asked = [matrix.clean[name], *(entry.answers[name] for entry in matrix.entries)]
    wrong, codes = sum(a.mismatches for a in asked), sum(a.codes for a in asked)
    if not wrong:
        return []
    return [
        f"{bits} bits: {wrong} of {codes} logits of the integer model in ONNX Runtime differ from the simulated ones; "
        "what was attacked is not what ships: run edgeq verify on the exported model"
    ]


def _best(matrix: Matrix, entries: list[Entry], bits: int) -> Entry:
    return max(entries, key=lambda entry: matrix.untargeted(entry, str(bits)).rate)


def _aimed(matrix: Matrix, entry: Entry, bits: int) -> Success:
    """Success at what the patch was made for."""
    return matrix.targeted(entry, str(bits)) or matrix.untargeted(entry, str(bits))
