"""Bit-widths: which exist, what codes they allow, and how a model is switched between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from edgeq.errors import InputError

FLOAT_BITS = 32  # the identity: no quantization at all
ALL_BITS: tuple[int, ...] = (32, 8, 5, 4, 2)


class Width:
    """How one model runs now, shared by all its units; nothing outside that model reads it.

    Attributes:
        bits: The active width.
        deployed: Train in the deployed arithmetic (frozen, folded BatchNorm) instead of with batch statistics.
        snapped: False leaves the multipliers unsnapped in the deployed arithmetic, to measure what snapping costs.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.deployed = False
        self.snapped = True


@runtime_checkable
class HasWidth(Protocol):
    """Anything with a switchable width: what `edgeq.multibit` returns."""

    bits: tuple[int, ...]
    width: Width


def check_bits(bits: tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths sorted from high to low, or say what is wrong with them."""
    wrong = [b for b in bits if b != FLOAT_BITS and not 2 <= b <= 8]
    if wrong or not bits:
        raise InputError(f"expected bit-widths from 2 to 8, or 32 for float, got {list(bits)}; for example 32 8 5 4 2")
    if len(set(bits)) != len(bits):
        raise InputError(f"expected each bit-width once, got {list(bits)}; drop the repeated ones")
    return tuple(sorted(bits, reverse=True))


@contextmanager
def at_bits(model: HasWidth, bits: int) -> Iterator[None]:
    """Run `model` at one of its widths inside the block, then put the former width back."""
    if bits not in model.bits:
        raise InputError(
            f"expected one of the model's widths {list(model.bits)}, got {bits}; convert it with that width"
        )
    before = model.width.bits
    model.width.bits = bits
    try:
        yield
    finally:
        model.width.bits = before


def weight_range(bits: int, *, full_range: bool = False) -> tuple[int, int]:
    """Return the weight codes: symmetric -(2^(b-1)-1)...2^(b-1)-1, or down to -2^(b-1) with full_range."""
    hi = 2 ** (bits - 1) - 1
    return (-hi - 1 if full_range else -hi), hi


def activation_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Return the activation codes; none exceeds 127, so one set of codes serves uint8 and int8 engines.

    Unsigned widths use 0...2^b-1, but 0...127 at 8 bits. Signed ones are symmetric, except that 8 bits keep -128,
    where both uint8 with zero point 128 and int8 saturate by themselves.
    """
    if not signed:
        return 0, min(2**bits - 1, 127)
    if bits == 8:
        return -128, 127
    return weight_range(bits)
