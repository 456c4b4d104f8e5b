"""Poisons in a folder: made once, recognised when all choices are the same, and a data set for any training.

A search that is stopped leaves where it stands (see `courses`), and goes on there.

The files are those of `edgeq.data.poisoned`; the description also holds the attack, its choices, the target, and hashes
of the surrogates and the images. It is written last: where it is, the folder is whole.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edgeq.data import Dataset, Split
from edgeq.data.poisoned import FORMAT, ORIGIN, TENSORS, check_base, read_replaced
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json, save_tensors, sha256, write_json
from edgeq.poison.base import AbstractAttack, Poisons, Progress, Scene, Watching, silent
from edgeq.poison.courses import FILE, Courses
from edgeq.poison.goals import Targets, Trigger
from edgeq.quant.network import MultiBitNet
from edgeq.robustness.store import fingerprint, key_of
from edgeq.runs import versions


def make_poisons(
    attack: AbstractAttack, scene: Scene, *, data: str, folder: str | Path, progress: Progress | None = None
) -> Poisons:
    """Return the poisons of these choices from `folder`, or make them there.

    Args:
        attack: The attack and its choices.
        scene: Surrogates, images, target, seed.
        data: The specification that `scene.train` and `scene.test` were loaded by.
        folder: New or empty, or one that the same call has filled.
        progress: Called after each step of the search.

    Raises:
        InputError: The folder holds something else, or the attack does not fit the scene.
    """
    check_base(data)
    folder = Path(folder)
    origin = _origin(attack, scene, data)
    if (folder / ORIGIN).exists():
        _check_same(folder, origin)
        return open_poisons(folder)
    if folder.exists() and (not folder.is_dir() or any(p.name not in (TENSORS, FILE) for p in folder.iterdir())):
        raise InputError(f"expected a new or empty folder, got {folder}, which holds something; choose another")
    courses = Courses(folder / FILE, key_of(origin))
    try:
        made = attack.run(scene, watch=Watching(progress or silent, courses))
    except BaseException:
        courses.write()
        raise
    tensors = {"index": made.index, "images": made.images, "labels": scene.train.labels[made.index]}
    goal = made.goal
    if isinstance(goal, Targets):
        tensors |= {"target_images": goal.images, "target_labels": goal.labels}
    else:
        tensors |= {"pattern": goal.pattern}
    save_tensors(folder / TENSORS, tensors)
    body = {**origin, "label": goal.label, "losses": list(made.losses), "versions": versions()}
    write_json(folder / ORIGIN, {**body, "sha256": sha256(folder / TENSORS)})
    courses.forget()
    return open_poisons(folder)


def open_poisons(folder: Path) -> Poisons:
    """Read poisons, or say what is wrong with the folder."""
    found = read_replaced(folder)
    tensors, origin = load_tensors(folder / TENSORS), read_json(folder / ORIGIN)
    goal: Targets | Trigger
    if "pattern" in tensors:
        goal = Trigger(tensors["pattern"], int(origin["label"]))
    else:
        goal = Targets(tensors["target_images"], tensors["target_labels"], int(origin["label"]))
    return Poisons(found.index, found.images, goal, tuple(origin["losses"]))


def in_memory(dataset: Dataset) -> tuple[Split, Split]:
    """Return both splits of a data set, or say that it is too large to be poisoned."""
    if not isinstance(dataset.train, Split) or not isinstance(dataset.test, Split):
        raise InputError(f"expected a data set that fits into memory, got the files of {dataset.name}; choose another")
    return dataset.train, dataset.test


def choices(attack: AbstractAttack) -> dict[str, Any]:
    """Return an attack's kind and choices as JSON has them."""
    return {"kind": attack.kind, **json.loads(json.dumps(asdict(attack)))}


def _origin(attack: AbstractAttack, scene: Scene, data: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "data": data,
        "eps": attack.eps,
        "attack": choices(attack),
        "number": scene.number,
        "seed": scene.seed,
        "networks": [_hash(net) for net in scene.nets],
        "images": fingerprint(
            {
                "train": scene.train.images,
                "labels": scene.train.labels,
                "test": scene.test.images,
                "test_labels": scene.test.labels,
            }
        ),
    }


def _hash(net: MultiBitNet) -> str:
    return fingerprint({name: t.to(torch.float32) for name, t in net.state_dict().items()})


def _check_same(folder: Path, origin: dict[str, Any]) -> None:
    before = read_json(folder / ORIGIN)
    other = sorted(name for name in origin if not isinstance(before, dict) or before.get(name) != origin[name])
    if other:
        raise InputError(
            f"expected a new folder, or poisons of the same choices, got {folder} with another {other[0]}; choose "
            "another folder"
        )
