"""The part of the page about a purifier or a shield: fidelity, training, pictures, what it withstands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq import runs
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json
from edgeq.purifiers.config import plain
from edgeq.purifiers.folders import SAMPLES, read_info
from edgeq.report.attacks import picture
from edgeq.report.collect import document, metrics_of
from edgeq.report.figures import INK, drawing, label_ends, new_axes, to_svg

Json = Mapping[str, Any]  # Any: JSON
EVALUATION = "purify.json"
GROUPS: dict[str, tuple[str, ...]] = {  # what is drawn together, and what it is called
    "PSNR, dB": ("psnr",),
    "SSIM": ("ssim",),
    "codewords": ("codes_used", "perplexity"),
    "accuracy": ("accuracy", "class_accuracy", "shield_accuracy", "caption_accuracy"),
}
WORDS: dict[str, str] = {"codes_used": "in use", "psnr": "PSNR", "ssim": "SSIM"}
COLOURS = ("#1f86d1", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#8c8c8c")
CARDS = {
    "psnr": ("{:.1f} dB", "PSNR on clean images"),
    "ssim": ("{:.3f}", "SSIM on clean images"),
    "codes_used": ("{:.0f}", "codewords in use"),
    "perplexity": ("{:.0f}", "perplexity of the codewords"),
    "bits_per_image": ("{:.0f}", "bits per image, at most"),
    "sigma": ("{:.3g}", "noise, in standard deviations of the latent"),
    "accuracy": ("{:.3f}", "accuracy on clean images"),
}


@dataclass(frozen=True)
class Purifier:
    """A run of `edgeq purify train`, as its folder describes it.

    Attributes:
        label: Its folder.
        kind: Kind of purifier.
        data: What it was trained on.
        training: All choices.
        metrics: A line for each epoch.
        measured: `results/purify.json`, or nothing.
        pictures: Clean images and what it makes of them, or nothing.
    """

    label: str
    kind: str
    data: str
    training: Json
    metrics: tuple[Json, ...]
    measured: Json = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


def is_purifier(folder: Path) -> bool:
    """Return whether a folder is a run of `edgeq purify train`."""
    try:
        body = read_json(folder / runs.CONFIG)
    except InputError:
        return False
    return isinstance(body, dict) and "purifier" in body


def collect_purifier(folder: Path) -> Purifier:
    """Read a run folder."""
    config = read_info(folder).config
    kept, drawn = folder / runs.RESULTS / EVALUATION, folder / runs.RESULTS / SAMPLES
    return Purifier(
        str(folder),
        config.method.kind,
        config.data,
        plain(config),
        metrics_of(folder),
        document(kept) if kept.exists() else {},
        load_tensors(drawn) if drawn.exists() else {},
    )


def purifier_section(purifier: Purifier) -> str:
    """Return the section."""
    last = purifier.metrics[-1].get("fidelity", {}) if purifier.metrics else {}
    found = purifier.measured.get("fidelity") or purifier.measured.get("clean") or last
    cards = "".join(
        f'<div class="card"><b>{form.format(found[name])}</b><span>{words}</span></div>'
        for name, (form, words) in CARDS.items()
        if name in found
    )
    figures = "".join(f"<figure><h3>{name}</h3>{svg}</figure>" for name, svg in _figures(purifier.metrics) if svg)
    return (
        f"<section><h2>{escape(purifier.kind)} on {escape(purifier.data)}</h2>"
        f'<p class="soft">{escape(purifier.label)}</p><div class="cards">{cards}</div>'
        f'<div class="figures">{figures}</div>{_strips(purifier.pictures)}{_attacks(purifier.measured)}'
        f"{_setup(purifier.training)}</section>"
    )


def _figures(metrics: Sequence[Json]) -> list[tuple[str, str]]:
    found = []
    for title, names in GROUPS.items():
        lines = {str(WORDS.get(n, n.replace("_", " "))): _course(metrics, "fidelity", n) for n in names}
        found.append((title, _curves(title, lines)))
    losses = dict.fromkeys(str(name) for line in metrics for name in line.get("losses", {}))
    found.append(("Losses", _curves("loss", {name: _course(metrics, "losses", name) for name in losses})))
    return found


def _course(metrics: Sequence[Json], part: str, name: str) -> list[tuple[int, float]]:
    found = [(line["epoch"] + 1, line.get(part, {}).get(name)) for line in metrics]
    return [(epoch, float(value)) for epoch, value in found if value is not None]


def _curves(title: str, lines: Mapping[str, list[tuple[int, float]]]) -> str:
    """Return lines over the epochs; empty without any."""
    there = {name: points for name, points in lines.items() if points}
    if not there:
        return ""
    from matplotlib.ticker import MaxNLocator

    with drawing():
        figure, axes = new_axes(6.4, 3.0)
        ends = []
        for number, (name, points) in enumerate(there.items()):
            epochs, values = zip(*points, strict=True)
            colour = COLOURS[number % len(COLOURS)] if len(there) > 1 else INK
            axes.plot(epochs, values, color=colour, linewidth=1.6, marker="o" if len(points) < 3 else "", markersize=4)
            ends.append((float(epochs[-1]), values[-1], name, colour))
        if len(there) > 1:
            label_ends(axes, ends)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, f"{title} after each epoch of training")


def _strips(pictures: Mapping[str, Tensor]) -> str:
    if not {"images", "purified"} <= set(pictures):
        return ""
    rows = "".join(
        f"<tr><td class='text'>{name}</td>{''.join(f'<td>{picture(image)}</td>' for image in pictures[key])}</tr>"
        for key, name in (("images", "clean"), ("purified", "purified"))
    )
    return f"<h2>What it makes of images</h2><div class='wide'><table>{rows}</table></div>"


def _attacks(measured: Json) -> str:
    """Return a table for each classifier and width; for a shield there is one."""
    attacks = measured.get("attacks", [])
    parts = []
    for body in [attacks] if isinstance(attacks, Mapping) else attacks:
        ways = list(dict.fromkeys(way for row in body["rows"] for way in row["ways"]))
        beside = [name for name in ("bare", "published") if name in body["rows"][0]]
        head = "".join(f"<th>{escape(name)}</th>" for name in ("eps", *beside, *ways, "minimum"))
        lines = []
        for row in body["rows"]:
            cells = [row[name]["rate"] for name in beside] + [row["ways"].get(w, {}).get("rate") for w in ways]
            shown = "".join(f"<td>{'&ndash;' if c is None else f'{100 * c:.1f}'}</td>" for c in cells)
            low, high = (100 * row["robust"][end] for end in ("low", "high"))
            least = f"<b>{100 * row['robust']['rate']:.1f}</b> [{low:.0f}, {high:.0f}]"
            lines.append(f"<tr><td>{row['eps']}/255</td>{shown}<td>{least}</td></tr>")
        behind = f" {escape(str(body['classifier']))} at {body['bits']} bits" if "bits" in body else ""
        doubts = "".join(f"<p class='bad'>{escape(text)}</p>" for text in body["warnings"])
        parts.append(
            f"<h2>Under attack{behind}</h2><p class='soft'>Named rightly, % of {body['images']} images; "
            f"{100 * body['clean']['rate']:.1f} without an attack. The minimum counts an image only if no way won.</p>"
            f"<div class='wide'><table><tr>{head}</tr>{''.join(lines)}</table></div>{doubts}"
        )
    return "".join(parts)


def _setup(training: Json) -> str:
    flat = {**training["method"], **{k: v for k, v in training.items() if k != "method"}}
    rows = "".join(
        f"<tr><td>{escape(k)}</td><td class='text'>{escape(str(v))}</td></tr>"
        for k, v in flat.items()
        if not isinstance(v, dict)
    )
    return f"<details><summary>Choices of the training</summary><div class='wide'><table>{rows}</table></div></details>"
