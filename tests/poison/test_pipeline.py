"""The folder of poisons, and the way from poisons to what a defence leaves of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeq.data import Dataset, Split, load
from edgeq.errors import InputError
from edgeq.files import load_tensors, save_tensors
from edgeq.poison import (
    Bullseye,
    Descent,
    GradientMatching,
    Narcissus,
    Plan,
    Poisons,
    Scene,
    Watch,
    make_poisons,
    open_poisons,
    run_plan,
)
from edgeq.poison.courses import Courses
from edgeq.poison.filters import blur, jpeg, purified
from edgeq.poison.goals import Targets
from edgeq.poison.head import linear_head
from edgeq.poison.pipeline import summary
from edgeq.purifiers import PureVQ, PurifierConfig
from edgeq.quant.network import QuantConfig
from edgeq.training import Interrupted, TrainConfig
from tests.poison.conftest import DATA, SIDE, noise

TINY = PureVQ(channels=8, blocks=1, codes=16, code_dim=4, discriminator=4)
FEW = Descent(steps=2)
BULLSEYE = Bullseye(poisons=3, per_class=5, descent=FEW)
NARCISSUS = Narcissus(batch_size=8, descent=FEW)


def _dataset(scene: Scene) -> Dataset:
    some = torch.arange(60)
    return Dataset("signs", load(DATA).classes, scene.train.subset(some), scene.test.subset(some[:30]), flip=False)


def _plan(**changes: object) -> Plan:
    training = TrainConfig(
        data=DATA, quant=QuantConfig(bits=(32,)), epochs=1, batch_size=20, deployed=0.0, device="cpu"
    )
    purifier = PurifierConfig(method=TINY, data=DATA, epochs=1, batch_size=20, device="cpu")
    plan = {"attack": BULLSEYE, "targets": 1, "arms": ("clean", "none"), "training": training, "purifier": purifier}
    return Plan(**{**plan, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [BULLSEYE, NARCISSUS], ids=["bullseye", "narcissus"])
def test_poisons_are_kept_recognised_and_a_data_set(attack, scene: Scene, tmp_path: Path) -> None:
    made = make_poisons(attack, scene, data=DATA, folder=tmp_path / "p")

    def never(*_: object) -> None:
        raise AssertionError("searched again")

    again = make_poisons(attack, scene, data=DATA, folder=tmp_path / "p", progress=never)
    for one in (again, open_poisons(tmp_path / "p")):
        assert torch.equal(one.images, made.images)
        assert torch.equal(one.index, made.index)
        assert one.losses == made.losses
        assert type(one.goal) is type(made.goal)
        assert all(torch.equal(a, b) for a, b in zip(_parts(one.goal), _parts(made.goal), strict=True))
    dataset = load(f"poisoned:{tmp_path / 'p'}")
    assert dataset.name == "signs, poisoned"
    assert isinstance(dataset.train, Split)
    assert torch.equal(dataset.train.images, made.put_into(scene.train).images)
    assert torch.equal(dataset.train.labels, scene.train.labels)
    for other in (replace(scene, number=1), replace(scene, seed=1)):
        with pytest.raises(InputError, match=r"another (number|seed)"):
            make_poisons(attack, other, data=DATA, folder=tmp_path / "p")
    with pytest.raises(InputError, match="another attack"):
        make_poisons(replace(attack, poisons=2), scene, data=DATA, folder=tmp_path / "p")


def _parts(goal):
    return (goal.images, goal.labels) if isinstance(goal, Targets) else (goal.pattern,)


def test_a_folder_that_does_not_fit_is_refused(scene: Scene, tmp_path: Path) -> None:
    make_poisons(BULLSEYE, scene, data=DATA, folder=tmp_path / "p")
    origin = tmp_path / "p/poison.json"
    body = json.loads(origin.read_text())
    for changes, words in (
        ({"data": "signs:train=3,test=3"}, "make the poisons again"),
        ({"eps": 1}, "make the poisons again"),
        ({"format": 9}, "format 1"),
        ({"sha256": "0"}, "as it was written"),
        ({"eps": "many"}, "wrong"),
        ({"data": f"poisoned:{tmp_path / 'p'}"}, "poisoned"),
    ):
        origin.write_text(json.dumps({**body, **changes}))
        with pytest.raises(InputError, match=words):
            load(f"poisoned:{tmp_path / 'p'}")
    (tmp_path / "box").mkdir()
    (tmp_path / "box/letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something"):
        make_poisons(BULLSEYE, scene, data=DATA, folder=tmp_path / "box")


@pytest.mark.parametrize(
    "attack",
    [
        replace(BULLSEYE, descent=Descent(steps=6)),
        replace(NARCISSUS, descent=Descent(steps=6, rule="sign")),
        GradientMatching(poisons=3, descent=Descent(steps=6, step=1 / 255, rule="signed-adam"), restarts=2),
    ],
    ids=["bullseye", "narcissus", "gradient-matching"],
)
@pytest.mark.parametrize("after", [1, 4])
def test_a_search_that_was_stopped_goes_on_to_the_same_poisons(
    attack, after: int, scene: Scene, tmp_path: Path
) -> None:
    steps: list[int] = []

    def follow(done: int, _steps: int, _loss: float) -> None:
        steps.append(done)
        if len(steps) % after == 0 and len(steps) < 9:
            raise Interrupted

    def going_on() -> Poisons:
        while True:
            try:
                return make_poisons(attack, scene, data=DATA, folder=tmp_path / "p", progress=follow)
            except Interrupted:
                assert not (tmp_path / "p/poison.json").exists()

    made = going_on()
    whole = make_poisons(attack, scene, data=DATA, folder=tmp_path / "whole")
    assert made.losses == whole.losses
    assert torch.equal(made.images, whole.images)
    assert steps == list(range(1, 7)) * getattr(attack, "restarts", 1)  # no step twice
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["poison.json", "poison.safetensors"]


def test_a_stopped_search_of_other_choices_is_refused(scene: Scene, tmp_path: Path) -> None:
    def cut(*_: object) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        make_poisons(BULLSEYE, scene, data=DATA, folder=tmp_path / "p", progress=cut)
    with pytest.raises(InputError, match="the search of the same choices"):
        make_poisons(NARCISSUS, scene, data=DATA, folder=tmp_path / "p")
    make_poisons(BULLSEYE, scene, data=DATA, folder=tmp_path / "p")


def test_what_a_step_left_half_done_is_not_written(tmp_path: Path) -> None:
    courses = Courses(tmp_path / "search.safetensors", "a")
    course = courses.begin("search", torch.zeros(1, 3, SIDE, SIDE))
    courses.write()
    course.change.fill_(1.0)
    course.settled = False
    courses.write()
    assert not Courses(tmp_path / "search.safetensors", "a").begin("search", torch.zeros(1, 3, SIDE, SIDE)).change.any()


def test_poisons_without_their_description_are_made_again(scene: Scene, tmp_path: Path) -> None:
    save_tensors(tmp_path / "p/poison.safetensors", {"index": torch.zeros(1)})  # killed between the two files
    made = make_poisons(BULLSEYE, scene, data=DATA, folder=tmp_path / "p")
    assert torch.equal(load_tensors(tmp_path / "p/poison.safetensors")["index"], made.index)


def test_the_linear_head_separates_what_can_be() -> None:
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] * 100 + torch.randn(60, 3, generator=gen) + 7
    head = linear_head(features, labels, classes=3)
    assert torch.equal(head(features).argmax(1), labels)
    assert torch.equal(head(features), linear_head(features, labels, classes=3)(features))


def test_filters_return_bytes_and_do_what_they_say() -> None:
    flat = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    for clean in (blur, jpeg):
        assert int((clean(flat).int() - 77).abs().max()) <= 1
        assert clean(noise(2)).dtype == torch.uint8
        assert clean(noise(2)).shape == noise(2).shape
        assert not torch.equal(clean(noise(2)), noise(2))
    spot = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    spot[:, :, 2, 2] = 160
    assert blur(spot)[0, 0, 1:4, 1:4].tolist() == [[10, 20, 10], [20, 40, 20], [10, 20, 10]]
    purifier = TINY.build((3, 16, 16), 4).eval()
    assert torch.equal(purified(purifier)(flat), purified(purifier)(flat))


@pytest.mark.ci_slow
def test_bullseye_is_judged_on_a_new_linear_layer(scene: Scene, tmp_path: Path) -> None:
    said: list[str] = []
    plan = _plan(arms=("none", "jpeg"))
    body = run_plan(plan, scene.nets, _dataset(scene), data=DATA, out=tmp_path / "o", watch=Watch(tell=said.append))
    assert body == json.loads((tmp_path / "o/poison.json").read_text())
    assert [(r["arm"], r["target"]) for r in body["rows"]] == [(a, n) for n in range(1) for a in plan.arms]
    assert all(r["plain"] == r["filtered"] for r in body["rows"] if r["arm"] == "none")
    assert any(r["plain"] != r["filtered"] for r in body["rows"] if r["arm"] == "jpeg")
    assert not list((tmp_path / "o").glob("*/classifier"))
    again = run_plan(plan, scene.nets, _dataset(scene), data=DATA, out=tmp_path / "o")
    assert again == body
    more = run_plan(replace(plan, targets=2), scene.nets, _dataset(scene), data=DATA, out=tmp_path / "o")
    assert [row for row in more["rows"] if row["target"] == 0] == body["rows"]
    assert len(more["rows"]) == 2 * len(body["rows"])
    with pytest.raises(InputError, match="another seed"):
        run_plan(replace(plan, seed=3), scene.nets, _dataset(scene), data=DATA, out=tmp_path / "o")


def test_more_targets_than_there_are_are_refused_before_anything_is_made(scene: Scene, tmp_path: Path) -> None:
    for attack, most in ((NARCISSUS, 10), (BULLSEYE, 30)):
        with pytest.raises(InputError, match="targets, which is all there are"):
            run_plan(_plan(attack=attack, targets=most + 1), scene.nets, _dataset(scene), data=DATA, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.ci_slow
def test_narcissus_is_judged_on_a_network_from_scratch(scene: Scene, tmp_path: Path) -> None:
    plan = _plan(attack=NARCISSUS, arms=("purevq",))
    body = run_plan(plan, scene.nets, _dataset(scene), data=DATA, out=tmp_path / "o")
    (row,) = body["rows"]
    assert set(row["filtered"]["success"]) == {"x0", "x1", "x2", "x3"}
    assert row["plain"]["success"]["x1"]["total"] == int((_dataset(scene).test.labels != 0).sum())


@pytest.mark.ci_slow
def test_a_plan_that_was_stopped_goes_on_to_the_same_result(scene: Scene, tmp_path: Path) -> None:
    plan, out = _plan(attack=NARCISSUS, arms=("clean", "purevq")), tmp_path / "o"
    told: list[str] = []
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += told[-1:] == ["target 0, arm purevq"]
        return seen == 2  # within the purifier's training

    with pytest.raises(Interrupted):
        run_plan(plan, scene.nets, _dataset(scene), data=DATA, out=out, watch=Watch(tell=told.append, stop=stop))
    assert (out / "clean-0/row.json").exists()
    assert (out / "purevq-0/purifier/state").exists()
    assert not (out / "poison.json").exists()
    cut = run_plan(plan, scene.nets, _dataset(scene), data=DATA, out=out, watch=Watch(tell=told.append))
    assert told.count("target 0, arm clean") == 1
    whole = run_plan(plan, scene.nets, _dataset(scene), data=DATA, out=tmp_path / "whole")
    assert cut == whole


def test_the_summary_is_over_targets() -> None:
    def row(arm: str, wins: int) -> dict:
        judged = {"accuracy": wins / 10, "success": {"target": {"wins": wins, "total": 1}}}
        return {"arm": arm, "plain": judged, "filtered": judged}

    (entry, alone) = summary([row("none", 1), row("blur", 0), row("none", 0)])
    assert entry["plain"]["success"]["target"] == {"mean": 0.5, "std": pytest.approx(0.5**0.5), "max": 1.0}
    assert alone["filtered"]["success"]["target"] == {"mean": 0.0, "std": 0.0, "max": 0.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ("magic",)}, "magic"),
        ({"arms": ()}, "expected arms"),
        ({"arms": ("none", "none")}, "each once"),
        ({"targets": 0}, "at least one target"),
    ],
)
def test_wrong_plans_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _plan(**changes)
