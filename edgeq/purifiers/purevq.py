"""PureVQ-GAN (Pooladzandi et al., arXiv 2509.25792): images through a discrete bottleneck, drawn by a GAN's decoder.

    L_G = |x^ - x|^2 + beta |z - sg(e)|^2 + lambda softplus(-D(x^)),     x in -1...1
    L_D = softplus(-D(x)) + softplus(D(x^))

with beta 0.25 and lambda 0.1. Where we differ from the paper, and why: the codebook follows a moving average and dead
codes restart (the paper's plain gradient loss uses a twentieth of its codes); vectors have 16 numbers, not 256, for the
same reason, and are normalised by a BatchNorm without parameters; BatchNorm, ReLU and nearest upsampling take the
place of GroupNorm, SiLU and transposed convolutions, so that the network can run in integers (`form="paper"` puts
them back); the discriminator starts after a tenth of the epochs, when there is something to judge.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from edgeq.errors import InputError
from edgeq.purifiers.base import AbstractGuard, AbstractPurifier, Draw, as_unit
from edgeq.purifiers.blocks import SHRINK, Form, check_network, decoder, encoder
from edgeq.purifiers.codebook import FSQ, AbstractBottleneck, Codebook
from edgeq.purifiers.objective import AbstractObjective, descend

BETAS = (0.5, 0.9)  # Adam's, usual for GANs; the paper names none


@dataclass(frozen=True)
class PureVQ:
    """Choices of PureVQ-GAN.

    Attributes:
        channels: Of the inner layers; half as many at full resolution.
        blocks: Residual blocks on the latent grid, in each half.
        bottleneck: A learned codebook ("vq") or rounding ("fsq").
        codes: Codewords of the codebook.
        code_dim: Length of a codeword.
        levels: Levels of FSQ's channels.
        form: "integer" folds into integers; "paper" has GroupNorm and does not.
        beta: Weight of the commitment loss.
        adversarial: Weight of the discriminator's judgement; 0 trains none.
        adversarial_from: Fraction of the epochs before the discriminator starts.
        discriminator: Channels of the discriminator's first layer.
    """

    kind: ClassVar[str] = "purevq"
    channels: int = 64
    blocks: int = 2
    bottleneck: Literal["vq", "fsq"] = "vq"
    codes: int = 512
    code_dim: int = 16
    levels: tuple[int, ...] = (8, 8, 8)
    form: Form = "integer"
    beta: float = 0.25
    adversarial: float = 0.1
    adversarial_from: float = 0.1
    discriminator: int = 32

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "levels", tuple(self.levels))
        check_network(self.channels, self.blocks)
        if self.bottleneck not in ("vq", "fsq") or self.form not in ("integer", "paper"):
            raise InputError(
                f"expected bottleneck vq or fsq and form integer or paper, got {self.bottleneck!r} and {self.form!r}"
            )
        if self.codes < 2 or self.code_dim < 1 or self.discriminator < 1:
            raise InputError(
                f"expected codes >= 2, code_dim and discriminator >= 1, got {self.codes}, {self.code_dim} and "
                f"{self.discriminator}"
            )
        if not self.levels or min(self.levels) < 3:
            raise InputError(f"expected 3 or more levels for each channel of fsq, got {list(self.levels)}")
        weights = (self.beta, self.adversarial)
        if not all(0 <= w < math.inf for w in weights) or not 0 <= self.adversarial_from <= 1:
            raise InputError(
                f"expected beta and adversarial >= 0 and adversarial_from from 0 to 1, got {self.beta}, "
                f"{self.adversarial} and {self.adversarial_from}"
            )

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> "PureVQPurifier":
        """Return the purifier, untrained."""
        vectors = batch_size * (image_shape[1] // SHRINK) * (image_shape[2] // SHRINK)
        if self.bottleneck == "vq" and vectors < self.codes:
            raise InputError(
                f"expected a batch of at least as many vectors as the {self.codes} codes, got {vectors}; "
                "use a larger batch_size, or fewer codes"
            )
        return PureVQPurifier(self, vectors)

    def objective(self, purifier: AbstractGuard, lr: float) -> "PureVQObjective":
        """Return the purifier in training."""
        assert isinstance(purifier, PureVQPurifier)
        return PureVQObjective(purifier, lr)


class PureVQPurifier(AbstractPurifier):
    """Encoder, codebook, decoder."""

    stochastic = False
    codewords = True

    def __init__(self, config: PureVQ, vectors: int) -> None:
        super().__init__()
        self.config = config
        if config.bottleneck == "fsq":
            self.bottleneck: AbstractBottleneck = FSQ(config.levels)
        else:
            self.bottleneck = Codebook(config.codes, config.code_dim, beta=config.beta, vectors=vectors)
        size = {"channels": config.channels, "blocks": config.blocks, "latent": self.bottleneck.dim}
        self.encoder = encoder(config.form, **size)
        # a fixed scale for the vectors: without it they and the codebook can shrink together, or run away
        self.scale = nn.BatchNorm2d(self.bottleneck.dim, affine=False) if config.form == "integer" else nn.Identity()
        self.decoder = decoder(config.form, **size)

    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the vectors."""
        return self.scale(self.encoder(images))

    def squeeze(self, latent: Float[Tensor, "n d h w"], draw: Draw, temperature: float) -> Float[Tensor, "n d h w"]:
        """Replace each vector by its nearest codeword."""
        return self.bottleneck.choose(latent, temperature)

    def decode(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Draw the image."""
        return self.decoder(latent)

    def indices(self, images: Shaped[Tensor, "n c h w"]) -> Int64[Tensor, "n h2 w2"]:
        """Return the number of the codeword at each place."""
        return self.bottleneck.indices(self.encode(as_unit(images)))

    def bits_per_image(self, image_shape: tuple[int, ...]) -> float:
        """Return positions x log2(codes): all that the decoder ever learns of an image."""
        return (image_shape[-2] // SHRINK) * (image_shape[-1] // SHRINK) * math.log2(self.bottleneck.codes)

    def not_exportable(self) -> str:
        """Say what does not fold into integers."""
        if self.config.form == "paper":
            return "GroupNorm depends on the statistics of each image and SiLU is not piecewise linear"
        return ""


class Discriminator(nn.Sequential):
    """PatchGAN: three strided layers under spectral normalisation, one logit per patch."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for i in range(3):
            outputs = channels * 2**i
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
            inputs = outputs
        super().__init__(*layers, spectral_norm(nn.Conv2d(inputs, 1, 1)))


class PureVQObjective(AbstractObjective):
    """Generator against discriminator."""

    def __init__(self, purifier: PureVQPurifier, lr: float) -> None:
        super().__init__()
        self.purifier: PureVQPurifier = purifier
        self.config = purifier.config
        self.optimizers = [torch.optim.Adam(purifier.parameters(), lr=lr, betas=BETAS)]
        if self.config.adversarial:
            self.discriminator = Discriminator(self.config.discriminator)
            self.optimizers.append(torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=BETAS))

    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Step the generator, then the discriminator on what it has drawn."""
        real = as_unit(images)
        words, commitment = self.purifier.bottleneck.learn(self.purifier.encode(real))
        drawn = self.purifier.decode(words)
        parts = {"reconstruction": F.mse_loss(drawn, real), "commitment": commitment}
        adversarial = bool(self.config.adversarial) and done >= self.config.adversarial_from
        if adversarial:
            self.discriminator.requires_grad_(False)
            parts["adversarial"] = self.config.adversarial * F.softplus(-self.discriminator(drawn)).mean()
            self.discriminator.requires_grad_(True)
        loss = torch.stack(list(parts.values())).sum()
        values = {"loss": float(loss.detach())} | {name: float(part.detach()) for name, part in parts.items()}
        if descend(loss, self.optimizers[0]) and adversarial:
            values["discriminator"] = self._judge(real, drawn.detach())
            if not math.isfinite(values["discriminator"]):
                values["loss"] = values["discriminator"]
        return values

    def _judge(self, real: Tensor, drawn: Tensor) -> float:
        loss = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(drawn)).mean()
        descend(loss, self.optimizers[1])
        return float(loss.detach())
