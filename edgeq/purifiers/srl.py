"""SRL-VAE (Lee, Kim et al., arXiv 2504.17219): a finished autoencoder, trained on against attacks on itself.

    d*  =  argmax over |d| <= eps of |D(E(x + d)) - x|^2                                   projected gradient ascent
    L   =  |D(E(x + d*)) - x|^2 + clean * |D(E(x)) - x|^2 + gamma * |E(x) - E0(x)|^2       each a mean per number

E0 is the encoder at the start, and the last term the paper's "originality": latents keep their meaning for whatever
was built on them, the frozen decoder first of all. Both networks stay in evaluation mode, so that the ascent climbs,
and the step mends, the function that is deployed: BatchNorm's statistics are the start's.

What we had of the paper leaves open eps, the steps, gamma, the data, the rate, whether the decoder is trained, and the
exact form of the originality term; ours are choices. Its LPIPS terms are left out (they need trained weights), the
clean term is ours, and the latent is the mean without a draw, so the divergence has no part.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from edgeq.attacks.ball import Ball, Pace, ascend
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.files import sha256
from edgeq.purifiers.base import AbstractGuard, Draw, as_unit
from edgeq.purifiers.diffusers_vae import DiffusersVAE
from edgeq.purifiers.objective import AbstractObjective, descend
from edgeq.purifiers.vae import VAE, AbstractAutoencoder


@dataclass(frozen=True)
class SRL:
    """Choices of the smoothing; `edgeq.purifiers.srl_from` fills in the first three from a run folder.

    Attributes:
        start: Run folder of the autoencoder, or a folder of diffusers; read when training begins, not needed later.
        start_sha256: Digest of its weights.
        network: Its choices.
        eps: Largest change of a pixel in training, of 255.
        steps: Gradient steps of the ascent.
        step: Their size, in units of eps.
        gamma: Weight of the originality term.
        clean: Weight of the reconstruction of clean images.
        frozen_decoder: Train the encoder alone.
    """

    kind: ClassVar[str] = "srl"
    start: str
    start_sha256: str
    network: VAE | DiffusersVAE
    eps: float = 8.0
    steps: int = 5
    step: float = 0.3
    gamma: float = 0.1
    clean: float = 1.0
    frozen_decoder: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.eps <= 255:
            raise InputError(f"expected eps above 0 and at most 255 (of 255), got {self.eps}; for example 8")
        if not all(0 <= weight < math.inf for weight in (self.gamma, self.clean)):
            raise InputError(f"expected gamma and clean >= 0, got {self.gamma} and {self.clean}; correct them")
        self.pace()

    def pace(self) -> Pace:
        """Return how the inner ascent steps."""
        return Pace(self.steps, self.step, decay=False)

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> "SRLPurifier":
        """Return the purifier, before it has the start's weights."""
        return SRLPurifier(self, image_shape, batch_size)

    def objective(self, purifier: AbstractGuard, lr: float) -> "SRLObjective":
        """Return the purifier in training, with the weights of its start."""
        assert isinstance(purifier, SRLPurifier)
        path = Path(self.start) / self.network.weights
        if sha256(path) != self.start_sha256:
            raise InputError(f"expected the weights that this smoothing began with in {path}, got others; start anew")
        purifier.begin(self.network.read(self.start))
        return SRLObjective(purifier, lr)


class SRLPurifier(AbstractAutoencoder):
    """The smoothed autoencoder, and the one at the start: it anchors the training and is what results are beside."""

    def __init__(self, config: SRL, image_shape: tuple[int, int, int], batch_size: int) -> None:
        super().__init__()
        self.config = config
        self.smooth: AbstractAutoencoder = config.network.build(image_shape, batch_size)
        self.origin: AbstractAutoencoder = config.network.build(image_shape, batch_size).requires_grad_(False)
        self.grid = self.smooth.grid

    @property
    def drawing(self) -> tuple[nn.Module, ...]:
        """The decoder of the smoothed autoencoder."""
        return self.smooth.drawing

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of the start."""
        self.smooth.load_state_dict(weights)
        self.origin.load_state_dict(weights)

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the smoothed mean."""
        return self.smooth.encode(images)

    def decode(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Draw the image."""
        return self.smooth.decode(latent)

    def not_exportable(self) -> str:
        """Say what does not fold into integers."""
        return self.smooth.not_exportable()


class SRLObjective(AbstractObjective):
    """The worst images near a batch, then a step on them."""

    def __init__(self, purifier: SRLPurifier, lr: float) -> None:
        super().__init__()
        self.purifier: SRLPurifier = purifier
        smooth = purifier.smooth
        for part in smooth.drawing:
            part.requires_grad_(not purifier.config.frozen_decoder)
        self.optimizers = [torch.optim.Adam([p for p in smooth.parameters() if p.requires_grad], lr=lr)]

    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Take one step."""
        purifier, config = self.purifier.eval(), self.purifier.config
        real = as_unit(images)
        worst = self.attacked(images, draw)
        adversarial = F.mse_loss(purifier.decode(purifier.encode(as_unit(worst))), real)
        latent = purifier.encode(real)
        reconstruction = F.mse_loss(purifier.decode(latent), real)
        with torch.no_grad():
            anchor = purifier.origin.encode(real)
        originality = F.mse_loss(latent, anchor)
        loss = adversarial + config.clean * reconstruction + config.gamma * originality
        descend(loss, self.optimizers[0])
        values = {"loss": loss, "adversarial": adversarial, "reconstruction": reconstruction}
        values["originality"] = originality
        return {name: float(value.detach()) for name, value in values.items()}

    def attacked(self, images: UInt8[Tensor, "n c h w"], draw: Draw) -> Float[Tensor, "n c h w"]:
        """Return the images near these, in [0, 1], that are drawn worst."""
        purifier, config, real = self.purifier, self.purifier.config, as_unit(images)

        def errors(x: Tensor) -> Tensor:
            return (purifier.decode(purifier.encode(as_unit(x))) - real).square().flatten(1).mean(1)

        gen = generator("smoothing", repr(draw.seed))
        return ascend(errors, Ball(images, config.eps / 255), config.pace(), gen)
