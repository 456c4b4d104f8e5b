"""Pictures as SVG text: no files, no fonts, and the page's own text colour in light and dark.

Lines and text in INK become `currentColor`; the colours of the widths are close to those of Okabe and Ito, which
people with any colour vision tell apart, on white and on black.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeq.report.collect import Network, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#123456"  # a colour that nothing else uses
COLOURS = {
    32: "#8c8c8c",
    8: "#1f86d1",
    7: "#56B4E9",
    6: "#882255",
    5: "#009E73",
    4: "#E69F00",
    3: "#CC79A7",
    2: "#D55E00",
}
STYLE: Any = {  # Any: matplotlib's settings
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeq",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def curves(network: Network) -> str:
    """Return the accuracy of each width after each epoch; empty without a training."""
    points: dict[int, list[tuple[int, float]]] = {}
    for line in network.metrics:
        for bits, accuracy in line.get("accuracy", {}).items():
            points.setdefault(int(bits), []).append((line["epoch"] + 1, 100 * accuracy))
    if not points:
        return ""
    from matplotlib.ticker import MaxNLocator

    with drawing():
        figure, axes = new_axes(6.4, 3.4)
        ends = []
        for bits, line in sorted(points.items(), reverse=True):
            epochs, values = zip(*line, strict=True)
            axes.plot(
                epochs, values, color=COLOURS[bits], linewidth=1.6, marker="o" if len(line) < 3 else "", markersize=4
            )
            ends.append((float(epochs[-1]), values[-1], f"{bits} bits", COLOURS[bits]))
        label_ends(axes, ends)
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, "Accuracy of each width after each epoch of training")


def pareto(rows: Sequence[Row]) -> str:
    """Return accuracy against size; empty with fewer than two points."""
    points = [(r.size_bytes / 1024, 100 * r.accuracy, r) for r in rows if r.size_bytes and r.accuracy is not None]
    if len(points) < 2:
        return ""
    with drawing():
        figure, axes = new_axes(6.4, 3.4)
        best = [p for p in points if not any(q[0] <= p[0] and q[1] > p[1] for q in points)]  # nothing beats it in both
        line = sorted(point[:2] for point in best)
        axes.plot(*zip(*line, strict=True), color=INK, linewidth=0.8, alpha=0.35, zorder=1)
        low, high = min(p[1] for p in points), max(p[1] for p in points)
        margin = max(0.25 * (high - low), 1.0)
        above: tuple[float, float] | None = None  # the last point whose name stands above it
        for size, accuracy, row in sorted(points, key=lambda p: p[:2]):
            axes.scatter([size], [accuracy], s=52, color=COLOURS[row.bits], zorder=2)
            crowded = above is not None and size < 1.4 * above[0] and abs(accuracy - above[1]) < 0.15 * (high - low)
            above = above if crowded else (size, accuracy)
            label = "float32" if row.bits == 32 else f"{row.bits} bits"
            axes.annotate(label, (size, accuracy), (0, -18 if crowded else 9), textcoords="offset points", ha="center")
        axes.set_ylim(low - margin, min(high + margin, 101 + 0.2 * margin))
        axes.set_xscale("log")
        sizes = sorted({size for size, _, _ in points})
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        _plain_ticks(axes, sizes)
        axes.set_xlabel("size of the model, KiB (logarithmic)")
        axes.set_ylabel("test accuracy, %")
        return to_svg(figure, "Test accuracy against the size of the model")


def latencies(rows: Sequence[Row]) -> str:
    """Return the median latency of each width with its interval; empty without a benchmark."""
    measured = [(row.bits, row.latency) for row in rows if row.latency is not None]
    if not measured:
        return ""
    with drawing():
        figure, axes = new_axes(12.4, 0.9 + 0.34 * len(measured))
        for place, (bits, latency) in enumerate(measured):
            p50 = latency["p50_ms"]
            axes.barh(place, p50, height=0.55, color=COLOURS[bits])
            error = [[p50 - latency["low_ms"]], [latency["high_ms"] - p50]]
            axes.errorbar(p50, place, xerr=error, color=INK, linewidth=1, capsize=3)
            axes.annotate(f"{p50:.3f}", (latency["high_ms"], place), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(measured)), [f"{bits} bits" for bits, _ in measured])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(latency["high_ms"] for _, latency in measured))
        axes.set_xlabel("median latency, ms, with its interval")
        return to_svg(figure, "Median latency of each width")


def drawing():
    """Return matplotlib's settings for the block."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def new_axes(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a figure with one pair of axes, and a faint grid behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def label_ends(axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Name each line at its end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.062 * (high - low)
    placed: list[float] = []
    ends = sorted(ends, key=lambda end: end[1])
    for _, y, _, _ in ends:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    ceiling = high
    for index in reversed(range(len(placed))):  # from the top down: inside the picture, and still apart
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    for at, (x, _, text, colour) in zip(placed, ends, strict=True):
        axes.annotate(
            text, (x, at), (6, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False
        )


def _plain_ticks(axes: "Axes", sizes: list[float]) -> None:
    """Put a tick at each size that is not too near the one before."""
    kept: list[float] = []
    for size in sizes:
        if not kept or size > 1.12 * kept[-1]:
            kept.append(size)
    axes.set_xticks(kept, [f"{size:.0f}" if size >= 10 else f"{size:.1f}" for size in kept])
    axes.set_xticks([], minor=True)


def to_svg(figure: "Figure", title: str) -> str:
    """Return the figure as SVG text that follows the page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' class="plot" role="img"', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(">", f"><title>{title}</title>", 1)
