"""What a data set is: two splits of images with labels, in memory or as files that are decoded when they are used.

Images are uint8, RGB, channels first, all of one size. Labels are positions in `Dataset.classes`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.data.seeds import generator
from edgeq.errors import InputError


@dataclass(frozen=True)
class Split:
    """Decoded images and their labels."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]

    def __post_init__(self) -> None:
        expected = (len(self.labels), 3)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or tuple(self.images.shape[:2]) != expected:
            raise ValueError(
                f"expected uint8 images of shape ({len(self.labels)}, 3, h, w), one per label, got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}; convert them first"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Int64[Tensor, " k"]) -> "Split":
        """Return the images at `index`, in that order."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageFiles:
    """Paths of images and their labels; every image is decoded each time it is used.

    In order and without augmentation, the shorter side is resized to `resize` and the middle `image_size` square
    kept. A damaged file is therefore found, and named, when its batch is made.
    """

    paths: tuple[Path, ...]
    labels: Int64[Tensor, " n"]
    image_size: int
    resize: int

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise ValueError(f"expected one label per path, got {len(self.labels)} for {len(self.paths)}; pair them")
        if self.resize < self.image_size:
            raise ValueError(f"expected resize >= image_size, got {self.resize} < {self.image_size}; enlarge resize")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Int64[Tensor, " k"]) -> "ImageFiles":
        """Return the files at `index`, in that order."""
        paths = tuple(self.paths[i] for i in index.tolist())
        return ImageFiles(paths, self.labels[index], self.image_size, self.resize)


@dataclass(frozen=True)
class Dataset:
    """A named classification task; `flip` says whether an image keeps its class when left and right are exchanged."""

    name: str
    classes: tuple[str, ...]
    train: Split | ImageFiles
    test: Split | ImageFiles
    flip: bool


@overload
def holdout(split: Split, count: int, *, seed: int) -> tuple[Split, Split]: ...
@overload
def holdout(split: ImageFiles, count: int, *, seed: int) -> tuple[ImageFiles, ImageFiles]: ...
def holdout(split: Split | ImageFiles, count: int, *, seed: int) -> tuple[Split, Split] | tuple[ImageFiles, ImageFiles]:
    """Split off `count` random images (for calibration) and return them and the rest.

    Both keep the order of `split`; the choice depends on the seed and the number of images alone.

    Raises:
        InputError: `count` leaves one of the two parts empty.
    """
    if not 1 <= count < len(split):
        raise InputError(
            f"expected between 1 and {len(split) - 1} images to hold out, got {count}; the split has {len(split)}"
        )
    order = torch.randperm(len(split), generator=generator("holdout", seed))
    first, rest = order[:count].sort().values, order[count:].sort().values
    if isinstance(split, Split):
        return split.subset(first), split.subset(rest)
    return split.subset(first), split.subset(rest)
