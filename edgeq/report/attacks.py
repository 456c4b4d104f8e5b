"""The part of the page about attacks: headline bars, matrices, patched images, and the maps of each width."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import torch

from edgeq.report.figures import COLOURS, INK, drawing, new_axes, to_svg
from edgeq.robustness.pictures import Pictures

Json = Mapping[str, Any]  # Any: JSON
KINDS = {
    "white_box": "white-box: made on this width",
    "transfer": "transfer: made on anything else",
    "blind": "transfer from other widths alone",
}
OPACITY = {"white_box": 1.0, "transfer": 0.6, "blind": 0.3}
ZOOM = 3  # screen pixels per pixel of a small picture
SEEN = "Darker is worse. A frame marks patches made on the very width that answers."


def attack_section(document: Json | None, pictures: Pictures | None) -> str:
    """Return the section; empty without an evaluation."""
    if document is None:
        return ""
    parts = [f"<h2>Attacks</h2>{_words(document)}{_warnings(document)}{_table(document)}"]
    parts.append(f'<div class="figures"><figure class="row"><h3>Largest success</h3>{bars(document)}</figure></div>')
    parts.append(_matrices(document))
    if pictures is not None:
        parts += [_strips(pictures), _maps(pictures)]
    parts.append(_alignment(document))
    return "".join(parts)


def bars(document: Json) -> str:
    """Return the largest success against each width, white-box and transfer apart, with its intervals."""
    lines = document["headline"]
    with drawing():
        figure, axes = new_axes(12.4, 0.9 + 0.62 * len(lines))
        for place, line in enumerate(lines):
            colour = COLOURS.get(int(line["name"]), INK) if line["name"].isdecimal() else INK
            for index, kind in enumerate(KINDS):
                top = line["untargeted"].get(kind)
                if top is None:
                    continue
                at = place + 0.27 * (index - 1)
                axes.barh(at, 100 * top["rate"], height=0.24, color=colour, alpha=OPACITY[kind])
                error = [[100 * (top["rate"] - top["low"])], [100 * (top["high"] - top["rate"])]]
                axes.errorbar(100 * top["rate"], at, xerr=error, color=INK, linewidth=1, capsize=2)
                text = f"{100 * top['rate']:.1f}  {kind.replace('_', '-')}"
                axes.annotate(text, (100 * top["high"], at), (6, 0), textcoords="offset points", va="center", size=8)
        axes.set_yticks(range(len(lines)), [_who(line["name"]) for line in lines])
        axes.invert_yaxis()
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("images lost to the strongest attack of its kind, %, with intervals of 95 %")
        return to_svg(figure, "Largest attack success against each width")


def _words(document: Json) -> str:
    plan = document["plan"]
    integer = document["integer"]
    if integer["equal"] is None:
        shipped = "The integer models were not run."
    elif integer["equal"]:
        shipped = (
            "The integer models in ONNX Runtime answered the same images, clean and patched: "
            f"{integer['codes']} logits, none differs."
        )
    else:
        shipped = f"In {integer['mismatches']} of {integer['codes']} logits the integer models DIFFER."
    return (
        f"<p>{document['attacked']} of {document['images']} test images were attacked, those that some width names "
        f"rightly, by {escape(', '.join(plan['attacks']))} with patches of {_list(plan['sizes'])} pixels a side, made "
        f"on {escape(', '.join(plan['surrogates']))}. Success is counted among the images that a width names rightly "
        f"without a patch. {shipped}</p>"
    )


def _warnings(document: Json) -> str:
    found = document["warnings"]
    if not found:
        return '<p class="good">No reason to distrust these numbers was found.</p>'
    lines = "".join(f"<li>{escape(text)}</li>" for text in found)
    opened = " open" if len(found) < 6 else ""
    return f'<details{opened}><summary class="bad">{len(found)} reasons for doubt</summary><ul>{lines}</ul></details>'


def _table(document: Json) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("bits", "clean", *KINDS.values(), "lost to any patch", "targeted"))
    lines = []
    for line in document["headline"]:
        tops = [line["untargeted"].get(kind) for kind in KINDS]
        worst = max((top["worst"]["rate"] for top in tops if top and "worst" in top), default=None)
        aimed = max((top["rate"] for top in line["targeted"].values()), default=None)
        cells = [
            _who(line["name"]),
            _percent(line["clean"]["rate"]),
            *map(_top, tops),
            _percent(worst),
            _percent(aimed),
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _top(top: Json | None) -> str:
    if top is None:
        return "&ndash;"
    made = f"{top['attack']} {top['size']}&times;{top['size']} on {top['surrogate']}"
    return (
        f"{_percent(top['rate'])} <span class='soft'>[{100 * top['low']:.0f}, {100 * top['high']:.0f}]<br>{made}</span>"
    )


def _matrices(document: Json) -> str:
    groups: dict[tuple[str, int, int | None], list[Json]] = {}
    for cell in document["cells"]:
        if not cell["probe"]:
            groups.setdefault((cell["attack"], cell["size"], cell["towards"]), []).append(cell)
    tables = "".join(_heat(*key, rows) for key, rows in groups.items())
    return f'<h2>Who fools whom</h2><p class="soft">{SEEN}</p><div class="heats">{tables}</div>'


def _heat(attack: str, size: int, towards: int | None, rows: Sequence[Json]) -> str:
    names = [result["name"] for result in rows[0]["results"]]
    aim = "" if towards is None else f", towards class {towards} (targeted success in brackets)"
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for row in rows:
        cells = "".join(_heat_cell(result, result["name"] == row["surrogate"]) for result in row["results"])
        lines.append(f"<tr><td>{escape(row['surrogate'])}</td>{cells}</tr>")
    return (
        f"<figure><h3>{escape(attack)} {size}&times;{size}{aim}</h3><table class='heat'><tr><th>made on</th>{head}</tr>"
        f"{''.join(lines)}</table></figure>"
    )


def _heat_cell(result: Json, own: bool) -> str:
    rate = result["untargeted"]["rate"]
    text = f"{100 * rate:.0f}"
    if result["targeted"] is not None:
        text += f" <small>({100 * result['targeted']['rate']:.0f})</small>"
    low, high = (100 * result["untargeted"][side] for side in ("low", "high"))
    frame = " own" if own else ""
    return (
        f'<td class="cell{frame}" style="background: rgba(213, 94, 0, {0.75 * rate:.3f})" '
        f'title="{low:.0f} to {high:.0f} %">{text}</td>'
    )


def _strips(pictures: Pictures) -> str:
    captions, tensors = pictures.captions, pictures.tensors
    low = str(captions["bits"][-1])
    rows = [("without a patch", tensors["clean"], captions["clean"])]
    rows += [(strip["name"], tensors[strip["tensor"]], strip["named"]) for strip in captions["strips"]]
    lines = []
    for name, images, named in rows:
        cells = "".join(
            f"<td>{picture(image)}<br><small class='{'good' if said == true else 'bad'}'>{escape(said)}</small></td>"
            for image, said, true in zip(images, named[low], captions["true"], strict=True)
        )
        lines.append(f"<tr><td class='text'>{escape(name)}</td>{cells}</tr>")
    return (
        f"<h2>Patched images</h2><p class='soft'>Below each image, what the network names at {low} bits.</p>"
        f"<div class='wide'><table>{''.join(lines)}</table></div>"
    )


def _maps(pictures: Pictures) -> str:
    if "gradient" not in pictures.tensors:
        return ""
    drawn = "".join(
        f'<figure class="row">{maps(pictures, number)}</figure>'
        for number in range(pictures.tensors["gradient"].shape[1])
    )
    return (
        "<h2>What each width looks at</h2><p class='soft'>The gradient of the loss with respect to the image: its "
        "magnitude, its Sobel edges, and the orientations in each cell.</p>"
        f'<div class="figures">{drawn}</div>'
    )


def maps(pictures: Pictures, number: int) -> str:
    """Return magnitude, edges and orientations of one image's gradient at each width."""
    from matplotlib.figure import Figure

    tensors, bits = pictures.tensors, pictures.captions["bits"]
    with drawing():
        figure = Figure(figsize=(2.0 * len(bits) + 1.0, 6.2), layout="constrained")
        axes = figure.subplots(3, len(bits), squeeze=False)
        for column, b in enumerate(bits):
            for row, name in enumerate(("gradient", "sobel")):
                axes[row, column].imshow(tensors[name][column, number].numpy(), cmap="magma", interpolation="nearest")
            _glyphs(axes[2, column], tensors["hog"][column, number].numpy())
            axes[0, column].set_title(f"{b} bits")
        for row, name in enumerate(("magnitude", "Sobel edges", "orientations")):
            axes[row, 0].set_ylabel(name)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        return to_svg(figure, "Input gradient of each width: magnitude, edges, orientations")


