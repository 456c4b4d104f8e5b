"""`folder:PATH`: images sorted into folders, `PATH/train/<class>/…` and `PATH/test/<class>/…`.

* Size: every image is resized (shorter side) and cut to the middle square. Unless told, the side is the shorter side
  that is most common among some of the training images, at most 224.
* Small sets (up to IN_MEMORY_BYTES when decoded) are decoded once, kept in memory, and written to a cache; larger
  ones stay files that are decoded for each use.
* Without `PATH/test`, a tenth of each class of `train` becomes the test split: the same files whatever the seed,
  so that no run trains on what another is tested on. A warning says so.
* Exchanging left and right is taken to keep the class; `folder:PATH?flip=false` says it does not.
"""

import hashlib
import re
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from edgeq.data.cache import cached
from edgeq.data.decode import fit, formats, open_rgb, shorter_side
from edgeq.data.scan import Found, listing, scan
from edgeq.data.splits import Dataset, ImageFiles, Split
from edgeq.errors import InputError

IN_MEMORY_BYTES = 1 << 30
SMALLEST_GUESS, LARGEST_GUESS = 8, 224  # the latter is what networks for photographs take
SAMPLED = 256  # images that are opened to guess the size
TEST_SHARE = 10


def folder(path: str, *, image_size: int | None = None, cache: Path | None = None) -> Dataset:
    """Load `PATH` or `PATH?flip=false`.

    Raises:
        InputError: A folder is missing, a class is empty or in one split alone, or a file is damaged.
    """
    match = re.fullmatch(r"(.*?)(?:\?flip=(.*))?", path, flags=re.DOTALL)
    assert match is not None  # both groups may be empty
    root, flip = Path(match[1]).expanduser(), match[2] or "true"
    if flip not in ("true", "false"):
        raise InputError(f"expected flip=true or flip=false, got flip={flip}; write folder:{match[1]}?flip=false")
    train, test = _find_splits(root)
    size = image_size or _common_size(train)
    if (len(train.paths) + len(test.paths)) * 3 * size * size > IN_MEMORY_BYTES:
        splits = [ImageFiles(f.paths, torch.tensor(f.labels), image_size=size, resize=size) for f in (train, test)]
    else:
        splits = _in_memory(train, test, size, cache)
    return Dataset(root.resolve().name, train.classes, train=splits[0], test=splits[1], flip=flip == "true")


def _find_splits(root: Path) -> tuple[Found, Found]:
    if not root.is_dir():
        came = "a file" if root.exists() else "nothing"
        raise InputError(f"expected a folder {root} with train/<class>/ and test/<class>/, got {came}; check the path")
    if not (root / "train").is_dir():
        inside = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        raise InputError(
            f"expected {root}/train/<class>/ with images, got {listing(inside) or 'an empty folder'} in {root}; "
            "move the class folders into a folder train"
        )
    train = scan(root / "train")
    if not (root / "test").exists():
        return _split_off_test(train)
    test = scan(root / "test")
    same_classes(train, test)
    return train, test


def same_classes(train: Found, test: Found) -> None:
    """Check that both splits have the same class folders.

    Raises:
        InputError: Some class is in one split alone; the message names it.
    """
    differences = [
        f"{listing(sorted(set(a.classes) - set(b.classes)))} only in {a.root}"
        for a, b in ((train, test), (test, train))
        if set(a.classes) - set(b.classes)
    ]
    if differences:
        raise InputError(
            f"expected the same classes in {train.root} and {test.root}, got {' and '.join(differences)}; "
            "add or remove these folders"
        )


def _split_off_test(found: Found) -> tuple[Found, Found]:
    """Make a test split of the tenth of each class whose names have the smallest digests."""

    def digest(i: int) -> bytes:
        return hashlib.blake2b(found.paths[i].relative_to(found.root).as_posix().encode("utf-8", "replace")).digest()

    members: dict[int, list[int]] = {}
    for i, label in enumerate(found.labels):
        members.setdefault(label, []).append(i)
    alone = [found.classes[label] for label, index in members.items() if len(index) < 2]
    if alone:
        raise InputError(
            f"expected {found.root.parent}/test or at least two images per class to split off some for testing, "
            f"got one image in {listing(alone)}; add images or a test folder"
        )
    taken = {
        i for index in members.values() for i in sorted(index, key=digest)[: max(1, round(len(index) / TEST_SHARE))]
    }
    warnings.warn(
        f"{found.root.parent}/test is not there: {len(taken)} of {len(found.paths)} training images (a tenth of each "
        "class, always the same) become the test split and are not trained on",
        stacklevel=5,
    )
    everything = range(len(found.paths))
    return found.subset([i for i in everything if i not in taken]), found.subset(sorted(taken))


def _common_size(found: Found) -> int:
    """Return the most common shorter side of some training images, the larger one of two that are as common."""
    every = max(1, len(found.paths) // SAMPLED)
    sides = Counter(side for path in found.paths[::every][:SAMPLED] if (side := shorter_side(path)) is not None)
    if not sides:  # all damaged: any size does, decoding will name them
        return SMALLEST_GUESS
    return min(LARGEST_GUESS, max(SMALLEST_GUESS, max(sides, key=lambda side: (sides[side], side))))


def _in_memory(train: Found, test: Found, size: int, cache: Path | None) -> list[Split]:
    count = len(train.paths)

    def decode() -> UInt8[Tensor, "n 3 size size"]:
        return decode_all(train.paths + test.paths, size)

    files = [(str(f.root.resolve()), [str(path) for path in f.paths], f.stamps) for f in (train, test)]
    images = cached(decode, key=("folder", size, files), count=count + len(test.paths), folder=cache)
    return [Split(images[:count], torch.tensor(train.labels)), Split(images[count:], torch.tensor(test.labels))]


def decode_all(paths: tuple[Path, ...], size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Decode all files, resized and cut to `size`.

    Raises:
        InputError: Some files are damaged; the message names the first three and counts them.
    """
    allowed = formats()
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def decode(i: int) -> str | None:
        try:
            images[i] = fit(open_rgb(paths[i], allowed=allowed), resize=size, size=size).transpose(2, 0, 1)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        damaged = [message for message in pool.map(decode, range(len(paths))) if message is not None]
    if len(damaged) == 1:
        raise InputError(damaged[0])
    if damaged:
        raise InputError(f"{len(damaged)} of {len(paths)} images cannot be read: {' | '.join(damaged[:3])}")
    return torch.from_numpy(images)
