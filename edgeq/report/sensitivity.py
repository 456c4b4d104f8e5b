"""The part of the page about which units a width loses its accuracy in: a table per width, and histograms."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from edgeq.report.figures import COLOURS, INK, drawing, new_axes, to_svg

Json = Mapping[str, Any]  # Any: JSON
SHOWN = 6
HEAD = ("unit", "points lost alone", "images", "logits dB", "own dB", "weights dB", "beyond the codes")


def sensitivity_section(document: Json | None) -> str:
    """Return the section; empty without a measurement."""
    if document is None:
        return ""
    reference = "float" if document["reference"] == 32 else f"unrounded {document['reference']}-bit"
    words = (
        f"Each unit was quantized alone, on {document['images']} test images, of which the {reference} network names "
        f"{100 * document['reference_accuracy']:.1f} % rightly. Each width's worst unit is drawn."
    )
    widths = "".join(_width(width, document["images"]) for width in document["widths"])
    return f'<h2>Which units cost accuracy</h2><p class="soft">{words}</p>{widths}'


def _width(width: Json, images: int) -> str:
    layers = {layer["name"]: layer for layer in width["layers"]}
    order = [layers[name] for name in width["worst_first"]]
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    lines = "".join(f"<tr>{_cells(layer, images)}</tr>" for layer in order[:SHOWN])
    return (
        f"<h3>{width['bits']} bits: {100 * width['accuracy']:.1f} %</h3>"
        f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'
        f'<div class="figures">{_histograms(order[0], width["bits"])}</div>'
    )


def _cells(layer: Json, images: int) -> str:
    lost, gained = layer["alone"]["lost"], layer["alone"]["gained"]
    cells = (
        escape(layer["name"]),
        f"{100 * (lost - gained) / images:.1f}",
        f"&minus;{lost} +{gained}",
        f"{layer['logits_db']:.1f}",
        f"{layer['own_db']:.1f}",
        "&ndash;" if layer["weight_db"] is None else f"{layer['weight_db']:.1f}",
        "&ndash;" if layer["saturated"] is None else f"{100 * layer['saturated']:.1f} %",
    )
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _histograms(layer: Json, bits: int) -> str:
    drawn = []
    if layer["codes"] is not None:
        drawn.append((f"{layer['name']}: codes written", _codes(layer["codes"], bits)))
    if layer["weights"] is not None:
        drawn.append((f"{layer['name']}: float weights", _weights(layer["weights"], bits)))
    return "".join(f"<figure><h3>{escape(title)}</h3>{svg}</figure>" for title, svg in drawn)


def _codes(codes: Json, bits: int) -> str:
    """Draw how often each code is written, and what the reference would write; the outermost lie beyond the codes."""
    edges = codes["low"] - 0.5 + np.arange(len(codes["counts"]) + 1)
    with drawing():
        figure, axes = new_axes(6.4, 2.6)
        axes.stairs(_shares(codes["counts"]), edges, fill=True, color=COLOURS.get(bits, INK), alpha=0.6, label="here")
        axes.stairs(_shares(codes["float_counts"]), edges, color=INK, linewidth=1, label="unrounded reference")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(0, 100)
        axes.set_xlabel("code; the first and the last are beyond the range")
        axes.set_ylabel("values, %")
        axes.legend(frameon=False, fontsize=8)
        return to_svg(figure, "How often each code is written")


def _weights(bins: Json, bits: int) -> str:
    counts = bins["counts"]
    with drawing():
        figure, axes = new_axes(6.4, 2.6)
        axes.stairs(
            counts, np.linspace(-bins["top"], bins["top"], len(counts) + 1), fill=True, color=COLOURS.get(bits, INK)
        )
        axes.set_xlabel("weight")
        axes.set_ylabel("how many")
        return to_svg(figure, "Histogram of the float weights")


def _shares(counts: list[int]) -> np.ndarray:
    return 100 * np.asarray(counts) / max(sum(counts), 1)
