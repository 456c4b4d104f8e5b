"""The convolutional halves of a purifier: images to a grid of latent vectors a quarter as wide, and back.

Two forms. The *integer* form is made of what folds into integer arithmetic: convolution, BatchNorm, ReLU, nearest
upsampling. The *paper* form is that of PureVQ-GAN (arXiv 2509.25792): GroupNorm, whose mean and variance depend on the
image and so cannot be folded, SiLU, and transposed convolutions.
"""

import math
from typing import Literal, no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from edgeq.errors import InputError

Form = Literal["integer", "paper"]
SHRINK = 4  # two stride-2 steps: 32 x 32 pixels become 8 x 8 vectors
SMALLEST = 16  # pixels; SSIM needs 11


class Residual(nn.Module):
    """x + f(x), then the activation."""

    def __init__(self, form: Form, channels: int) -> None:
        super().__init__()
        self.first = convolution(form, channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), _norm(form, channels))
        self.act = _act(form)

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Run the block."""
        return self.act(x + self.second(self.first(x)))


def convolution(form: Form, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution, normalisation, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False)
    return nn.Sequential(conv, _norm(form, outputs), _act(form))


def encoder(form: Form, *, channels: int, blocks: int, latent: int) -> nn.Sequential:
    """Return images (-1...1) -> `latent` channels on a grid of a quarter of the width and height."""
    return nn.Sequential(
        convolution(form, 3, channels // 2, kernel=4, stride=2),
        convolution(form, channels // 2, channels, kernel=4, stride=2),
        *(Residual(form, channels) for _ in range(blocks)),
        nn.Conv2d(channels, latent, 1),
    )


def decoder(form: Form, *, channels: int, blocks: int, latent: int) -> nn.Sequential:
    """Return the way back; the last convolution is linear."""
    return nn.Sequential(
        convolution(form, latent, channels),
        *(Residual(form, channels) for _ in range(blocks)),
        _double(form, channels, channels // 2),
        _double(form, channels // 2, channels // 2),
        nn.Conv2d(channels // 2, 3, 3, 1, 1),
    )


def check_shape(shape: tuple[int, ...], grid: int = SHRINK) -> None:
    """Say why images of this shape cannot be purified by a network whose latents lie on a grid of so many pixels."""
    channels, height, width = shape[-3:]
    if channels != 3 or height % grid or width % grid or min(height, width) < SMALLEST:
        raise InputError(
            f"expected RGB images whose sides are multiples of {grid}, at least {SMALLEST} pixels, got "
            f"{channels} channels of {height} x {width}; resize them"
        )


def check_network(channels: int, blocks: int) -> None:
    """Say what is wrong with the size of a network."""
    if channels < 2 or channels % 2 or blocks < 0:
        raise InputError(f"expected an even number of channels and blocks >= 0, got {channels} and {blocks}")


def _double(form: Form, inputs: int, outputs: int) -> nn.Sequential:
    if form == "paper":
        up = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        return nn.Sequential(up, _norm(form, outputs), _act(form))
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution(form, inputs, outputs))


def _norm(form: Form, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if form == "integer" else nn.GroupNorm(math.gcd(32, channels), channels)


def _act(form: Form) -> nn.Module:
    return nn.ReLU() if form == "integer" else nn.SiLU()
