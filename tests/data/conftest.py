from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeq.data import Split

MakeFolder = Callable[..., Path]


def noise(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write `per_class` PNG files for each class of each split and return the root."""

    def make(splits: dict[str, tuple[str, ...]], *, per_class: int = 3, side: int = 16) -> Path:
        root = tmp_path / "set"
        seed = 0
        for split, classes in splits.items():
            for name in classes:
                place = root / split / name
                place.mkdir(parents=True)
                for i in range(per_class):
                    Image.fromarray(noise(seed, side, side)).save(place / f"{i:03}.png")
                    seed += 1
        return root

    return make


@pytest.fixture
def split() -> Split:
    """Return 37 images that all differ, labelled by their position."""
    gen = torch.Generator().manual_seed(0)
    return Split(torch.randint(0, 256, (37, 3, 12, 12), generator=gen, dtype=torch.uint8), torch.arange(37))
