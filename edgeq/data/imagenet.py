"""`imagenet:PATH`: ImageNet as torchvision lays it out, `PATH/train/<class>/…` and `PATH/val/<class>/…`.

Never in memory. Evaluation resizes the shorter side to 256/224 of the image size and takes the middle, as the
published accuracies of ImageNet models do.
"""

from pathlib import Path

import torch

from edgeq.data.folder import same_classes
from edgeq.data.scan import Found, scan
from edgeq.data.splits import Dataset, ImageFiles
from edgeq.errors import InputError

IMAGE_SIZE = 224
MARGIN = 256 / 224


def imagenet(path: str, *, image_size: int | None = None) -> Dataset:
    """List the images of ImageNet.

    Raises:
        InputError: A folder is missing, or a class is empty or in one split alone.
    """
    root = Path(path).expanduser()
    missing = [name for name in ("train", "val") if not (root / name).is_dir()]
    if missing:
        raise InputError(
            f"expected {root}/train/<class>/ and {root}/val/<class>/, got no {' and no '.join(missing)}; for folders "
            "named train and test use folder:PATH"
        )
    train, val = scan(root / "train"), scan(root / "val")
    same_classes(train, val)
    size = image_size or IMAGE_SIZE
    splits = [_files(part, size) for part in (train, val)]
    return Dataset("imagenet", train.classes, train=splits[0], test=splits[1], flip=True)


def _files(found: Found, size: int) -> ImageFiles:
    return ImageFiles(found.paths, torch.tensor(found.labels), image_size=size, resize=round(size * MARGIN))
