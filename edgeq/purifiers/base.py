"""What is trained here: purifiers, and shields.

A purifier maps images to images of the same size in [0, 1]. A stochastic one takes what is random from a `Draw`, so
that every result can be made again: nothing reads or moves the global random state. A shield (`shield`) guards the
features inside a model and answers with logits: it is no map of images, and the two have a run folder and a training
in common, not more.

Gradients always exist: the clamp to [0, 1] and the choice of a codeword pass them straight through.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.purifiers.blocks import SHRINK, check_shape


@dataclass(frozen=True)
class Draw:
    """Where the noise of a stochastic purifier comes from.

    Attributes:
        seed: One number or several.
        shared: The same noise for every image (a device with a fixed seed), or fresh noise for each.
    """

    seed: int | tuple[int, ...] = 0
    shared: bool = True

    def normal(self, like: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return standard normal noise of the shape of `like`; drawn on the CPU, so that devices agree."""
        shape = (1, *like.shape[1:]) if self.shared else tuple(like.shape)
        noise = torch.randn(shape, generator=generator("purifier", repr(self.seed))).to(like)
        return noise.expand_as(like)


FIXED = Draw()


class AbstractGuard(nn.Module, ABC):
    """What `edgeq purify` trains: something that stands between an image and its class."""

    @abstractmethod
    def not_exportable(self) -> str:
        """Return why it cannot run in integers; empty if it can."""


class AbstractAnswering(AbstractGuard):
    """A guard that cannot be had without its model: images to logits of classes."""

    @abstractmethod
    def answers(self, images: Shaped[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n classes"]]:
        """Return the logits of each measure of accuracy; the first is the guard's answer."""

    @abstractmethod
    def chosen(self, images: Shaped[Tensor, "n c h w"]) -> tuple[int, Int64[Tensor, "n h2 w2"] | None]:
        """Return how many codewords there are, and the number of the one at each place; 0 and None without any."""


class AbstractPurifier(AbstractGuard):
    """Images to images.

    Attributes:
        stochastic: Whether the result depends on the draw.
        codewords: Whether the bottleneck chooses among some, which a temperature softens.
        grid: Sides of an image are multiples of so many pixels.
    """

    stochastic: bool
    codewords: bool
    grid: int = SHRINK

    def forward(
        self, images: Shaped[Tensor, "n c h w"], *, draw: Draw = FIXED, temperature: float = 0.0
    ) -> Float[Tensor, "n c h w"]:
        """Purify bytes or floats in [0, 1].

        Args:
            images: What to purify.
            draw: Noise of a stochastic purifier.
            temperature: 0 is the purifier; above it, codewords are chosen softly, for attacks alone.
        """
        check_shape(tuple(images.shape), self.grid)
        raw = self.decode(self.squeeze(self.encode(as_unit(images)), draw, temperature)) / 2 + 0.5
        return raw + (raw.clamp(0.0, 1.0) - raw).detach()

    @abstractmethod
    def encode(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the latent vectors of images in -1...1."""

    @abstractmethod
    def squeeze(self, latent: Float[Tensor, "n d h w"], draw: Draw, temperature: float) -> Float[Tensor, "n d h w"]:
        """Pass the bottleneck."""

    @abstractmethod
    def decode(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Return images, about -1...1."""

    @abstractmethod
    def bits_per_image(self, image_shape: tuple[int, ...]) -> float:
        """Return an upper bound of what the bottleneck can carry."""


def as_unit(images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return bytes or floats in [0, 1] as -1...1."""
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1.0
    if not images.is_floating_point():
        raise InputError(f"expected uint8 images or floats in [0, 1], got {images.dtype}; convert them")
    return images * 2.0 - 1.0


def to_bytes(images: Float[Tensor, "n c h w"]) -> Shaped[Tensor, "n c h w"]:
    """Return images in [0, 1] as bytes."""
    return (images.detach() * 255.0).round().clamp(0, 255).to(torch.uint8)


def sample(draw: Draw, k: int) -> Draw:
    """Return the k-th of the independent draws that a draw stands for; the first is itself."""
    seed = draw.seed if isinstance(draw.seed, tuple) else (draw.seed,)
    return draw if k == 0 else replace(draw, seed=(*seed, k))
