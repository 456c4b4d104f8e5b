"""Find the images of a folder of classes: `root/<class>/…/image`.

Folders inside a class folder are searched too. Left out: names that start with a dot (also whole folders), and files
whose ending is not that of an image. Links are followed; a folder that was already seen is not entered again, so
a link to a parent does no harm.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from edgeq.data.decode import suffixes
from edgeq.errors import InputError


@dataclass(frozen=True)
class Found:
    """The image files of one split, ordered by class and name.

    Attributes:
        root: The folder of the split.
        classes: Names of the class folders, sorted.
        paths: One path per image.
        labels: Position of each image's class in `classes`.
        stamps: What changes when a file changes: size, time of the last write, time of the last change of any kind.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    stamps: tuple[tuple[int, int, int], ...]

    def subset(self, index: list[int]) -> "Found":
        """Return the files at `index`, in that order."""
        rows = [(self.paths[i], self.labels[i], self.stamps[i]) for i in index]
        paths, labels, stamps = zip(*rows, strict=True)
        return Found(self.root, self.classes, paths, labels, stamps)


def scan(root: Path) -> Found:
    """List the images of `root/<class>/`.

    Raises:
        InputError: There is no such folder, it holds no class folders, or a class has no images.
    """
    if not root.is_dir():
        raise InputError(f"expected a folder {root}, got {'a file' if root.exists() else 'nothing'}; check the path")
    names = sorted(entry.name for entry in _entries(root) if not entry.name.startswith(".") and _is_folder(entry))
    if not names:
        raise InputError(f"expected one folder per class in {root}, got none; sort the images into {root}/<class>/")
    endings = suffixes()
    rows = [(path, label, stamp) for label, name in enumerate(names) for path, stamp in _images(root / name, endings)]
    present = {label for _, label, _ in rows}
    empty = [name for label, name in enumerate(names) if label not in present]
    if empty:
        raise InputError(f"expected images in every class of {root}, got none in {listing(empty)}; add or remove them")
    paths, labels, stamps = zip(*rows, strict=True)
    return Found(root, tuple(names), paths, labels, stamps)


def listing(names: list[str], *, most: int = 3) -> str:
    """Return the first few names, and how many there are if that is more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"


def _images(folder: Path, endings: frozenset[str]) -> list[tuple[Path, tuple[int, int, int]]]:
    """Return the images below `folder` with their stamps, sorted by path."""
    found, waiting, seen = [], [folder], set()
    while waiting:
        here = waiting.pop()
        identity = here.stat()
        if (identity.st_dev, identity.st_ino) in seen:
            continue
        seen.add((identity.st_dev, identity.st_ino))
        for entry in _entries(here):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                waiting.append(here / entry.name)
            elif os.path.splitext(entry.name)[1].lower() in endings:
                found.append((here / entry.name, _stamp(entry)))
    return sorted(found)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"expected a readable folder {folder}, got '{reason}'; check its permissions") from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _stamp(entry: "os.DirEntry[str]") -> tuple[int, int, int]:
    try:
        state = entry.stat()
    except OSError:  # a broken link: kept, so that decoding names it
        return (0, 0, 0)
    return (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
