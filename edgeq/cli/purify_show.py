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
    names |= {"bits_per_image": "bits per image, at most"}
    there = {name: words for name, words in names.items() if name in measured}
    cells = [f"{measured[name]:.4g}" for name in there]
    talk.table(f"{folder}: clean images", tuple(there.values()), [cells])


def show_attacks(talk: Talk, body: dict[str, Any]) -> None:
    """Show what is right under each way of attack, and the minimum."""
    ways = list(body["rows"][0]["ways"])
    rows = []
    for row in body["rows"]:
        low, high = (100 * row["robust"][end] for end in ("low", "high"))
        cells = [f"{100 * row['ways'][way]['rate']:.1f}" for way in ways]
        least = f"{100 * row['robust']['rate']:.1f} [{low:.1f}, {high:.1f}]"
        rows.append((f"{row['eps']}/255", f"{100 * row['bare']['rate']:.1f}", *cells, least))
    title = f"{body['bits']} bits: right under attack, % of {body['images']} images"
    talk.table(title, ("eps", "bare", *ways, "minimum"), rows)
    for warning in body["warnings"]:
        talk.note(f"warning: {warning}")


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
    title = f"{body['images']} images redrawn under attack: PSNR, dB (squared error)"
    talk.table(title, ("eps", "attack", *names.values()), rows)
    for warning in body["warnings"]:
        talk.note(f"warning: {warning}")


def _drawn(cells: list[dict[str, Any]]) -> list[str]:
    return [f"{cell['psnr']:.2f} ({cell['mse']:.5f})" if cell else "" for cell in cells]


@contextlib.contextmanager
def progress(talk: Talk) -> "Iterator[Callable[[Progress], None]]":
    """Show a training: where it is, and at the end of an epoch what it reached."""
    with talk.line("starting") as line:

        def show(progress: "Progress") -> None:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
            where = f"epoch {progress.epoch + 1}/{progress.epochs}"
            if progress.fidelity:
                used = f"  codes {progress.fidelity['codes_used']}" if "codes_used" in progress.fidelity else ""
                line.keep(f"{where}  {losses}  PSNR {progress.fidelity['psnr']:.2f} dB{used}")
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
