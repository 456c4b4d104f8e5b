"""The attack matrix of a network: patches made on each surrogate, answered by every width.

Only images that some width names rightly are attacked: no other image can count. Every finished cell is kept, so a
stopped evaluation goes on where it was, and a repeated one makes nothing anew.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.attacks import Goal, Success, success
from edgeq.attacks.base import PatchResult
from edgeq.attacks.goal import Victim
from edgeq.data import Dataset
from edgeq.quant.network import MultiBitNet
from edgeq.robustness.answers import Answer, Answerer, named_by
from edgeq.robustness.plan import Cell, Plan
from edgeq.robustness.scene import Scene, make_scene
from edgeq.robustness.store import Made, Store


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands.

    Attributes:
        cell: What is being made.
        done: Cells that are finished.
        total: All cells.
        step: Steps of this cell's search, which may be run several times over batches and restarts.
        steps: Steps in all.
        entry: The cell just finished, if one is.
    """

    cell: Cell
    done: int
    total: int
    step: int = 0
    steps: int = 0
    entry: "Entry | None" = None


@dataclass(frozen=True)
class Entry:
    """One cell with its answers.

    Attributes:
        cell: What it is.
        result: The patches.
        answers: By the name of who was asked: "8", or the name of another victim.
        queries: Images shown to the surrogate, per attacked image.
        seconds: What making the patches took.
        kept: Whether it was found in the run folder.
    """

    cell: Cell
    result: PatchResult
    answers: Mapping[str, Answer]
    queries: float
    seconds: float
    kept: bool


@dataclass(frozen=True)
class Matrix:
    """All cells, and what they are counted with.

    Attributes:
        plan: The choices.
        bits: The widths that were asked.
        images: Test images judged on.
        attacked: Those that some width names rightly.
        labels: True classes of the attacked ones.
        shown: The attacked images themselves.
        clean: Answers to the attacked images without a patch, by name.
        entries: The cells.
        refused: Widths without an integer model, and why.
    """

    plan: Plan
    bits: tuple[int, ...]
    images: int
    attacked: int
    labels: Int64[Tensor, " n"]
    shown: UInt8[Tensor, "n c h w"]
    clean: Mapping[str, Answer]
    entries: tuple[Entry, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Who was asked: the widths, then other victims."""
        return tuple(self.clean)

    def accuracy(self, name: str) -> Success:
        """Return how many of all images are named rightly without a patch."""
        return Success(int((self.clean[name].named == self.labels).sum()), self.images)

    def untargeted(self, entry: Entry, name: str, *, integer: bool = False) -> Success:
        """Return untargeted success against a width or another victim."""
        return self._count(entry, name, Goal(self.labels), integer)

    def targeted(self, entry: Entry, name: str, *, integer: bool = False) -> Success | None:
        """Return targeted success; None where there was no target."""
        if entry.cell.towards is None:
            return None
        return self._count(entry, name, Goal.towards(self.labels, entry.cell.towards), integer)

    def fooled(self, entry: Entry, name: str) -> Tensor:
        """Return which attacked images a width names rightly without the patch and wrongly with it."""
        return (self.clean[name].named == self.labels) & (entry.answers[name].named != self.labels)

    def _count(self, entry: Entry, name: str, goal: Goal, integer: bool) -> Success:
        pair = (self.clean[name], entry.answers[name])
        named = [answer.integer if integer else answer.named for answer in pair]
        assert named[0] is not None and named[1] is not None
        classes = 1 + int(torch.cat([named[0], named[1], self.labels]).max())
        # logits whose largest is the class named, so that `edgeq.attacks.success` alone defines success
        clean, patched = (torch.nn.functional.one_hot(n, classes).float() for n in named if n is not None)
        return success(clean, patched, goal)


def attack_matrix(
    net: MultiBitNet,
    dataset: Dataset,
    plan: Plan,
    *,
    folder: Path,
    bits: tuple[int, ...] = (),
    victims: Mapping[str, Victim] | None = None,
    integer: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Matrix:
    """Make what is missing of a plan's patches, and let every width answer all of them.

    Args:
        net: The network; its mode is left as it is, and the deployed arithmetic is attacked.
        dataset: Test images to judge on; training images for universal patches and the tuned surrogate.
        plan: What to do.
        folder: Where cells are kept; see `edgeq.robustness.store`.
        bits: Widths to attack and to make patches on; all of the network's by default.
        victims: Others who answer the same patches, by name: a network that draws its width at random for each call,
            say, for which "joint" (the expectation over the widths) is the white box.
        integer: Also run the integer models in ONNX Runtime.
        progress: Called after each step.
    """
    widths = bits or net.bits
    plan.check(classes=len(dataset.classes), image_shape=net.image_shape)
    cells = plan.cells(widths)
    scene = make_scene(net, dataset, plan)
    answerer = Answerer(net, integer=integer, batch_size=plan.batch_size)
    others = victims or {}
    ask = _Asking(answerer, others, widths, plan.batch_size)
    matrix = Matrix(
        plan,
        widths,
        scene.images,
        len(scene.labels),
        scene.labels,
        scene.shown,
        ask.all({}, scene.shown),
        refused=answerer.refused,
    )
    entries: list[Entry] = []
    for number, cell in enumerate(cells):
        tell = None if progress is None else _teller(progress, cell, number, len(cells))
        entries.append(_entry(scene, cell, ask, Store(folder), tell))
        if progress is not None:
            progress(Progress(cell, number + 1, len(cells), entry=entries[-1]))
    return Matrix(**{**matrix.__dict__, "entries": tuple(entries)})


class _Asking:
    """Asks all widths and other victims; the widths' answers are kept with the cell."""

    def __init__(
        self, answerer: Answerer, victims: Mapping[str, Victim], widths: tuple[int, ...], batch_size: int
    ) -> None:
        self.answerer, self.victims, self.widths, self.batch_size = answerer, victims, widths, batch_size

    def missing(self, known: Mapping[int, Answer]) -> list[int]:
        """Return the widths that have not answered, or whose integer model has not."""
        models = self.answerer.models
        return [b for b in self.widths if b not in known or (b in models and known[b].integer is None)]

    def all(self, known: dict[int, Answer], images: Tensor) -> dict[str, Answer]:
        """Return everyone's answers; the widths' are added to `known`."""
        for b in self.missing(known):
            known[b] = self.answerer.ask(images, b)
        answers = {str(b): known[b] for b in self.widths}
        for name, victim in self.victims.items():
            answers[name] = Answer(named_by(victim, images, batch_size=self.batch_size))
        return answers


def _entry(
    scene: Scene, cell: Cell, ask: _Asking, store: Store, tell: Callable[[int, int, float], None] | None
) -> Entry:
    attack = scene.attack(cell)
    key = scene.key(cell, attack)
    made = store.read(key, views=scene.views(attack))
    kept = made is not None
    if made is None:
        begin = time.perf_counter()
        result = scene.make(cell, attack, tell)
        queries = float(result.queries.sum()) / len(scene.labels)
        made = Made(result, queries, time.perf_counter() - begin)
    new = bool(ask.missing(made.answers))
    answers = ask.all(made.answers, scene.patched(made.result) if new or ask.victims else scene.shown)
    if new or not kept:
        store.write(key, made, {"cell": cell.name, "widths": list(cell.widths)})
    return Entry(cell, made.result, answers, made.queries, made.seconds, kept)


def _teller(
    progress: Callable[[Progress], None], cell: Cell, number: int, total: int
) -> Callable[[int, int, float], None]:
    return lambda step, steps, _loss: progress(Progress(cell, number, total, step, steps))
