"""Autoencoders of the package diffusers, AutoencoderKL and AutoencoderTiny, as a start of SRL-VAE and under attack.

A folder is read as their `save_pretrained` writes it. The network is rebuilt from its config, so a run folder needs
neither the start's folder nor the network again; nothing is ever downloaded.
"""

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeq.errors import InputError, require
from edgeq.purifiers.vae import AbstractAutoencoder

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
NAME = "_class_name"
PROBE = 64  # pixels; a multiple of every grid in use


@dataclass(frozen=True)
class DiffusersVAE:
    """One network of diffusers.

    Attributes:
        class_name: Of `CLASSES`.
        settings: Its config, as JSON.
    """

    kind: ClassVar[str] = "diffusers"
    weights: ClassVar[str] = "diffusion_pytorch_model.safetensors"
    class_name: str
    settings: str

    @staticmethod
    def of(model: nn.Module) -> "DiffusersVAE":
        """Return the description of a network."""
        name = type(model).__name__
        if name not in CLASSES:
            raise InputError(
                f"expected a network of diffusers out of {', '.join(CLASSES)}, got {name}; use one of them"
            )
        config: Any = model.config
        taken = inspect.signature(type(model).__init__).parameters
        settings = {key: value for key, value in config.items() if key in taken}
        return DiffusersVAE(name, json.dumps(settings, sort_keys=True))

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> "DiffusersPurifier":
        """Return the network with new weights, if it draws images of this shape."""
        made = DiffusersPurifier(_class(self.class_name).from_config(json.loads(self.settings)))
        sides = tuple(made.eval().decode(made.encode(torch.zeros(1, *image_shape))).shape[1:])
        if sides != image_shape:
            raise InputError(
                f"expected images that {self.class_name} draws in their own size, got {image_shape} drawn as {sides}; "
                "resize them to multiples of its smallest grid"
            )
        return made

    def read(self, folder: str | os.PathLike[str]) -> dict[str, Tensor]:
        """Return the weights that lie in a folder."""
        return DiffusersPurifier(_read(folder, self.class_name)).state_dict()


class DiffusersPurifier(AbstractAutoencoder):
    """An autoencoder of diffusers, in float32; the latent is the mean.

    Args:
        model: AutoencoderKL or AutoencoderTiny.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model.float()
        self.config = DiffusersVAE.of(model)
        with torch.no_grad():
            self.grid = PROBE // self.encode(torch.zeros(1, 3, PROBE, PROBE)).shape[-1]

    @property
    def drawing(self) -> tuple[nn.Module, ...]:
        """The decoder, and the convolution before it."""
        first = getattr(self.model, "post_quant_conv", None)
        return (self.model.decoder,) if first is None else (first, self.model.decoder)

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the mean."""
        found = self.model.encode(images)
        return found.latents if hasattr(found, "latents") else found.latent_dist.mode()

    def decode(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Draw the image."""
        return self.model.decode(latent).sample

    def not_exportable(self) -> str:
        """Say that nothing of diffusers is lowered."""
        return f"{self.config.class_name} is a network of diffusers; only those of edgeq's form integer fold"


def find_diffusers(folder: str | os.PathLike[str]) -> DiffusersVAE | None:
    """Return what a folder of diffusers holds; None where it is no such folder.

    Raises:
        InputError: It holds another network, or weights that cannot be read.
        MissingExtra: The package is not installed.
    """
    try:
        body = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(body, dict) or NAME not in body:
        return None
    if body[NAME] not in CLASSES:
        raise InputError(f"expected a folder of {' or '.join(CLASSES)}, got {body[NAME]} in {folder}; name another")
    return DiffusersVAE.of(_read(folder, body[NAME]))


def _read(folder: str | os.PathLike[str], name: str) -> nn.Module:
    path = Path(folder) / DiffusersVAE.weights
    if not path.is_file():
        raise InputError(f"expected {path.name} beside config.json in {folder}, got none; save it with save_pretrained")
    made = _class(name)
    try:
        return made.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"expected a network of diffusers in {folder}, got '{reason}'; save it again") from error


def _class(name: str) -> Any:
    return getattr(require("diffusers", "diffusers"), name)
