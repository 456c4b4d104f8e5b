"""Keep decoded images, so that a folder is decoded once and read in a second afterwards.

The file is named after a digest of everything that the result depends on (names, sizes and times of all files,
the image size, the version of this code), so it never has to be invalidated: changed files have another name. It is
written whole or not at all. A damaged one is made again; one that cannot be written costs a warning, not the run.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeq.errors import InputError
from edgeq.files import save_tensors

VERSION = 1  # raise it when the decoded pixels change
MIN_IMAGES = 1000  # fewer decode in a fraction of a second, and need no file

Images = UInt8[Tensor, "n 3 h w"]


def cache_folder() -> Path:
    """Return $EDGEQ_CACHE, or else edgeq's folder in the user's cache folder."""
    chosen = os.environ.get("EDGEQ_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgeq"


def cached(make: Callable[[], Images], *, key: object, count: int, folder: Path | None = None) -> Images:
    """Return `make()`, or what it returned the last time for the same key.

    Args:
        make: Decodes the images.
        key: Everything the result depends on, as JSON can say it.
        count: Number of images; small sets are not kept.
        folder: Where to keep them, `cache_folder()` if None.
    """
    if count < MIN_IMAGES:
        return make()
    text = json.dumps([VERSION, key], ensure_ascii=True)
    path = (folder or cache_folder()) / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    kept = _read(path, count)
    if kept is not None:
        return kept
    images = make()
    try:
        save_tensors(path, {"images": images})
    except InputError as error:
        warnings.warn(f"the decoded images were not cached: {error} (EDGEQ_CACHE names the folder)", stacklevel=2)
    return images


def _read(path: Path, count: int) -> Images | None:
    """Map the file into memory, so that only what is used is read."""
    try:
        with safe_open(path, framework="pt") as file:
            images = file.get_tensor("images")
    except (OSError, SafetensorError):
        return None
    return images if len(images) == count else None
