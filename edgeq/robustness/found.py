"""Attacked images of a pipeline in a folder, so that a stopped evaluation goes on where it was.

    FOLDER/KEY.safetensors   the images that one way of attack found at one eps, and which share of gradients vanished

KEY is a hash of all that they depend on, so they are found again exactly when they would come out the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from edgeq.attacks.pipeline import Attacked
from edgeq.errors import InputError
from edgeq.files import load_tensors, save_tensors
from edgeq.robustness.store import fingerprint, key_of


@dataclass(frozen=True)
class Found:
    """The attacked images of one pipeline and one set of images.

    Attributes:
        folder: Where they are kept.
        parts: What else they depend on: networks, effort, seed.
    """

    folder: Path
    parts: Mapping[str, Any]

    def read(self, way: str, eps: int, images: UInt8[Tensor, "n c h w"]) -> Attacked | None:
        """Return what is there for these images; nothing where the file is damaged."""
        path = self._path(way, eps, images)
        if not path.exists():
            return None
        try:
            tensors = load_tensors(path)
            return Attacked(tensors["images"].to(images.device), float(tensors["flat"]))
        except (InputError, KeyError, ValueError):
            return None

    def write(self, way: str, eps: int, images: UInt8[Tensor, "n c h w"], found: Attacked) -> None:
        """Keep what an attack on these images found."""
        tensors = {"images": found.images.cpu(), "flat": torch.tensor(found.flat, dtype=torch.float64)}
        save_tensors(self._path(way, eps, images), tensors)

    def _path(self, way: str, eps: int, images: Tensor) -> Path:
        key = key_of({**self.parts, "way": way, "eps": eps, "images": fingerprint({"images": images})})
        return self.folder / f"{key}.safetensors"
