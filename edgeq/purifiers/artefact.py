"""An exported purifier, run by ONNX Runtime: what stands before a classifier on the device, bytes between the two."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from edgeq.errors import InputError
from edgeq.export import load
from edgeq.export.artefact import MANIFEST as MANIFEST
from edgeq.integer import Model, runner


@dataclass(frozen=True)
class IntegerPurifier:
    """Bytes to bytes.

    Attributes:
        model: From `edgeq.integer.runner`.
        image_shape: (channels, height, width) of the images that it takes.
    """

    model: Model
    image_shape: tuple[int, ...]

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """Purify, on the CPU."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"expected images of shape {self.image_shape} for this artefact, got {tuple(images.shape[1:])}; "
                "export a purifier that was trained on these"
            )
        return torch.from_numpy(self.model(images.cpu().numpy())).to(images.device)


def is_artefact(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds an exported model, not a run."""
    return (Path(folder) / MANIFEST).exists()


def load_integer_purifier(folder: str | os.PathLike[str]) -> IntegerPurifier:
    """Return the purifier of an artefact folder.

    Raises:
        InputError: It is damaged, or not a purifier's.
    """
    artefact = load(folder)
    shapes = artefact.graph.input_shape, artefact.graph.edges[artefact.graph.output].shape
    if not artefact.graph.draws or shapes[0] != shapes[1]:
        raise InputError(
            f"expected an artefact that redraws images in {folder}, got one of a classifier; export a purifier"
        )
    return IntegerPurifier(runner(artefact.model), shapes[0])
