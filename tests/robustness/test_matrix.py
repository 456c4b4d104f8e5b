import dataclasses
import json
from pathlib import Path

import pytest
import torch

from edgeq.attacks import Goal, answers, success, surrogate
from edgeq.data import Dataset
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from edgeq.robustness import EFFORTS, Matrix, Plan, Progress, attack_matrix, document, doubts, headlines
from edgeq.robustness.plan import Cell

EFFORT = dataclasses.replace(EFFORTS["quick"], steps=6, universal_steps=20, queries=30, tune_steps=3)
PLAN = Plan(
    attacks=("located",), surrogates=("each",), sizes=(6,), images=24, train_images=20, effort=EFFORT, probe=False
)


@pytest.fixture(scope="module")
def agreed(agreeing: MultiBitNet, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    plan = dataclasses.replace(PLAN, surrogates=("each", "joint"))
    return attack_matrix(agreeing, dataset, plan, folder=tmp_path_factory.mktemp("agreed"))


@pytest.fixture(scope="module")
def disagreed(disagreeing: MultiBitNet, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return attack_matrix(disagreeing, dataset, PLAN, folder=tmp_path_factory.mktemp("disagreed"))


def _rates(matrix: Matrix) -> dict[tuple[str, str], float]:
    """Untargeted success by (made on, answered by)."""
    return {
        (entry.cell.surrogate, name): matrix.untargeted(entry, name).rate
        for entry in matrix.entries
        for name in matrix.names
    }


def test_widths_that_look_at_the_same_pixels_share_their_patches(agreed: Matrix) -> None:
    assert agreed.accuracy("32").rate == agreed.accuracy("8").rate == 1.0
    assert set(_rates(agreed).values()) == {1.0}


def test_widths_that_look_at_different_pixels_share_nothing(disagreed: Matrix) -> None:
    rates = _rates(disagreed)
    assert rates["32", "32"] == rates["8", "8"] == 1.0
    # a patch of 6 pixels at the best place fills its own half, and so misses the other one
    assert rates["32", "8"] == rates["8", "32"] == 0.0


def test_the_headline_is_the_maximum_and_keeps_white_box_and_transfer_apart(disagreed: Matrix) -> None:
    for line in headlines(disagreed):
        assert line.untargeted["white_box"].success.rate == 1.0
        assert line.untargeted["transfer"].success.rate == 0.0
        assert line.untargeted["white_box"].cell.surrogate == line.name
        assert line.untargeted["transfer"].cell.surrogate != line.name
        assert line.clean.total == 24


def test_the_integer_models_answer_as_simulated(agreed: Matrix) -> None:
    body = document(agreed)
    assert body["integer"] == {
        "bits": [8],
        "codes": 2 * 24 * (1 + len(agreed.entries)),
        "mismatches": 0,
        "equal": True,
        "refused": {},
    }
    for cell in body["cells"]:
        for result in cell["results"]:
            if result["integer"] is not None:
                assert result["integer"]["untargeted_wins"] == result["untargeted"]["wins"]


def test_counts_are_those_of_the_patched_images_asked_directly(disagreeing: MultiBitNet, disagreed: Matrix) -> None:
    for entry in disagreed.entries:
        patched = entry.result.on(disagreed.shown)
        for bits in (32, 8):
            view = surrogate(disagreeing, bits)
            goal = Goal(disagreed.labels)
            expected = success(answers(view, disagreed.shown), answers(view, patched), goal)
            assert disagreed.untargeted(entry, str(bits)) == expected


def test_a_second_call_makes_no_patch(
    agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(PLAN, attacks=("located", "gap"))
    first = attack_matrix(agreeing, dataset, plan, folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("edgeq.robustness.scene.Scene.make", _no_more)
    second = attack_matrix(agreeing, dataset, plan, folder=tmp_path)
    assert all(entry.kept for entry in second.entries)
    assert not any(entry.kept for entry in first.entries)
    assert _without_times(document(second)) == _without_times(document(first))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_stopped_matrix_goes_on(agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_matrix(agreeing, dataset, PLAN, folder=tmp_path / "a", progress=stop)
    went_on = attack_matrix(agreeing, dataset, PLAN, folder=tmp_path / "a")
    assert [entry.kept for entry in went_on.entries] == [True, False]
    whole = attack_matrix(agreeing, dataset, PLAN, folder=tmp_path / "b")
    assert _without_times(document(went_on)) == _without_times(document(whole))


@pytest.mark.parametrize("damage", ["json", "patches"])
def test_a_damaged_cell_is_made_again(damage: str, agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path) -> None:
    attack_matrix(agreeing, dataset, PLAN, folder=tmp_path)
    victim = sorted(tmp_path.glob("*.json" if damage == "json" else "*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-20])
    again = attack_matrix(agreeing, dataset, PLAN, folder=tmp_path)
    assert sorted(entry.kept for entry in again.entries) == [False, True]


def test_a_trained_network_gets_cells_of_its_own(
    agreeing: MultiBitNet, disagreeing: MultiBitNet, dataset: Dataset, tmp_path: Path
) -> None:
    attack_matrix(agreeing, dataset, PLAN, folder=tmp_path)
    other = attack_matrix(disagreeing, dataset, PLAN, folder=tmp_path)
    assert not any(entry.kept for entry in other.entries)


def test_other_widths_may_answer_later(agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path) -> None:
    attack_matrix(agreeing, dataset, PLAN, folder=tmp_path, bits=(8,), integer=False)
    both = attack_matrix(agreeing, dataset, PLAN, folder=tmp_path)
    assert {entry.cell.surrogate: entry.kept for entry in both.entries} == {"32": False, "8": True}
    assert both.clean["8"].integer is not None
    assert document(both)["integer"]["equal"] is True


def test_targeted_success_leaves_the_target_class_out(agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, attacks=("gap",), towards=(1,), sizes=(8,))
    matrix = attack_matrix(agreeing, dataset, plan, folder=tmp_path)
    for entry in matrix.entries:
        for name in matrix.names:
            targeted = matrix.targeted(entry, name)
            assert targeted is not None
            assert targeted.total == 12  # the dark ones of 24
            assert matrix.untargeted(entry, name).total == 24
            assert matrix.untargeted(entry, name).wins <= targeted.wins


def test_another_victim_answers_the_same_patches(agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, surrogates=("each", "joint"))
    gen = torch.Generator().manual_seed(0)

    def random_width(images: torch.Tensor) -> torch.Tensor:
        bits = agreeing.bits[int(torch.randint(2, (1,), generator=gen))]
        return surrogate(agreeing, bits)(images)

    matrix = attack_matrix(agreeing, dataset, plan, folder=tmp_path, victims={"random": random_width})
    line = next(line for line in headlines(matrix) if line.name == "random")
    assert line.untargeted["white_box"].cell.surrogate == "joint"
    assert line.untargeted["white_box"].success.rate == 1.0
    assert json.loads(json.dumps(document(matrix)))["headline"][-1]["name"] == "random"


def test_kinds_of_surrogates() -> None:
    plan = Plan(surrogates=("each", "joint", "tuned", "all-but"), attacks=("located", "patch-mono"), sizes=(6,))
    cells = plan.cells((32, 8, 4))
    by_name = {cell.surrogate: cell for cell in cells if cell.attack == "located"}
    assert list(by_name) == ["32", "8", "4", "joint", "tuned", "all-but-32", "all-but-8", "all-but-4"]
    assert [name for name, cell in by_name.items() if cell.white_box(8)] == ["8"]
    assert [name for name, cell in by_name.items() if cell.blind(8)] == ["32", "4", "all-but-8"]
    # a black box asks one victim
    assert {cell.surrogate for cell in cells if cell.attack == "patch-mono"} == {"32", "8", "4"}


def test_a_costly_surrogate_can_be_kept_for_some_attacks() -> None:
    plan = Plan(surrogates=("each", "joint"), attacks=("located", "gap"), sizes=(6,), several=("located",))
    made = {(cell.attack, cell.surrogate) for cell in plan.cells((32, 8)) if not cell.probe}
    assert made == {("located", "32"), ("located", "8"), ("located", "joint"), ("gap", "32"), ("gap", "8")}
    with pytest.raises(InputError, match="expected several of located, each once, got 'gap'"):
        Plan(attacks=("located",), several=("gap",))


def test_a_tuned_copy_of_one_width_is_not_white_box() -> None:
    assert not Cell("located", 6, "tuned", (8,)).white_box(8)


def test_a_network_that_is_never_right_is_refused(agreeing: MultiBitNet, dataset: Dataset, tmp_path: Path) -> None:
    test = dataclasses.replace(dataset.test, labels=1 - dataset.test.labels)
    with pytest.raises(InputError, match="names rightly"):
        attack_matrix(agreeing, dataclasses.replace(dataset, test=test), PLAN, folder=tmp_path)


def _no_more(*_: object) -> None:
    raise AssertionError("a patch was made anew")


def _without_times(body: dict) -> dict:
    for cell in body["cells"]:
        del cell["seconds"]
    return body


def test_doubts_are_few_for_a_sound_matrix(agreed: Matrix, agreeing: MultiBitNet) -> None:
    found = doubts(agreed, agreeing)
    assert len(found) == 1 and "attacked images are few" in found[0]
