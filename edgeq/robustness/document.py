"""An evaluation as one JSON object; `docs/robustness.md` describes it."""

import dataclasses
from typing import Any

from edgeq.attacks import Success
from edgeq.robustness.headline import Headline, Top, headlines
from edgeq.robustness.matrix import Entry, Matrix

Json = dict[str, Any]  # Any: JSON


def document(
    matrix: Matrix, *, warnings: tuple[str, ...] = (), perceptual: list[dict[str, object]] | None = None
) -> Json:
    """Return everything that was measured."""
    plan = matrix.plan
    return {
        "bits": list(matrix.bits),
        "images": matrix.images,
        "attacked": matrix.attacked,
        "plan": {
            "attacks": list(plan.attacks),
            "surrogates": list(plan.surrogates),
            "several": list(plan.several or plan.attacks),
            "sizes": sorted(plan.sizes),
            "towards": list(plan.towards),
            "seed": plan.seed,
            "effort": dataclasses.asdict(plan.effort),
        },
        "headline": [_headline(line) for line in headlines(matrix)],
        "by_size": [_headline(line) for size in sorted(plan.sizes) for line in headlines(matrix, size=size)],
        "cells": [_cell(matrix, entry) for entry in matrix.entries],
        "perceptual": perceptual or [],
        "integer": _integer(matrix),
        "warnings": list(warnings),
    }


def counted(value: Success) -> Json:
    """Return a success with its interval of 95 %."""
    low, high = value.interval()
    return {"wins": value.wins, "total": value.total, "rate": value.rate, "low": low, "high": high}


def _headline(line: Headline) -> Json:
    return {
        "name": line.name,
        "size": line.size,
        "clean": counted(line.clean),
        "untargeted": {kind: _top(top) for kind, top in line.untargeted.items()},
        "targeted": {kind: _top(top) for kind, top in line.targeted.items()},
    }


def _top(top: Top) -> Json:
    cell = top.cell
    where = {"attack": cell.attack, "size": cell.size, "surrogate": cell.surrogate, "towards": cell.towards}
    worst = {} if top.worst is None else {"worst": counted(top.worst)}
    return {**counted(top.success), **where, "cells": top.tried, **worst}


def _cell(matrix: Matrix, entry: Entry) -> Json:
    cell, result = entry.cell, entry.result
    return {
        "attack": cell.attack,
        "size": cell.size,
        "surrogate": cell.surrogate,
        "towards": cell.towards,
        "probe": cell.probe,
        "queries": entry.queries,
        "seconds": entry.seconds,
        "flat": result.flat,
        "dead": result.dead,
        "late": result.late,
        "results": [_result(matrix, entry, name) for name in matrix.names],
    }


def _result(matrix: Matrix, entry: Entry, name: str) -> Json:
    targeted = matrix.targeted(entry, name)
    row: Json = {
        "name": name,
        "untargeted": counted(matrix.untargeted(entry, name)),
        "targeted": None if targeted is None else counted(targeted),
        "integer": None,
    }
    if matrix.clean[name].integer is not None:
        aimed = matrix.targeted(entry, name, integer=True)
        row["integer"] = {
            "untargeted_wins": matrix.untargeted(entry, name, integer=True).wins,
            "targeted_wins": None if aimed is None else aimed.wins,
            "codes": entry.answers[name].codes,
            "mismatches": entry.answers[name].mismatches,
        }
    return row


def _integer(matrix: Matrix) -> Json:
    """Return how the integer models' answers compare with the simulated ones, clean and patched, over all widths."""
    asked = [matrix.clean[name] for name in matrix.names]
    asked += [entry.answers[name] for entry in matrix.entries for name in matrix.names]
    codes, wrong = sum(a.codes for a in asked), sum(a.mismatches for a in asked)
    measured = [int(name) for name in matrix.names if matrix.clean[name].integer is not None]
    return {
        "bits": measured,
        "codes": codes,
        "mismatches": wrong,
        "equal": None if codes == 0 else wrong == 0,
        "refused": {str(bits): reason for bits, reason in matrix.refused.items()},
    }
