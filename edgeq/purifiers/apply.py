"""Purify a folder of images: names and sub-folders are kept, finished images are not made again, bad files are named.

An image of any size is purified at that size: its right and lower edges are repeated up to the purifier's grid (four
pixels, for most) and at least 16 pixels, and what was added is cut off again. Lossless formats keep what the purifier
made; JPEG is written at quality 95 and blurs it a little, which `png=True` avoids. An integer purifier has one size;
images of another one, and those too large for the memory, are named as bad.

A result has its source's time of change: where the two are the same, the image is finished.
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from edgeq import runs
from edgeq.data.decode import formats, open_rgb, suffixes
from edgeq.errors import InputError
from edgeq.files import read_json, sha256, write_bytes, write_json
from edgeq.purifiers.artefact import MANIFEST, IntegerPurifier, is_artefact
from edgeq.purifiers.base import AbstractPurifier, Draw, sample, to_bytes
from edgeq.purifiers.blocks import SMALLEST

MARK = ".edgeq-purify.json"  # says which purifier made the images beside it
BATCH = 64  # neighbours of one size go together,
PIXELS = 64 * 64 * 64  # if they are small


@dataclass
class Applied:
    """What became of the files.

    Attributes:
        done: Purified now.
        kept: Were there already.
        bad: One message for each file that could not be read or written.
    """

    done: int = 0
    kept: int = 0
    bad: list[str] = field(default_factory=list)


def apply_folder(
    purifier: AbstractPurifier | IntegerPurifier,
    source: str | Path,
    target: str | Path,
    *,
    weights: str | Path,
    samples: int = 1,
    seed: int = 0,
    png: bool = False,
    progress: Callable[[Applied, int], None] | None = None,
) -> Applied:
    """Purify all images below `source` into `target`.

    Args:
        purifier: In evaluation mode, or an artefact's.
        source: Folder that is searched with its sub-folders.
        target: New or empty folder, or one that this purifier has begun to fill.
        weights: File whose digest identifies the purifier.
        samples: Draws of a stochastic purifier, whose images are averaged.
        seed: Of the draws.
        png: Write PNG, whatever the format was.
        progress: Called with the counts so far and the number of files.

    Raises:
        InputError: A folder does not fit; files that do not are in the result instead.
    """
    source, target = Path(source), Path(target)
    names = _names(source, target, png=png)
    made_by = {"weights_sha256": sha256(weights), "samples": samples, "seed": seed, "png": png}
    _claim(target, {**made_by, "source": str(source.resolve())})
    applied, draw = Applied(), Draw(seed)
    todo = []
    for name, place in names.items():
        if _finished(source / name, target / place):
            applied.kept += 1
        else:
            todo.append(name)
    for batch in _batches(source, todo, applied):
        images = torch.from_numpy(np.stack([pixels for _, pixels in batch])).permute(0, 3, 1, 2)
        try:
            made = _bytes(purifier, images, samples, draw).permute(0, 2, 3, 1).cpu().numpy()
        except (InputError, RuntimeError) as error:
            if not isinstance(error, InputError) and "memory" not in str(error):
                raise
            why = error if isinstance(error, InputError) else f"too large for the memory, {images.shape[2:]}"
            applied.bad += [f"{source / name}: {why}" for name, _ in batch]
            continue
        for (name, _), pixels in zip(batch, made, strict=True):
            try:
                write_bytes(target / names[name], _encoded(pixels, target / names[name]))
                changed = (source / name).stat().st_mtime_ns
                os.utime(target / names[name], ns=(changed, changed))
                applied.done += 1
            except InputError as error:
                applied.bad.append(str(error))
        if progress is not None:
            progress(applied, len(names))
    return applied


def _bytes(purifier: AbstractPurifier | IntegerPurifier, images: Tensor, samples: int, draw: Draw) -> Tensor:
    if isinstance(purifier, IntegerPurifier):
        return purifier(images.contiguous())
    device = next(purifier.parameters()).device
    return to_bytes(purify_any(purifier, images.to(device), samples=samples, draw=draw))


@torch.no_grad()
def purify_any(purifier: AbstractPurifier, images: Tensor, *, samples: int = 1, draw: Draw) -> Tensor:
    """Purify byte images of any size, and return the mean of several draws as floats in [0, 1]."""
    height, width = images.shape[2:]
    grid = purifier.grid
    grown = [-(-max(SMALLEST, side) // grid) * grid for side in (height, width)]
    padded = F.pad(images.float() / 255.0, (0, grown[1] - width, 0, grown[0] - height), mode="replicate")
    total = sum(purifier(padded, draw=sample(draw, k)) for k in range(samples))
    assert isinstance(total, Tensor)
    return total[:, :, :height, :width] / samples


def _names(source: Path, target: Path, *, png: bool) -> dict[Path, Path]:
    """Return the images' paths below the source, and the places of the results below the target."""
    if not source.is_dir():
        raise InputError(f"expected a folder of images {source}, got {'a file' if source.exists() else 'nothing'}")
    a, b = source.resolve(), target.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise InputError(f"expected two folders apart, got {source} and {target}; one lies in the other: move one")
    endings = suffixes()
    found = []
    for here, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in endings]
    if not found:
        raise InputError(f"expected images in {source}, got none; name the folder that holds them")
    names = {path.relative_to(source): path.relative_to(source) for path in sorted(found)}
    if png:
        names = {name: name.with_suffix(".png") for name in names}
        if len(set(names.values())) < len(names):
            twice = next(p for p in names.values() if list(names.values()).count(p) > 1)
            raise InputError(f"expected names that differ without their endings, got two for {twice}; leave --png out")
    return names


def _claim(target: Path, made_by: dict[str, Any]) -> None:
    """Mark the target, or check that the same purifier has marked it."""
    if target.exists() and not target.is_dir():
        raise InputError(f"expected a folder to write to, got the file {target}; choose another")
    mark = target / MARK
    if mark.exists():
        before = read_json(mark)
        if before != made_by:
            other = sorted(k for k in made_by if not isinstance(before, dict) or before.get(k) != made_by[k])
            raise InputError(
                f"expected a folder of the same purifier, images and options, got {target}, filled with another "
                f"{other[0] if other else 'version'}; choose another folder"
            )
    elif target.is_dir() and any(target.iterdir()):
        raise InputError(f"expected a new or empty folder, got {target}, which holds something; choose another")
    else:
        write_json(mark, made_by)


def _finished(source: Path, target: Path) -> bool:
    return target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _batches(source: Path, names: list[Path], applied: Applied) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Decode files and yield neighbours of one size together; note those that cannot be read."""
    allowed = formats()
    batch: list[tuple[Path, np.ndarray]] = []
    for name in names:
        try:
            pixels = np.asarray(open_rgb(source / name, allowed=allowed))
        except InputError as error:
            applied.bad.append(str(error))
            continue
        full = len(batch) == BATCH or (len(batch) + 1) * pixels.shape[0] * pixels.shape[1] > PIXELS
        if batch and (full or pixels.shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append((name, pixels))
    if batch:
        yield batch


def _encoded(pixels: np.ndarray, path: Path) -> bytes:
    """Return the file's bytes in the format of its ending."""
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(buffer, format=kind, **options)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"expected to write {path} as {kind or 'an image'}, got '{error}'; use --png") from error
    return buffer.getvalue()


def weights_of(folder: Path) -> Path:
    """Return the file whose digest identifies a run's purifier, or an artefact's."""
    return folder / (MANIFEST if is_artefact(folder) else runs.WEIGHTS)
