"""A small convolutional variational autoencoder (Kingma and Welling, arXiv 1312.6114): the start of SRL-VAE.

    mean, v = E(x),    x^ = D(mean + exp(v / 2) n),   n ~ N(0, 1)
    L = |x^ - x|^2 + kl * (mean^2 + exp(v) - 1 - v) / 2,     x in -1...1

both terms per number. A small kl, as in latent diffusion's autoencoders, keeps the latent numbers near the scale of
the prior and costs little of the image. At inference the latent is the mean: no noise, the same result every time.
"""

import math
import os
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from edgeq import runs
from edgeq.errors import InputError
from edgeq.files import load_tensors
from edgeq.purifiers.base import AbstractGuard, AbstractPurifier, Draw, as_unit
from edgeq.purifiers.blocks import Form, check_network, decoder, encoder
from edgeq.purifiers.objective import AbstractObjective, descend

LOG_VARIANCES = (-30.0, 20.0)  # beyond them exp over- or underflows in float32


@dataclass(frozen=True)
class VAE:
    """Choices of the autoencoder.

    Attributes:
        channels: Of the inner layers; half as many at full resolution.
        blocks: Residual blocks on the latent grid, in each half.
        latent: Channels of the bottleneck.
        kl: Weight of the divergence from the standard normal prior.
        form: "integer" folds into integers; "paper" has GroupNorm and does not.
    """

    kind: ClassVar[str] = "vae"
    weights: ClassVar[str] = runs.WEIGHTS
    channels: int = 64
    blocks: int = 2
    latent: int = 16
    kl: float = 1e-3
    form: Form = "integer"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_network(self.channels, self.blocks)
        if self.latent < 1 or not 0 <= self.kl < math.inf:
            raise InputError(f"expected latent >= 1 and kl >= 0, got {self.latent} and {self.kl}; correct them")
        if self.form not in ("integer", "paper"):
            raise InputError(f"expected form integer or paper, got {self.form!r}")

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> "VAEPurifier":
        """Return the purifier, untrained."""
        return VAEPurifier(self)

    def read(self, folder: str | os.PathLike[str]) -> dict[str, Tensor]:
        """Return the weights that lie in a run folder."""
        return load_tensors(Path(folder) / self.weights)

    def objective(self, purifier: AbstractGuard, lr: float) -> "VAEObjective":
        """Return the purifier in training."""
        assert isinstance(purifier, VAEPurifier)
        return VAEObjective(purifier, lr)


class AbstractAutoencoder(AbstractPurifier):
    """A purifier without noise or codewords; the grid of its latents alone narrows the image."""

    stochastic = False
    codewords = False

    @property
    @abstractmethod
    def drawing(self) -> tuple[nn.Module, ...]:
        """What draws the image from the latent."""

    def squeeze(self, latent: Float[Tensor, "n d h w"], draw: Draw, temperature: float) -> Float[Tensor, "n d h w"]:
        """Change nothing."""
        return latent

    def bits_per_image(self, image_shape: tuple[int, ...]) -> float:
        """Return infinity: without noise a real number carries any number of bits."""
        return math.inf


class VAEPurifier(AbstractAutoencoder):
    """Encoder to a mean and a log variance, decoder."""

    def __init__(self, config: VAE) -> None:
        super().__init__()
        self.config = config
        size = {"channels": config.channels, "blocks": config.blocks}
        self.encoder = encoder(config.form, **size, latent=2 * config.latent)
        self.decoder = decoder(config.form, **size, latent=config.latent)

    def posterior(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n d h2 w2"], Float[Tensor, "n d h2 w2"]]:
        """Return the mean and the log variance of each latent number."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the mean."""
        return self.posterior(images)[0]

    @property
    def drawing(self) -> tuple[nn.Module, ...]:
        """The decoder."""
        return (self.decoder,)

    def decode(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Draw the image."""
        return self.decoder(latent)

    def not_exportable(self) -> str:
        """Say what does not fold into integers."""
        if self.config.form == "paper":
            return "GroupNorm depends on the statistics of each image and SiLU is not piecewise linear"
        return ""


def divergence(mean: Float[Tensor, "*dims"], log_variance: Float[Tensor, "*dims"]) -> Float[Tensor, ""]:
    """Return the mean divergence of a normal distribution from the standard one, per number."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


class VAEObjective(AbstractObjective):
    """Reconstruction of a drawn latent, and the divergence."""

    def __init__(self, purifier: VAEPurifier, lr: float) -> None:
        super().__init__()
        self.purifier: VAEPurifier = purifier
        self.optimizers = [torch.optim.Adam(purifier.parameters(), lr=lr)]

    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Take one step."""
        purifier = self.purifier
        real = as_unit(images)
        mean, log_variance = purifier.posterior(real)
        drawn = purifier.decode(mean + (0.5 * log_variance).exp() * draw.normal(mean))
        reconstruction, kl = F.mse_loss(drawn, real), divergence(mean, log_variance)
        loss = reconstruction + purifier.config.kl * kl
        descend(loss, self.optimizers[0])
        values = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        return {name: float(value.detach()) for name, value in values.items()}
