"""What `edgeq purify` shows: tables, and progress as a spinner on a terminal or as lines in a log."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.cli.talk import Talk

if TYPE_CHECKING:
    from edgeq.purifiers import Progress
    from edgeq.purifiers.apply import Applied


def show_fidelity(talk: Talk, folder: Path, measured: dict[str, float | int]) -> None:
    """Show the measures of clean images."""
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "codes_used": "codes used", "perplexity": "perplexity"}
    names |= {"sigma": "noise", "bits_per_image": "bits per image, at most"}
    there = {name: words for name, words in names.items() if name in measured}
    cells = [f"{measured[name]:.4g}" for name in there]
    talk.table(f"{folder}: clean images", tuple(there.values()), [cells])


def show_answers(talk: Talk, folder: Path, measured: dict[str, float | int]) -> None:
    """Show the accuracies of what names images itself."""
    there = [name for name in measured if name.endswith("accuracy")]
    cells = [f"{100 * measured[name]:.2f} %" for name in there]
    used = [name for name in ("codes_used", "perplexity") if name in measured]
    words = [name.replace("_", " ") for name in (*there, *used)]
    talk.table(f"{folder}: clean images", words, [[*cells, *(f"{measured[name]:.4g}" for name in used)]])


def show_attacks(talk: Talk, body: dict[str, Any], name: str) -> None:
    """Show what is right under each way of attack, and the minimum."""
    ways = list(body["rows"][0]["ways"])
    beside = [column for column in ("bare", "published") if column in body["rows"][0]]
    rows = []
    for row in body["rows"]:
        low, high = (100 * row["robust"][end] for end in ("low", "high"))
        cells = [f"{100 * row[column]['rate']:.1f}" for column in beside]
        cells += [f"{100 * row['ways'][way]['rate']:.1f}" for way in ways]
        least = f"{100 * row['robust']['rate']:.1f} [{low:.1f}, {high:.1f}]"
        rows.append((f"{row['eps']}/255", *cells, least))
    title = f"{name}: right under attack, % of {body['images']} images; clean {100 * body['clean']['rate']:.1f}"
    talk.table(title, ("eps", *beside, *ways, "minimum"), rows)
    for warning in body["warnings"]:
        talk.note(f"warning: {warning}")


def show_purified(talk: Talk, title: str, rows: list[dict[str, Any]]) -> None:
    """Show accuracies without and with the purifier."""
    shares = [[f"{100 * row[name]:.2f} %" for name in ("accuracy", "purified_accuracy")] for row in rows]
    cells = [(str(row["bits"]), *share, str(row["total"])) for row, share in zip(rows, shares, strict=True)]
    talk.table(title, ("bits", "bare", "purified", "images"), cells)


def show_latent(talk: Talk, body: dict[str, Any]) -> None:
    """Show what autoencoders draw under attack; "a on b" is the attack made on a, tried on b."""
    pairs = dict.fromkeys((row["model"], row["made_on"]) for row in body["rows"])
    names = {pair: pair[0] if pair[0] == pair[1] else f"{pair[1]} on {pair[0]}" for pair in pairs}
    found = {(row["eps"], row["way"], row["model"], row["made_on"]): row for row in body["rows"]}
    rows = [("0", "none", *_drawn([body["clean"][model] if model == made_on else {} for model, made_on in pairs]))]
    for eps, way in dict.fromkeys((row["eps"], row["way"]) for row in body["rows"]):
        rows.append((f"{eps}/255", way, *_drawn([found[eps, way, *pair] for pair in pairs])))
    for eps in dict.fromkeys(row["eps"] for row in body["worst"]):
        least = {row["model"]: row for row in body["worst"] if row["eps"] == eps}
        rows.append((f"{eps}/255", "worst", *_drawn([least[a] if a == b else {} for a, b in pairs])))
    deep = [name for name in ("lpips", "fid") if name in next(iter(body["clean"].values()))]
    title = f"{body['images']} images redrawn under attack: " + ", ".join(
        ("PSNR, dB (squared error)", *map(str.upper, deep))
    )
    talk.table(title, ("eps", "attack", *names.values()), rows)
    for warning in body["warnings"]:
        talk.note(f"warning: {warning}")


def _drawn(cells: list[dict[str, Any]]) -> list[str]:
    return [f"{cell['psnr']:.2f} ({cell['mse']:.5f})" + _deep(cell) if cell else "" for cell in cells]


def _deep(cell: dict[str, Any]) -> str:
    return "".join(f" {cell[name]:.4g}" for name in ("lpips", "fid") if name in cell)


@contextlib.contextmanager
def progress(talk: Talk) -> "Iterator[Callable[[Progress], None]]":
    """Show a training: where it is, and at the end of an epoch what it reached."""
    with talk.line("starting") as line:

        def show(progress: "Progress") -> None:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
            where = f"epoch {progress.epoch + 1}/{progress.epochs}"
            if progress.fidelity:
                found = progress.fidelity
                good = (
                    f"PSNR {found['psnr']:.2f} dB" if "psnr" in found else f"accuracy {100 * found['accuracy']:.1f} %"
                )
                used = f"  codes {found['codes_used']}" if "codes_used" in found else ""
                line.keep(f"{where}  {losses}  {good}{used}")
            else:
                line.show(f"{where} batch {progress.batch}/{progress.batches}  {losses}")

        yield show


@contextlib.contextmanager
def counting(talk: Talk) -> "Iterator[Callable[[Applied, int], None]]":
    """Show how many files are done."""
    with talk.line("purifying") as line:

        def show(applied: "Applied", total: int) -> None:
            line.show(f"{applied.done + applied.kept + len(applied.bad)} of {total} images")

        yield show
