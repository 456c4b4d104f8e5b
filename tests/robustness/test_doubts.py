"""Warnings fire where something is wrong by construction, and only there."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeq.attacks.base import PatchResult
from edgeq.attacks.patch import Placement
from edgeq.data import Dataset
from edgeq.quant.network import MultiBitNet
from edgeq.robustness import Cell, Entry, Matrix, Plan, attack_matrix, document, doubts, headlines
from edgeq.robustness.answers import Answer
from tests.robustness.conftest import SIDE, halves_network
from tests.robustness.test_matrix import PLAN

COUNT = 200
RISING = (0.0, 0.1, 0.2, 0.3)


def _result(size: int, *, flat: float = 0.0, dead: float = 0.0, trace: tuple[float, ...] = RISING) -> PatchResult:
    zero = torch.zeros(COUNT, dtype=torch.int64)
    patch = torch.zeros(COUNT, 3, size, size)
    return PatchResult(patch, Placement(zero, zero), None, zero.double(), zero, trace, flat, dead)


def _entry(attack: str, size: int, made: int, wins: dict[int, int], result: PatchResult | None = None) -> Entry:
    """A cell whose patches fool the first `wins` images of each width."""
    answers = {str(b): Answer((torch.arange(COUNT) < count).long()) for b, count in wins.items()}
    cell = Cell(attack, size, str(made), (made,))
    return Entry(cell, result or _result(size), answers, 1.0, 1.0, kept=False)


def _matrix(*entries: Entry, sizes: tuple[int, ...] = (6,)) -> Matrix:
    """All images are of class 0, and named so without a patch."""
    labels = torch.zeros(COUNT, dtype=torch.int64)
    shown = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    clean = {"32": Answer(labels), "8": Answer(labels)}
    plan = Plan(attacks=tuple(dict.fromkeys(e.cell.attack for e in entries if not e.cell.probe)), sizes=sizes)
    return Matrix(plan, (32, 8), COUNT, COUNT, labels, shown, clean, entries)


def test_nothing_is_doubted_where_all_is_well(agreeing: MultiBitNet) -> None:
    sound = _matrix(_entry("located", 6, 32, {32: 150, 8: 100}), _entry("located", 6, 8, {32: 100, 8: 150}))
    assert doubts(sound, agreeing) == ()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (_result(6, flat=1.0), "gradients with respect to the image are zero"),
        (_result(6, dead=0.9), "patch's pixels are zero"),
        (_result(6, trace=(0.3, 0.2, 0.1, 0.0)), "does not climb"),
    ],
)
def test_a_search_that_went_wrong_is_doubted(result: PatchResult, words: str, agreeing: MultiBitNet) -> None:
    assert any(words in text for text in doubts(_matrix(_entry("located", 6, 32, {32: 20, 8: 20}, result)), agreeing))
    won = _matrix(_entry("located", 6, 32, {32: 200, 8: 20}, result))
    assert doubts(won, agreeing) == ()  # it fools everything where it was made: nothing was missed


def test_a_black_box_that_beats_gradients_is_doubted(agreeing: MultiBitNet) -> None:
    white = _entry("located", 6, 8, {32: 20, 8: 20})
    (text,) = doubts(_matrix(white, _entry("patch-mono", 6, 8, {32: 0, 8: 120})), agreeing)
    assert "patch-mono" in text and "masked" in text


def test_a_transferred_patch_that_beats_gradients_is_doubted(agreeing: MultiBitNet) -> None:
    white, other = _entry("located", 6, 8, {32: 20, 8: 20}), _entry("located", 6, 32, {32: 150, 8: 120})
    (text,) = doubts(_matrix(white, other), agreeing)
    assert "made on 32 bits" in text and "against the gradients of 8 bits" in text


def test_patches_made_jointly_that_beat_gradients_are_doubted(agreeing: MultiBitNet) -> None:
    white, joint = _entry("located", 6, 8, {32: 20, 8: 100}), _entry("located", 6, 32, {32: 150, 8: 110})
    joint = dataclasses.replace(joint, cell=Cell("located", 6, "joint", (32, 8)))
    (text,) = [t for t in doubts(_matrix(white, joint), agreeing) if "8 bits" in t]
    assert "made on joint" in text and "110 of 200" in text


def test_a_race_that_still_wins_at_its_end_is_doubted(agreeing: MultiBitNet) -> None:
    late = dataclasses.replace(_result(6), late=0.1)
    (text,) = doubts(_matrix(_entry("located", 6, 8, {32: 0, 8: 100}, late)), agreeing)
    assert "10 % of the images were won by the last quarter" in text and "lower bound" in text


@pytest.mark.parametrize(("large", "fires"), [(150, False), (100, True), (20, True)])
def test_success_must_grow_with_the_patch(large: int, fires: bool, agreeing: MultiBitNet) -> None:
    entries = _entry("located", 6, 8, {32: 0, 8: 100}), _entry("located", 10, 8, {32: 0, 8: large})
    found = doubts(_matrix(*entries, sizes=(6, 10)), agreeing)
    assert any("patch side" in text for text in found) == fires


@pytest.mark.parametrize(("full", "fires"), [(150, False), (100, True)])
def test_success_must_grow_with_the_steps(full: int, fires: bool, agreeing: MultiBitNet) -> None:
    entries = _entry("located-short", 6, 8, {32: 0, 8: 100}), _entry("located", 6, 8, {32: 0, 8: full})
    found = doubts(_matrix(*entries), agreeing)
    assert any("number of steps" in text for text in found) == fires


def test_the_probe_counts_in_no_maximum() -> None:
    matrix = _matrix(_entry("located-short", 6, 8, {32: 0, 8: 190}), _entry("located", 6, 8, {32: 0, 8: 100}))
    line = next(line for line in headlines(matrix) if line.name == "8")
    assert line.untargeted["white_box"].success.wins == 100


def test_the_worst_case_over_patches_is_counted_image_by_image() -> None:
    first, second = _entry("located", 6, 8, {32: 0, 8: 50}), _entry("lavan", 6, 8, {32: 0, 8: 50})
    named: Tensor = (torch.arange(COUNT) >= COUNT - 30).long()  # other images than the first attack's
    second = dataclasses.replace(second, answers={"32": Answer(torch.zeros_like(named)), "8": Answer(named)})
    line = next(line for line in headlines(_matrix(first, second)) if line.name == "8")
    top = line.untargeted["white_box"]
    assert top.worst is not None
    assert (top.success.wins, top.worst.wins, top.tried) == (50, 80, 2)


def test_different_integer_models_are_doubted(agreeing: MultiBitNet) -> None:
    entry = _entry("located", 6, 8, {32: 0, 8: 100})
    wrong = Answer(entry.answers["8"].named, entry.answers["8"].named, codes=400, mismatches=3)
    entry = dataclasses.replace(entry, answers={**entry.answers, "8": wrong})
    matrix = _matrix(entry)
    matrix = dataclasses.replace(matrix, clean={**matrix.clean, "8": Answer(matrix.labels, matrix.labels, codes=400)})
    (text,) = doubts(matrix, agreeing)
    assert "3 of 800 logits" in text
    assert document(matrix)["integer"]["equal"] is False


def test_a_network_without_gradients_is_doubted(dataset: Dataset, tmp_path: Path) -> None:
    net = halves_network(disagreeing=False, dead=True)
    matrix = attack_matrix(net, dataset, PLAN, folder=tmp_path)
    assert all(matrix.untargeted(entry, "8").rate == 0.0 for entry in matrix.entries)
    found = doubts(matrix, net)
    assert any("100 % of the gradients with respect to the image are zero" in text for text in found)


def test_intervals_are_wilsons() -> None:
    results = document(_matrix(_entry("located", 6, 8, {32: 0, 8: 50})))["cells"][0]["results"]
    none, quarter = (result["untargeted"] for result in results)
    # by hand, z = 1.959964: (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)
    assert quarter["rate"] == 0.25
    assert (quarter["low"], quarter["high"]) == (pytest.approx(0.195082, abs=1e-6), pytest.approx(0.314341, abs=1e-6))
    assert (none["low"], none["high"]) == (0.0, pytest.approx(3.841459 / (200 + 3.841459), abs=1e-6))


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for wins in (0, 1, 50, 199, 200):
        results = document(_matrix(_entry("located", 6, 8, {32: 0, 8: wins})))["cells"][0]["results"]
        expected = stats.binomtest(wins, COUNT).proportion_ci(method="wilson")
        assert results[1]["untargeted"]["low"] == pytest.approx(expected.low, abs=1e-12)
        assert results[1]["untargeted"]["high"] == pytest.approx(expected.high, abs=1e-12)
