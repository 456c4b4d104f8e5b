"""What a benchmark shows about bit-widths, in one sentence that the measurement decides."""

from collections.abc import Sequence
from dataclasses import dataclass

SAME = 1.05  # medians closer than this are called the same


@dataclass(frozen=True)
class Point:
    """One width of a network in one setting."""

    bits: int
    size_bytes: int
    p50_ms: float
    low_ms: float
    high_ms: float


def verdict(points: Sequence[Point]) -> str:
    """Compare the widths of one network on one engine and thread count; empty where there is only one."""
    if len({point.bits for point in points}) < 2:
        return ""
    most, least = max(points, key=lambda p: p.bits), min(points, key=lambda p: p.bits)
    size = most.size_bytes / least.size_bytes
    slow, fast = max(points, key=lambda p: p.p50_ms), min(points, key=lambda p: p.p50_ms)
    spread = slow.p50_ms / fast.p50_ms
    files = f"going from {most.bits} to {least.bits} bits makes the file {size:.1f} times smaller"
    overlap = slow.low_ms <= fast.high_ms
    if spread < SAME or overlap:
        return (
            f"same int8 kernels: fewer bits buy file size, not latency ({files}; the medians differ by "
            f"{100 * (spread - 1):.1f} %{', within their intervals' if overlap else ''})"
        )
    return (
        f"{files}; latency differs here: {fast.bits} bits are {spread:.2f} times as fast as {slow.bits} bits, beyond "
        "their intervals"
    )