def _glyphs(axis: Any, cells: np.ndarray) -> None:  # Any: matplotlib's Axes, loaded when it draws
    """Draw each cell's histogram as lines across the gradient, along the edge, as long as the bin is strong."""
    rows, columns, bins = cells.shape
    angle = np.pi * (np.arange(bins) + 0.5) / bins + np.pi / 2
    reach = 0.5 * cells / max(float(cells.max()), 1e-12)
    row, column = (index[..., None] for index in np.mgrid[:rows, :columns])
    x, y = reach * np.cos(angle), reach * np.sin(angle)
    gap = np.full(cells.size, np.nan)  # lifts the pen between two lines
    xs, ys = (np.stack([(at - d).ravel(), (at + d).ravel(), gap], 1).ravel() for at, d in ((column, x), (row, y)))
    axis.plot(xs, ys, color=INK, linewidth=1.2)
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_aspect("equal")


def _alignment(document: Json) -> str:
    rows = document.get("perceptual", ())
    if not rows:
        return ""
    names = {"cosine": "cosine", "edge_iou": "edge IoU", "hog": "HOG cosine", "hog_centred": "centred HOG"}
    head = "<th>widths</th><th class='left'>of</th>" + "".join(f"<th>{n}</th><th>null</th>" for n in names.values())
    lines = []
    for row in rows:
        cells = "".join(f"<td>{row[m]['similarity']:.2f}</td><td class='soft'>{row[m]['null']:.2f}</td>" for m in names)
        where = escape(str(row["where"]))
        lines.append(f"<tr><td>{row['first']} and {row['second']}</td><td class='text'>{where}</td>{cells}</tr>")
    return (
        "<h2>How alike the widths look</h2><p class='soft'>On patched images. The null is the same measure between "
        "different images: only what lies above it says something.</p>"
        f"<div class='wide'><table><tr>{head}</tr>{''.join(lines)}</table></div>"
    )


def picture(image: torch.Tensor) -> str:
    """Return a small image as part of the page, as SVG, which may hold a picture but point to none."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(out, format="PNG")
    height, width = image.shape[1:]
    zoom = max(1, ZOOM * 32 // max(height, width))
    data = base64.b64encode(out.getvalue()).decode()
    return (
        f'<svg class="pixels" role="img" width="{zoom * width}" height="{zoom * height}">'
        f'<image width="100%" height="100%" href="data:image/png;base64,{data}"/></svg>'
    )


def _who(name: str) -> str:
    return f"{name} bits" if name.isdecimal() else escape(name)


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{100 * value:.1f} %"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
