"""What the cells of an evaluation share: the network, the images, the tuned surrogate, the textures."""

import dataclasses
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.attacks import (
    EOT,
    AbstractPatchAttack,
    FineTune,
    Goal,
    PatchResult,
    Surrogate,
    Textures,
    build_textures,
    surrogate,
    tuned_copy,
)
from edgeq.attacks.base import Progress
from edgeq.data import Dataset, ImageFiles, Split, batches
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from edgeq.robustness.answers import logits_of
from edgeq.robustness.arsenal import TEXTURE, arm, views_of
from edgeq.robustness.plan import Cell, Plan
from edgeq.robustness.store import FORMAT, fingerprint, key_of


@dataclasses.dataclass
class Scene:
    """The network and the images of one evaluation.

    Attributes:
        net: The network.
        plan: The choices.
        images: How many test images are judged on.
        shown: Those that some width names rightly.
        labels: Their classes.
        train: Training images.
        train_labels: Their classes.
    """

    net: MultiBitNet
    plan: Plan
    images: int
    shown: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    train: UInt8[Tensor, "m c h w"]
    train_labels: Int64[Tensor, " m"]

    def attack(self, cell: Cell) -> AbstractPatchAttack:
        """Return the attack of a cell; of several widths, which cost so many times as much, fewer starts race."""
        textures = self.textures if cell.attack == TEXTURE else None
        effort = dataclasses.replace(self.plan.effort, starts=self.plan.effort.starts // len(cell.widths))
        return arm(cell.attack).build(cell.size, effort, self.plan.batch_size, textures)

    def views(self, attack: AbstractPatchAttack) -> EOT | None:
        """Return the views of a universal patch."""
        return views_of(attack)

    def key(self, cell: Cell, attack: AbstractPatchAttack) -> str:
        """Return a hash of all that decides the cell's patches."""
        parts = {
            "format": FORMAT,
            "attack": cell.attack,
            "settings": self._settings(cell, attack),
            "widths": list(cell.widths),
            "towards": cell.towards,
            "seed": self.plan.seed,
            "network": self._network,
            "images": self._shown,
        }
        if cell.tuned:
            parts["tuned"] = dataclasses.asdict(self._tuning)
        if cell.tuned or arm(cell.attack).universal or cell.attack == TEXTURE:
            parts["train"] = self._train
        return key_of(parts)

    def make(self, cell: Cell, attack: AbstractPatchAttack, progress: Progress | None) -> PatchResult:
        """Make the patches of a cell."""
        victim = self._victim(cell)
        seed = (self.plan.seed, cell.size, -1 if cell.towards is None else cell.towards)
        device = self.shown.device
        if cell.towards is not None:
            goal = Goal.towards(self.train_labels.to(device), cell.towards)
            return attack.run(victim, self.train, goal, seed=seed, progress=progress)
        return attack.run(victim, self.shown, Goal(self.labels.to(device)), seed=seed, progress=progress)

    def patched(self, result: PatchResult) -> UInt8[Tensor, "n c h w"]:
        """Return the attacked images with their patches."""
        return result.on(self.shown, seed=(self.plan.seed, result.size))

    @cached_property
    def tuned(self) -> MultiBitNet:
        """The tuned surrogate; made anew in each process, in less time than one cell."""
        labels = self.train_labels.to(self.train.device)
        return tuned_copy(self.net, self.train, labels, choices=self._tuning)

    @cached_property
    def textures(self) -> Textures:
        """Textures from the training images."""
        side = min(max(16, *self.plan.sizes), *self.net.image_shape[1:])
        return build_textures(self.train, self.train_labels.to(self.train.device), side=side, seed=self.plan.seed)

    def _victim(self, cell: Cell) -> Surrogate:
        net = self.tuned if cell.tuned else self.net
        return surrogate(net, cell.widths)

    @property
    def _tuning(self) -> FineTune:
        return FineTune(steps=self.plan.effort.tune_steps, seed=self.plan.seed)

    def _settings(self, cell: Cell, attack: AbstractPatchAttack) -> dict[str, Any]:  # Any: numbers and names
        names = [f.name for f in dataclasses.fields(attack)]  # type: ignore[arg-type]
        settings = {name: getattr(attack, name) for name in names}
        if not arm(cell.attack).universal:
            del settings["batch_size"]  # of no consequence there
        if settings.get("textures") is not None:
            settings["textures"] = fingerprint({"images": self.textures.images, "classes": self.textures.classes})
        return {name: _plain(value) for name, value in settings.items()}

    @cached_property
    def _network(self) -> str:
        return fingerprint({**self.net.state_dict(), "bits": torch.tensor(self.net.bits)})

    @cached_property
    def _shown(self) -> str:
        return fingerprint({"images": self.shown, "labels": self.labels})

    @cached_property
    def _train(self) -> str:
        return fingerprint({"images": self.train, "labels": self.train_labels})


def make_scene(net: MultiBitNet, dataset: Dataset, plan: Plan) -> Scene:
    """Draw the images, and keep those that some width of the network names rightly.

    Raises:
        InputError: No image is named rightly by any width.
    """
    device = next(net.parameters()).device
    test, labels = draw(dataset.test, plan.images, seed=plan.seed, device=device)
    train, train_labels = draw(dataset.train, plan.train_images, seed=plan.seed, device=device)
    right = torch.zeros(len(test), dtype=torch.bool)
    with torch.no_grad():
        for b in net.bits:
            parts = [logits_of(net, part, b).argmax(1).cpu() for part in test.split(plan.batch_size)]
            right |= torch.cat(parts) == labels
    if not bool(right.any()):
        raise InputError(
            f"expected images that the network names rightly, got none of {len(test)} at {list(net.bits)} bits; "
            "an untrained network cannot be attacked"
        )
    shown = right.nonzero()[:, 0]
    return Scene(net, plan, len(test), test[shown.to(device)], labels[shown], train, train_labels)


def draw(
    split: Split | ImageFiles, count: int, *, seed: int, device: torch.device | str = "cpu"
) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """Return random images of a split in its order, images on the device and labels on the CPU."""
    order = torch.randperm(len(split), generator=generator("robustness", seed))[:count].sort().values
    pairs = list(batches(split.subset(order), 250))
    return torch.cat([images for images, _ in pairs]).to(device), torch.cat([labels for _, labels in pairs])


def _plain(value: object) -> object:
    """A dataclass as a dictionary, for a hash of its numbers."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
