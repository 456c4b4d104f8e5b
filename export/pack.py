"""Bit-packed weights: b-bit integers in b/8 bytes each, b in 2..8, and back.

A b-bit two's complement number is cut into planes of 4, 2 and 1 bits (8 bits: one plane of 8), low bits first:
5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1. Inside a plane, consecutive numbers fill a byte from its low end. Hence 2, 4 and
8 bits are exactly ONNX's INT2, INT4 and INT8 tensors, and the other widths unpack with byte shifts alone: no plane
straddles a byte, so a runtime needs no integer wider than 8 bits.
"""

import numpy as np
from jaxtyping import Int8, UInt8

from edgeq.errors import InputError


def planes(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes of a b-bit number, lowest plane first: 5 -> (4, 1)."""
    if not 2 <= bits <= 8:
        raise InputError(f"expected bits in 2..8, got {bits}; store other widths unpacked")
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def pack_planes(values: Int8[np.ndarray, "*dims"], bits: int) -> list[UInt8[np.ndarray, " bytes"]]:
    """Return the packed bytes of each plane; the last byte of a plane is filled up with zero bits.

    Raises:
        InputError: A value does not fit into `bits` bits.
    """
    widths = planes(bits)
    flat = values.reshape(-1)
    if flat.size and not -(1 << (bits - 1)) <= int(flat.min()) <= int(flat.max()) < 1 << (bits - 1):
        raise InputError(
            f"expected {bits}-bit values in {-(1 << (bits - 1))}..{(1 << (bits - 1)) - 1}, "
            f"got {flat.min()}..{flat.max()}; pack them with more bits"
        )
    unsigned = flat.view(np.uint8)
    packed, offset = [], 0
    for width in widths:
        per_byte = 8 // width
        part = (unsigned >> offset) & ((1 << width) - 1)
        rows = np.pad(part, (0, -len(part) % per_byte)).reshape(-1, per_byte)
        packed.append(np.bitwise_or.reduce(rows << (np.arange(per_byte, dtype=np.uint8) * width), axis=1))
        offset += width
    return packed


def pack(values: Int8[np.ndarray, "*dims"], bits: int) -> UInt8[np.ndarray, " bytes"]:
    """Return the planes of `values` one after the other."""
    return np.concatenate(pack_planes(values, bits))


def packed_size(count: int, bits: int) -> int:
    """Return the number of bytes that `count` packed values take."""
    return sum(-(-count * width // 8) for width in planes(bits))


def unpack(data: UInt8[np.ndarray, " bytes"], bits: int, count: int) -> Int8[np.ndarray, " count"]:
    """Return the `count` values that `pack` turned into `data`.

    Raises:
        InputError: `data` has not the length of `count` packed values.
    """
    if len(data) != packed_size(count, bits):
        raise InputError(
            f"expected {packed_size(count, bits)} bytes for {count} values of {bits} bits, "
            f"got {len(data)}; the data are damaged or of another width"
        )
    unsigned, start, offset = np.zeros(count, np.uint8), 0, 0
    for width in planes(bits):
        size = -(-count * width // 8)
        shifts = np.arange(8 // width, dtype=np.uint8) * width
        part = (data[start : start + size, None] >> shifts) & ((1 << width) - 1)
        unsigned |= part.reshape(-1)[:count].astype(np.uint8) << offset
        start, offset = start + size, offset + width
    shift = 8 - bits  # move the sign bit to the top, then back down with the sign
    return (unsigned << shift).view(np.int8) >> shift
