"""Poison, train a purifier on the poisoned set, purify, train a classifier: does the attack still succeed?

    OUT/plan.json                all choices; with others a plan does not go on here, but for more targets or other arms
    OUT/poison-T/                the poisons towards target T, see `cache`
    OUT/ARM-T/purifier/          arm purevq: the purifier, trained on the poisoned training split
    OUT/ARM-T/classifier/        the classifier, trained from scratch on the filtered poisoned split
    OUT/ARM-T/row.json           what was measured
    OUT/poison.json              all of it

Arms: `clean` (no poisons: how often the attack "succeeds" by itself; its classifier, OUT/clean/, serves all targets),
`none` (poisons, no defence), and the filters `blur`, `jpeg`, `purevq`.

Against Bullseye Polytope the victim does not train from scratch: it keeps the first surrogate's features, and learns a
linear layer on the filtered transfer set, `Bullseye.per_class` images of each class with the poisons among them.

Each arm is judged twice: on test images as they are ("plain": only the training data are filtered), and on
images that pass the same filter first ("filtered"). A finished row is not made again; a training goes on where it
stopped.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from edgeq import runs
from edgeq.config import TrainConfig
from edgeq.config import plain as plain_training
from edgeq.data import Dataset, Split
from edgeq.errors import InputError
from edgeq.files import read_json, write_json
from edgeq.poison.base import AbstractAttack, Poisons, Scene, silent
from edgeq.poison.base import Progress as Searching
from edgeq.poison.bullseye import Bullseye, transfer_set
from edgeq.poison.cache import choices, in_memory, make_poisons
from edgeq.poison.filters import FIXED, Filter, none, purified
from edgeq.poison.goals import Classify, successes
from edgeq.poison.head import linear_head
from edgeq.poison.networks import Features, featured, named
from edgeq.purifiers import Progress as Purifying
from edgeq.purifiers import PurifierConfig, load_purifier, train_purifier
from edgeq.purifiers.config import plain as plain_purifier
from edgeq.quant.network import MultiBitNet
from edgeq.training import Interrupted, train
from edgeq.training import Progress as Training

CLEAN, PUREVQ = "clean", "purevq"
ARMS = (CLEAN, *FIXED, PUREVQ)
PLAN, ROW, RESULT = "plan.json", "row.json", "poison.json"


@dataclass(frozen=True)
class Plan:
    """What is tried.

    Attributes:
        attack: The attack.
        targets: How many targets: test images, or classes.
        arms: What the defender does.
        training: The classifier's; its `data` is not looked at.
        purifier: Of arm purevq; its `data` is not looked at.
        seed: Of the attack.
    """

    attack: AbstractAttack
    targets: int = 5
    arms: tuple[str, ...] = ARMS
    training: TrainConfig = field(default_factory=TrainConfig)
    purifier: PurifierConfig = field(default_factory=PurifierConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.targets < 1:
            raise InputError(f"expected at least one target, got {self.targets}; 5 give a spread")
        wrong = [arm for arm in self.arms if arm not in ARMS]
        if wrong or not self.arms or len(set(self.arms)) < len(self.arms):
            raise InputError(f"expected arms out of {', '.join(ARMS)}, each once, got {list(self.arms)}")
        if self.purifier.method.kind != PUREVQ:
            raise InputError(f"expected a purevq purifier, got {self.purifier.method.kind}; it is the arm's name")


@dataclass(frozen=True)
class Watch:
    """How the caller follows and stops a long run.

    Attributes:
        tell: Called with a line of text at each step of the plan.
        searching: Called after each step of an attack's search.
        training: Called as `edgeq.training.train` calls its `progress`.
        purifying: Called as `edgeq.purifiers.train_purifier` calls its `progress`.
        stop: True stops at the next safe place and raises `Interrupted`.
    """

    tell: Callable[[str], None] = lambda _: None
    searching: Searching = silent
    training: Callable[[Training], None] = lambda _: None
    purifying: Callable[[Purifying], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False


def run_plan(
    plan: Plan,
    nets: tuple[MultiBitNet, ...],
    dataset: Dataset,
    *,
    data: str,
    out: str | Path,
    watch: Watch = Watch(),
) -> dict[str, Any]:
    """Carry out a plan, or go on with it, and return its result.

    Args:
        plan: What is tried.
        nets: The attacker's surrogates; against Bullseye the first is the victim's feature extractor, too.
        dataset: What is poisoned.
        data: The specification that it was loaded by.
        out: New or empty folder, or one where the same plan began.
        watch: Progress and stopping.

    Raises:
        InputError: The folder or the choices do not fit.
        Interrupted: `watch.stop` said so; the same call goes on.
    """
    out = Path(out)
    train_split, test = in_memory(dataset)
    there = plan.attack.targets(Scene(nets, train_split, test, len(dataset.classes), seed=plan.seed))
    if plan.targets > there:
        raise InputError(f"expected at most {there} targets, which is all there are, got {plan.targets}; ask for fewer")
    written = _written(plan, data)
    _claim(out, written)
    rows = []
    for number in range(plan.targets):
        scene = Scene(nets, train_split, test, len(dataset.classes), number, plan.seed)
        watch.tell(f"target {number}: searching for poisons")
        search = stoppable(watch.searching, watch.stop)
        poisons = make_poisons(plan.attack, scene, data=data, folder=out / f"poison-{number}", progress=search)
        for arm in plan.arms:
            place = out / f"{arm}-{number}" / ROW
            if not place.exists():
                if watch.stop():
                    raise Interrupted
                watch.tell(f"target {number}, arm {arm}")
                row = _Cell(plan, nets, dataset, poisons, out, watch).judge(arm, number)
                write_json(place, row)
            rows.append(read_json(place))
    document = {**written, "poisons": len(poisons.index), "rows": rows, "arms": summary(rows)}
    write_json(out / RESULT, document)
    return document


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean, standard deviation and maximum over the targets, arm by arm and for each way of judging."""
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        entry: dict[str, Any] = {"arm": arm, "targets": len(own)}
        for way in ("plain", "filtered"):
            shown = own[0][way]["success"]
            entry[way] = {
                "accuracy": _spread([row[way]["accuracy"] for row in own]),
                "success": {name: _spread([_rate(row[way]["success"][name]) for row in own]) for name in shown},
            }
        found.append(entry)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0, "max": max(values)}


