"""Short dyadic multipliers: requantization that every engine computes alike.

A layer's real multiplier M turns accumulators into codes: code = clamp(round(M * acc), lo, hi). We write M as
m * 2^-n with integers m and n, rounded half to even. Let Q = max(hi, -lo) + 1/2: an accumulator with
|acc| * m >= Q * 2^n saturates whatever the rounding does, because rounding in float32 is monotone. For all others
m * |acc| < Q * 2^n, so choosing

    n = max { n : Q * 2^n <= 2^24 }                (17 for 0...127, 16 for -128...127, 19 / 20 / 22 for 5 / 4 / 2 bits)

makes the product m * acc an integer below 2^24, which float32 holds exactly. Hence the integer rule (clamp, int32
multiply, shift) and the float32 rule of the engines (convert, multiply, round half to even, clamp) give the same code
for *every* accumulator: `requant_is_exact` is that one inequality. n does not depend on M; only m does.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

FLOAT32_EXACT = 1 << 24  # every integer up to here is a float32


@dataclass(frozen=True)
class Requant:
    """Per-channel requantization `clamp(half_even(acc * m / 2^n), lo, hi)`.

    Attributes:
        m: Integer multipliers, one per channel (a single one for poolings).
        n: The common right shift.
        lo: Smallest code.
        hi: Largest code.
    """

    m: Int32[np.ndarray, " channels"]
    n: int
    lo: int
    hi: int

    def __post_init__(self) -> None:
        """Check the ranges that every executor relies on."""
        if not 0 <= self.n <= 30:
            raise ValueError(f"expected a shift in 0..30, got {self.n}; rescale the multiplier")
        if self.m.size and (int(self.m.min()) < 1 or int(self.m.max()) >= FLOAT32_EXACT):
            raise ValueError(f"expected multipliers in 1..2^24-1, got {self.m.min()}..{self.m.max()}; snap them first")
        if not -128 <= self.lo < self.hi <= 255:
            raise ValueError(f"expected a code range within -128..255, got {self.lo}..{self.hi}")


def shift_for(lo: int, hi: int) -> int:
    """Return the largest shift n with (max(hi, -lo) + 1/2) * 2^n <= 2^24."""
    reach2 = 2 * max(hi, -lo) + 1  # twice Q, an integer
    n = 0
    while reach2 << (n + 1) <= 2 * FLOAT32_EXACT:
        n += 1
    return n


def add_shift(ratio_a: float, ratio_b: float) -> int:
    """Return the common shift of an addition's two multipliers, at most 14.

    Every partial sum that an engine may form, zero points of 128 included, must stay an integer below 2^24 in units of
    2^-n: (255 + 128) * (ratio_a + ratio_b) + 128 bounds them, in units of the output step.
    """
    n = 14
    while n > 0 and (384 * (ratio_a + ratio_b) + 128) * 2**n > FLOAT32_EXACT:
        n -= 1
    return n


def saturation(m: int, n: int, lo: int, hi: int) -> int:
    """Return the smallest |acc| from which the output saturates on both sides: ceil(Q * 2^n / m)."""
    reach2 = 2 * max(hi, -lo) + 1
    return -((-reach2 << n) // (2 * m))


def saturations(rq: Requant) -> Int[np.ndarray, " channels"]:
    """Return `saturation` of every channel."""
    reach2 = 2 * max(rq.hi, -rq.lo) + 1
    return -((-reach2 << rq.n) // (2 * rq.m.astype(np.int64)))


def half_even_shift(value: Int[np.ndarray, "*dims"], n: int) -> Int[np.ndarray, "*dims"]:
    """Return value / 2^n rounded half to even, with integer operations only."""
    if n == 0:
        return value
    floor = value >> n
    rest = value - (floor << n)
    half = 1 << (n - 1)
    return floor + ((rest > half) | ((rest == half) & ((floor & 1) == 1))).astype(value.dtype)


def requantize(
    acc: Int[np.ndarray, "batch channels *space"], rq: Requant
) -> Int32[np.ndarray, "batch channels *space"]:
    """Apply the integer rule: clamp to the non-saturating range, multiply in 32 bits, shift half to even, clamp."""
    axes = (1, -1) + (1,) * (acc.ndim - 2)
    m = rq.m.astype(np.int64)
    limit = saturations(rq).reshape(axes)
    product = np.clip(acc.astype(np.int64), -limit, limit) * m.reshape(axes)
    return np.clip(half_even_shift(product, rq.n), rq.lo, rq.hi).astype(np.int32)


def requant_is_exact(rq: Requant, reach: Int[np.ndarray, " channels"]) -> np.ndarray:
    """Tell per channel whether float32 execution provably equals the integer rule.

    Args:
        rq: The requantization.
        reach: Largest |acc| that the layer can produce, per channel.

    Returns:
        Boolean array: m * |acc| <= 2^24 for every reachable accumulator that does not saturate.
    """
    unsaturated = saturations(rq) - 1
    return rq.m.astype(np.int64) * np.minimum(unsaturated, reach.astype(np.int64)) <= FLOAT32_EXACT
