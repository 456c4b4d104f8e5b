"""`poisoned:FOLDER`: another data set, some of whose training images were changed by `edgeq poison make`.

    FOLDER/poison.safetensors   index, images, labels: places in the training split, what stands there, its classes
    FOLDER/poison.json          the other data set's specification, the largest change, and how the images were made

The images that are replaced are compared: same classes, no byte farther away than the file says. So a data set that has
changed since is found out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.data.splits import Dataset, Split
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json, sha256

TENSORS, ORIGIN, FORMAT = "poison.safetensors", "poison.json", 1


@dataclass(frozen=True)
class Replaced:
    """What a folder says.

    Attributes:
        data: Specification of the other data set.
        eps: Largest change of a byte.
        index: Places in its training split.
        images: What stands there instead.
        labels: Classes there, unchanged.
    """

    data: str
    eps: int
    index: Int64[Tensor, " k"]
    images: UInt8[Tensor, "k 3 h w"]
    labels: Int64[Tensor, " k"]


def poisoned(path: str, load: Callable[[str], Dataset]) -> Dataset:
    """Load a poisoned data set.

    Args:
        path: The folder.
        load: Loads the data set beneath.

    Raises:
        InputError: The folder or the data set beneath is not what was expected.
    """
    folder = Path(path).expanduser()
    found = read_replaced(folder)
    check_base(found.data)
    return replaced(load(found.data), found, f"the data of {folder}")


def replaced(base: Dataset, found: Replaced, whose: str) -> Dataset:
    """Return a data set with its poisons in place, or say that they do not belong to it."""
    if not isinstance(base.train, Split):
        raise InputError(f"expected a data set that fits into memory in {found.data}, got files; choose a smaller one")
    train = base.train
    fits = found.images.shape[1:] == train.images.shape[1:] and int(found.index.max()) < len(train)
    if fits:
        change = (train.images[found.index].to(torch.int16) - found.images.to(torch.int16)).abs()
        fits = int(change.max()) <= found.eps and torch.equal(train.labels[found.index], found.labels)
    if not fits:
        raise InputError(
            f"expected {whose} to be those that were poisoned, {found.data!r}, got others; make the poisons again"
        )
    images = train.images.clone()
    images[found.index] = found.images
    return Dataset(f"{base.name}, poisoned", base.classes, Split(images, train.labels), base.test, flip=base.flip)


def check_base(data: str) -> None:
    """Refuse to poison what is poisoned: it would be said to be clean beneath."""
    if data.startswith("poisoned:"):
        raise InputError(f"expected data that are not poisoned yet, got {data!r}; poison what lies beneath")


def read_replaced(folder: Path) -> Replaced:
    """Read a folder, or say what is wrong with it."""
    if not (folder / ORIGIN).exists():
        came = "a folder without" if folder.is_dir() else "no such folder"
        raise InputError(f"expected {ORIGIN} in {folder}, got {came}; make one with edgeq poison make")
    origin = read_json(folder / ORIGIN)
    try:
        if origin["format"] != FORMAT:
            raise InputError(f"expected poison format {FORMAT} in {folder}, got {origin['format']}; make it again")
        digest, data, eps = origin["sha256"], str(origin["data"]), int(origin["eps"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"expected a poisoned set's {ORIGIN} in {folder}, got a wrong {error}; make it again"
        ) from error
    if sha256(folder / TENSORS) != digest:
        raise InputError(f"expected {folder / TENSORS} as it was written, got a changed file; make it again")
    tensors = load_tensors(folder / TENSORS)
    return Replaced(data, eps, tensors["index"], tensors["images"], tensors["labels"])