def _rate(counted: dict[str, int]) -> float:
    return counted["wins"] / max(counted["total"], 1)


def stoppable(progress: Searching, stop: Callable[[], bool]) -> Searching:
    """Return a search's progress that raises `Interrupted` where `stop` says so."""

    def follow(done: int, steps: int, loss: float) -> None:
        progress(done, steps, loss)
        if stop() and done < steps:
            raise Interrupted

    return follow


def _written(plan: Plan, data: str) -> dict[str, Any]:
    """Return the plan as JSON has it; where it runs and how often it saves is not part of it."""
    chosen = {
        name: {k: v for k, v in body.items() if k not in ("data", "device", "save_every")}
        for name, body in (("training", plain_training(plan.training)), ("purifier", plain_purifier(plan.purifier)))
    }
    body = {"data": data, "attack": choices(plan.attack), "targets": plan.targets, "plan": list(plan.arms)}
    return json.loads(json.dumps({**body, "seed": plan.seed, **chosen}))


def _claim(out: Path, written: dict[str, Any]) -> None:
    """Write the plan, or check that the folder's is the same."""
    if (out / PLAN).exists():
        before = read_json(out / PLAN)
        fixed = [
            name for name in written if name not in ("targets", "plan")
        ]  # rows do not depend on how many there are
        other = sorted(name for name in fixed if not isinstance(before, dict) or before.get(name) != written[name])
        if other:
            raise InputError(
                f"expected a new folder, or one of the same plan, got {out} with another {other[0]}; choose another"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"expected a new or empty folder, got {out}, which holds something; choose another")
    else:
        write_json(out / PLAN, written)


@dataclass(frozen=True)
class _Cell:
    """One target; `judge` measures one arm."""

    plan: Plan
    nets: tuple[MultiBitNet, ...]
    dataset: Dataset
    poisons: Poisons
    out: Path
    watch: Watch

    def judge(self, arm: str, number: int) -> dict[str, Any]:
        """Return what an arm leaves of the attack, and what it costs."""
        clean, test = in_memory(self.dataset)
        dirty = clean if arm == CLEAN else self.poisons.put_into(clean)
        clean_filter = self._filter(arm, number, dirty)
        place = self.out / (CLEAN if arm == CLEAN else f"{arm}-{number}")
        classify = self._classifier(Split(clean_filter(dirty.images), dirty.labels), place)
        plain = self._judged(classify, test)
        filtered = plain if clean_filter is none else self._judged(lambda x: classify(clean_filter(x)), test)
        return {
            "arm": arm,
            "target": number,
            "label": self.poisons.goal.label,
            "plain": plain,
            "filtered": filtered,
        }

    def _judged(self, answer: Classify, test: Split) -> dict[str, Any]:
        """Return accuracy and success of a classifier."""
        right = int((answer(test.images) == test.labels).sum())
        counted = successes(self.poisons.goal, test, answer)
        return {
            "accuracy": right / len(test),
            "success": {name: {"wins": s.wins, "total": s.total} for name, s in counted.items()},
        }

    def _filter(self, arm: str, number: int, dirty: Split) -> Filter:
        if arm != PUREVQ:
            return FIXED.get(arm, none)
        place = self.out / f"{arm}-{number}" / "purifier"
        on = str(next(self.nets[0].parameters()).device)
        if not (place / runs.WEIGHTS).exists():
            train_purifier(
                self.plan.purifier,
                out=place,
                resume=(place / runs.CONFIG).exists(),
                progress=self.watch.purifying,
                stop=self.watch.stop,
                dataset=self._with(dirty),
            )
        return purified(load_purifier(place, device=on)[1])

    def _classifier(self, split: Split, place: Path) -> Classify:
        if isinstance(self.plan.attack, Bullseye):
            return self._transferred(split, transfer_set(split.labels, self.plan.attack.per_class))
        folder = place / "classifier"
        if not (folder / runs.WEIGHTS).exists():
            train(
                self.plan.training,
                out=folder,
                resume=(folder / runs.CONFIG).exists(),
                progress=self.watch.training,
                stop=self.watch.stop,
                dataset=self._with(split),
            )
        net = runs.load_run(folder, device=str(next(self.nets[0].parameters()).device))[1]
        return lambda images: named(net, images)

    def _transferred(self, split: Split, learned: Int64[Tensor, " k"]) -> Classify:
        """Return the classifier with the surrogate's features and a linear layer of its own."""
        features = Features(self.nets[0], max(self.nets[0].bits))
        classes = len(self.dataset.classes)
        head = linear_head(featured(features, split.images[learned]), split.labels[learned], classes=classes)

        def classify(images: Tensor) -> Tensor:
            with torch.no_grad():
                return head(featured(features, images)).argmax(1).to(images.device)

        return classify

    def _with(self, split: Split) -> Dataset:
        base = self.dataset
        return Dataset(f"{base.name}, poisoned", base.classes, split, base.test, flip=base.flip)
