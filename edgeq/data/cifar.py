"""`cifar10:PATH`: CIFAR-10 as its authors publish it for Python, the folder `cifar-10-batches-py`.

The files are pickles. torchvision opens them only if their MD5 digests are those of the published files.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from edgeq.data.splits import Dataset, Split
from edgeq.errors import InputError

FOLDER = "cifar-10-batches-py"


def cifar10(path: str, *, image_size: int | None = None) -> Dataset:
    """Load CIFAR-10 from `cifar-10-batches-py` or from the folder that holds it.

    Raises:
        InputError: The files are missing or are not the published ones.
    """
    from torchvision.datasets import CIFAR10  # slow to import, and needed here alone

    root = Path(path).expanduser()
    root = root.parent if root.name == FOLDER else root
    try:
        with warnings.catch_warnings():
            # the published pickles spell a numpy type as numpy did in 2009; nobody can do anything about it
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            train, test = (CIFAR10(str(root), train=part, download=False) for part in (True, False))
    except (RuntimeError, OSError) as error:
        came = "other or damaged files" if (root / FOLDER).is_dir() else "no such folder"
        raise InputError(
            f"expected CIFAR-10's published python files in {root / FOLDER}, got {came}; unpack "
            "cifar-10-python.tar.gz there, or use folder:PATH for images sorted into folders"
        ) from error
    splits = [_split(part.data, part.targets, image_size or 32) for part in (train, test)]
    return Dataset("cifar10", tuple(train.classes), train=splits[0], test=splits[1], flip=True)


def _split(pixels: np.ndarray, labels: list[int], size: int) -> Split:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    if size != images.shape[-1]:
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return Split(images, torch.tensor(labels))
