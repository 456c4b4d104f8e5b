"""How a float network sees pixels: x = (pixel / 255 - mean) / std, as torchvision, timm and ONNX files state it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from edgeq.errors import InputError

LARGEST = 1e4  # of a mean, and 1 / of a standard deviation: networks for bytes have 1 / 255, for [0, 1] they have 1


@dataclass(frozen=True)
class Pixels:
    """`x = (pixel / 255 - mean) / std`, one number for all channels or one per channel.

    Networks built by `edgeq` see `(pixel - 128) / 64`, that is `Pixels((128 / 255,), (64 / 255,))`.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Check the numbers."""
        fine = self.mean and self.std and all(abs(mean) <= LARGEST for mean in self.mean)  # NaN is not
        if not fine or not all(1 / LARGEST <= std <= LARGEST for std in self.std):
            raise InputError(
                f"expected means and positive standard deviations of pixels in [0, 1], at most {LARGEST:g} and at "
                f"least {1 / LARGEST:g}, got {self.mean} and {self.std}; give those that the network was trained with"
            )

    def check(self, channels: int) -> None:
        """Refuse numbers that do not belong to images of so many channels."""
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            raise InputError(
                f"expected one mean and standard deviation, or one for each of {channels} channels, got "
                f"{self.mean} and {self.std}; give those that the network was trained with"
            )

    def line(self, channels: int) -> Float[np.ndarray, "2 channels"]:
        """Return gain and shift of x = gain * pixel + shift, for each channel."""
        self.check(channels)
        mean, std = (np.array(numbers, np.float64) for numbers in (self.mean, self.std))
        return np.stack(np.broadcast_arrays(np.full(channels, 1 / 255.0) / std, -mean / std))

    def floats(
        self, images: UInt8[np.ndarray, "batch channels height width"]
    ) -> Float32[np.ndarray, "batch channels height width"]:
        """Return what the float network is given for uint8 images."""
        self.check(images.shape[1])
        mean, std = (np.array(value, np.float32)[:, None, None] for value in (self.mean, self.std))
        return ((images.astype(np.float32) / np.float32(255) - mean) / std).astype(np.float32)


OWN = Pixels((128 / 255,), (64 / 255,))
EXACT = math.ldexp(1.0, -12)  # a quarter of a thousandth: far below a pixel's 1 / 64, above how people round 0.502


def is_own(pixels: Pixels, channels: int) -> bool:
    """Tell whether a network sees pixels as those of `edgeq` do, up to how the numbers were rounded."""
    gain, shift = pixels.line(channels) - OWN.line(channels)
    return bool(np.abs(np.stack([shift, 255 * gain + shift])).max() < EXACT)
