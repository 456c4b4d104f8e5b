"""`edgeq poison make|run`: attacks on training data, and what a defence leaves of them."""

from abc import ABC
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from edgeq.cli.command import AbstractCommand, DataSpec, Document, Folder, MaybeCount, MaybeData, Stopped
from edgeq.cli.poison_show import following, show_arms
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.config import TrainConfig
    from edgeq.data import Dataset
    from edgeq.poison import AbstractAttack
    from edgeq.purifiers import PurifierConfig
    from edgeq.quant.network import MultiBitNet

Runs = Positional[Annotated[tuple[Path, ...], arg(metavar="RUN …", help_behavior_hint="")]]


@dataclass(frozen=True, kw_only=True)
class AbstractPoisoning(AbstractCommand, ABC):
    """Options of an attack; what is left out has the attack's default.

    Attributes:
        surrogates: Run folders of the attacker's networks, used at their highest width.
        out: Folder to write; the same command goes on there.
        attack: bullseye (features of a test image), narcissus (a trigger), gradient-matching (a test image's gradient).
        data: What to poison: signs, signs:train=N,test=N, folder:PATH or cifar10:PATH.
        eps: Largest change of a byte.
        poisons: Images to change (bullseye: 25; narcissus: a tenth of the class;
            gradient-matching: a hundredth of all).
        per_class: bullseye: images of each class that the victim's linear layer is learned on (50; 0 for all).
        steps: Gradient steps of the search (bullseye: 150; narcissus: 300; gradient-matching: 250).
        seed: Decides targets, poisons and search.
        device: Where to compute.
    """

    surrogates: Runs
    out: Folder
    attack: Literal["bullseye", "narcissus", "gradient-matching"] = "bullseye"
    data: DataSpec = "signs"
    eps: int = 8
    poisons: MaybeCount = None
    per_class: MaybeCount = None
    steps: MaybeCount = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def method(self) -> "AbstractAttack":
        """Return the attack and its choices."""
        from edgeq.poison import ATTACKS, Bullseye

        kind = {attack.kind: attack for attack in ATTACKS}[self.attack]
        given: dict[str, Any] = {"eps": self.eps}
        if self.poisons is not None:
            given["poisons"] = self.poisons
        if self.per_class is not None:
            if kind is not Bullseye:
                raise InputError(f"expected --per-class with --attack bullseye, got {self.attack}; leave it out")
            given["per_class"] = self.per_class
        made = kind(**given)
        return made if self.steps is None else replace(made, descent=replace(made.descent, steps=self.steps))

    def scene(self) -> "tuple[tuple[MultiBitNet, ...], Dataset]":
        """Return the surrogates and the data that fit them."""
        from edgeq.cli.measure import device, load_fitting
        from edgeq.runs import load_run

        if not self.surrogates:
            raise InputError("expected a run folder of the attacker's network, got none; train one with edgeq train")
        loaded = [load_run(folder, device=device(self.device)) for folder in self.surrogates]
        dataset = load_fitting(self.data, loaded[0][0].classes, loaded[0][0].image_shape)
        for (info, _), folder in zip(loaded, self.surrogates, strict=True):
            if info.classes != dataset.classes or info.image_shape != loaded[0][0].image_shape:
                raise InputError(f"expected surrogates of the same classes and image size, got others in {folder}")
        return tuple(net for _, net in loaded), dataset


@dataclass(frozen=True, kw_only=True)
class Make(AbstractPoisoning):
    """Search for poisons and write them to a folder, which is a data set for all commands: --data poisoned:FOLDER.

    Attributes:
        target: Which of the test images that the surrogates name rightly; narcissus: the class.
    """

    target: int = 0

    def run(self, talk: Talk) -> Document:
        """Search, or find what is there."""
        with talk.busy("loading torch"):
            from edgeq.cli.train import stopping
            from edgeq.poison import Scene, make_poisons
            from edgeq.poison.cache import in_memory
            from edgeq.poison.pipeline import stoppable
            from edgeq.training import Interrupted
        attack = self.method()
        nets, dataset = self.scene()
        train, test = in_memory(dataset)
        scene = Scene(nets, train, test, len(dataset.classes), self.target, self.seed)
        try:
            with stopping() as stop, following(talk) as show:
                progress = stoppable(show.search, stop)
                made = make_poisons(attack, scene, data=self.data, folder=self.out, progress=progress)
        except Interrupted:
            raise Stopped(f"stopped; where the search stands is in {self.out}", again=()) from None
        label = dataset.classes[made.goal.label]
        talk.note(
            f"{len(made.index)} poisons towards '{label}' are in {self.out}, loss {made.losses[0]:.3f} -> "
            f"{made.losses[-1]:.3f}; next: edgeq train --data poisoned:{self.out} --out RUN"
        )
        document = {"out": str(self.out), "attack": self.attack, "data": self.data, "target": self.target}
        document |= {"label": made.goal.label, "poisons": len(made.index), "eps": self.eps}
        return {**document, "first_loss": made.losses[0], "last_loss": made.losses[-1]}


@dataclass(frozen=True, kw_only=True)
class Run(AbstractPoisoning):
    """Poison, train a purifier on the poisoned images, purify, train a classifier; then count what succeeds.

    Attributes:
        targets: How many targets: test images; narcissus: classes.
        arms: clean (no poisons), none (no defence), blur, jpeg (quality 75), purevq.
        model: The classifier. Default: the first surrogate's. Against bullseye: its features, a new linear layer.
        bits: Width of the classifier.
        epochs: Passes over the images that the classifier is trained on.
        batch_size: Images per step of the classifier's training.
        lr: Peak learning rate of the classifier's training.
        purifier_epochs: Passes of the purifier's training.
    """

    targets: int = 5
    arms: Annotated[tuple[str, ...], arg(metavar="ARM …")] = ("clean", "none", "blur", "jpeg", "purevq")
    model: MaybeData = ""
    bits: int = 32
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.15
    purifier_epochs: int = 30

    def training(self, model: str) -> "TrainConfig":
        """Return the choices of the classifier's training."""
        from edgeq.config import TrainConfig
        from edgeq.quant.network import QuantConfig

        return TrainConfig(
            data=self.data,
            model=self.model or model,
            quant=QuantConfig(bits=(self.bits,)),
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=self.seed,
            device=self.device,
        )

    def purifier(self) -> "PurifierConfig":
        """Return the choices of the purifier's training."""
        from edgeq.purifiers import PurifierConfig

        return PurifierConfig(data=self.data, epochs=self.purifier_epochs, seed=self.seed, device=self.device)

    def run(self, talk: Talk) -> Document:
        """Carry out the plan."""
        with talk.busy("loading torch"):
            from edgeq.cli.train import stopping
            from edgeq.poison import Plan, Watch, run_plan
            from edgeq.runs import read_info
            from edgeq.training import Interrupted
        attack = self.method()
        nets, dataset = self.scene()
        model = read_info(self.surrogates[0]).model
        plan = Plan(attack, self.targets, self.arms, self.training(model), self.purifier(), self.seed)
        try:
            with stopping() as stop, following(talk) as show:
                watch = Watch(talk.note, show.search, show.training, show.purifying, stop)
                body = run_plan(plan, nets, dataset, data=self.data, out=self.out, watch=watch)
        except Interrupted:
            raise Stopped(f"stopped; what is finished is in {self.out}", again=()) from None
        show_arms(talk, self.out, body)
        return {"out": str(self.out), "surrogates": [str(folder) for folder in self.surrogates], **body}


Poison = Annotated[Make, subcommand("make")] | Annotated[Run, subcommand("run")]
