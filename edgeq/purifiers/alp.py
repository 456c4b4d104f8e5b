"""ALP, the asymmetric latent purifier: an autoencoder with Gaussian noise on its latent vectors.

    x^ = D(E(x) + sigma n),   n ~ N(0, 1),        answer = argmax mean_k logits(D(E(x) + sigma n_k)),  k = 1...20

The paper learns sigma from the reconstruction alone and calls the noise non-differentiable. Neither holds: the loss
falls with sigma, and the encoder can enlarge E(x) until any sigma is nothing; and the derivative of x^ is exactly
D'(E(x) + sigma n) E'(x), so an attacker averages it over draws. Here E(x) is normalised to unit variance (a BatchNorm
without parameters), which makes 1 / sigma^2 a signal-to-noise ratio, and sigma pays for the capacity it leaves,

    L = |x^ - x|^2 + rate * log(1 + 1 / sigma^2) / 2,

per latent number. `rate=0` is the paper's loss, `learn_sigma=False` a fixed sigma for a sweep.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from edgeq.errors import InputError
from edgeq.purifiers.base import AbstractGuard, AbstractPurifier, Draw, as_unit
from edgeq.purifiers.blocks import SHRINK, Form, check_network, decoder, encoder
from edgeq.purifiers.objective import AbstractObjective, descend

SAMPLES = 20  # the paper's ensemble
SIGMA_PACE = 10.0  # Adam moves each parameter by about its rate a step, and sigma has further to go than a weight


@dataclass(frozen=True)
class ALP:
    """Choices of ALP.

    Attributes:
        channels: Of the inner layers; half as many at full resolution.
        blocks: Residual blocks on the latent grid, in each half.
        latent: Channels of the bottleneck.
        sigma: Noise at the start, in units of the latent's standard deviation.
        learn_sigma: Whether training changes it.
        rate: Price of the bottleneck's capacity; 0 lets a learned sigma vanish.
        form: "integer" folds into integers; "paper" has GroupNorm and does not.
    """

    kind: ClassVar[str] = "alp"
    channels: int = 64
    blocks: int = 2
    latent: int = 64
    sigma: float = 0.5
    learn_sigma: bool = True
    rate: float = 0.01
    form: Form = "integer"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_network(self.channels, self.blocks)
        if self.latent < 1 or not 0 <= self.sigma < math.inf or not 0 <= self.rate < math.inf:
            raise InputError(
                f"expected latent >= 1, sigma and rate >= 0, got {self.latent}, {self.sigma} and {self.rate}"
            )
        if self.learn_sigma and self.sigma == 0:
            raise InputError("expected sigma > 0 to learn it, got 0; choose another or fix it at 0")
        if self.form not in ("integer", "paper"):
            raise InputError(f"expected form integer or paper, got {self.form!r}")

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> "ALPPurifier":
        """Return the purifier, untrained."""
        return ALPPurifier(self)

    def objective(self, purifier: AbstractGuard, lr: float) -> "ALPObjective":
        """Return the purifier in training."""
        assert isinstance(purifier, ALPPurifier)
        return ALPObjective(purifier, lr)


class ALPPurifier(AbstractPurifier):
    """Encoder, noise, decoder."""

    stochastic = True
    codewords = False

    def __init__(self, config: ALP) -> None:
        super().__init__()
        self.config = config
        size = {"channels": config.channels, "blocks": config.blocks, "latent": config.latent}
        self.encoder = encoder(config.form, **size)
        self.scale = nn.BatchNorm2d(config.latent, affine=False)
        self.decoder = decoder(config.form, **size)
        start = math.log(config.sigma) if config.sigma else -math.inf
        self.log_sigma = nn.Parameter(torch.tensor(start), requires_grad=config.learn_sigma)

    @property
    def sigma(self) -> Float[Tensor, ""]:
        """The noise, in units of the latent's standard deviation."""
        return self.log_sigma.exp()

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return latent vectors of unit variance."""
        return self.scale(self.encoder(images))

    def squeeze(self, latent: Float[Tensor, "n d h w"], draw: Draw, temperature: float) -> Float[Tensor, "n d h w"]:
        """Add noise."""
        return latent + self.sigma * draw.normal(latent)

    def decode(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Draw the image."""
        return self.decoder(latent)

    def bits_per_image(self, image_shape: tuple[int, ...]) -> float:
        """Return numbers x log2(1 + 1 / sigma^2) / 2, the capacity of the noisy channel; infinite without noise."""
        numbers = self.config.latent * (image_shape[-2] // SHRINK) * (image_shape[-1] // SHRINK)
        sigma = float(self.sigma.detach())
        return math.inf if sigma == 0 else numbers * math.log2(1 + sigma**-2) / 2

    def not_exportable(self) -> str:
        """Say what does not fold into integers."""
        if self.config.form == "paper":
            return "GroupNorm depends on the statistics of each image and SiLU is not piecewise linear"
        return "Gaussian noise needs a source of randomness that the integer graph does not have"


class ALPObjective(AbstractObjective):
    """Reconstruction, and the price of capacity."""

    def __init__(self, purifier: ALPPurifier, lr: float) -> None:
        super().__init__()
        self.purifier: ALPPurifier = purifier
        weights = [p for name, p in purifier.named_parameters() if name != "log_sigma"]
        groups = [{"params": weights}, {"params": [purifier.log_sigma], "lr_factor": SIGMA_PACE}]
        self.optimizers = [torch.optim.Adam(groups, lr=lr)]

    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Take one step."""
        purifier = self.purifier
        real = as_unit(images)
        drawn = purifier.decode(purifier.squeeze(purifier.encode(real), draw, 0.0))
        reconstruction = F.mse_loss(drawn, real)
        loss = reconstruction
        if purifier.config.learn_sigma:
            loss = loss + purifier.config.rate * 0.5 * torch.log1p(purifier.sigma**-2)
        descend(loss, self.optimizers[0])
        values = {"loss": loss, "reconstruction": reconstruction, "sigma": purifier.sigma}
        return {name: float(value.detach()) for name, value in values.items()}
