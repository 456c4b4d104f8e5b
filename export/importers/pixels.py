"""The integer layer that shows an imported network its pixels.

An imported network was made for floats x = (pixel / 255 - mean) / std, which its first quantizer turns into codes. A
pixel has 256 values, so that is a table per channel. Where the table is pixel - 128 nothing is needed; else a 1x1
depthwise convolution `half_even((w * (pixel - 128) + bias) * m / 2^n)` is fitted to it, trying every 8-bit w, and the
entries that differ are counted.
"""

import numpy as np
from jaxtyping import Int32

from edgeq.pixels import Pixels

from ..graph import INPUT_ZERO
from ..multiplier import Requant, requantize, shift_for


def table(pixels: Pixels, channels: int, scale: float, limits: tuple[int, int]) -> Int32[np.ndarray, "channels 256"]:
    """Return the code of every pixel value, as the first quantizer gives it."""
    every = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None, :, None], (1, channels, 256, 1))
    codes = np.rint(pixels.floats(np.ascontiguousarray(every))[0, :, :, 0] / np.float32(scale))
    return np.clip(codes, *limits).astype(np.int32)


def fit(
    codes: Int32[np.ndarray, "channels 256"], limits: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, Requant, int]:
    """Return weights, biases and multipliers of the convolution, and the number of table entries that differ."""
    n = shift_for(*limits)
    chosen = [_fit_channel(channel, n, limits) for channel in codes]
    weight, bias, m = (np.array(values) for values in zip(*(best[1:] for best in chosen), strict=True))
    requant = Requant(m.astype(np.int32), n, *limits)
    return weight.astype(np.int8).reshape(-1, 1, 1, 1), bias.astype(np.int32), requant, sum(best[0] for best in chosen)


def _fit_channel(codes: np.ndarray, n: int, limits: tuple[int, int]) -> tuple[int, int, int, int]:
    centred = np.arange(256) - INPUT_ZERO
    inside = (codes > limits[0]) & (codes < limits[1])
    if inside.sum() < 2:  # a step: its two sides are all there is
        inside |= np.append(codes[1:] != codes[:-1], False) | np.insert(codes[1:] != codes[:-1], 0, False)
    if inside.sum() < 2:
        inside = np.ones(256, bool)
    slope, offset = np.polyfit(centred[inside], codes[inside], 1)
    slope = max(float(slope), 2.0**-n)
    w = np.arange(1, 128).repeat(5)
    m = np.clip(np.rint(slope / w * 2**n), 1, (1 << 24) - 1).astype(np.int32)
    bias = np.rint(offset * 2**n / m).astype(np.int64) + np.tile(np.arange(-2, 3), 127)
    acc = w[None, :, None] * centred + bias[None, :, None]
    wrong = (requantize(acc, Requant(m, n, *limits))[0] != codes).sum(1)
    best = int(np.argmin(wrong))
    return int(wrong[best]), int(w[best]), int(bias[best]), int(m[best])
