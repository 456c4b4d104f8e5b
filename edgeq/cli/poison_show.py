"""What `edgeq poison` shows: what is going on, in one line, and the table of the arms."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.cli.talk import Line, Talk

if TYPE_CHECKING:
    from edgeq.purifiers import Progress as Purifying
    from edgeq.training import Progress as Training


class Following:
    """Shows on one line what is going on."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def search(self, done: int, steps: int, loss: float) -> None:
        """Take the progress of a search."""
        self.line.show(f"search: step {done}/{steps}  loss {loss:.4f}")

    def training(self, now: "Training") -> None:
        """Take the progress of a classifier's training."""
        self.line.show(f"classifier: epoch {now.epoch + 1}/{now.epochs}  loss {now.losses.get('loss', 0.0):.3f}")

    def purifying(self, now: "Purifying") -> None:
        """Take the progress of a purifier's training."""
        self.line.show(f"purifier: epoch {now.epoch + 1}/{now.epochs}  loss {now.losses.get('loss', 0.0):.3f}")


@contextlib.contextmanager
def following(talk: Talk) -> Iterator[Following]:
    """Show what is going on while the block runs."""
    with talk.line("starting") as line:
        yield Following(line)


def show_arms(talk: Talk, out: Path, body: dict[str, Any]) -> None:
    """Show accuracy and success of every arm: mean, standard deviation and maximum over the targets."""
    for way, words in (("plain", "test images as they are"), ("filtered", "test images filtered too")):
        names = list(body["arms"][0][way]["success"])
        rows = [
            (entry["arm"], _percent(entry[way]["accuracy"]), *(_percent(entry[way]["success"][n]) for n in names))
            for entry in body["arms"]
        ]
        title = f"{out}: {body['attack']['kind']}, {body['targets']} targets, {words}; mean ± std (max), %"
        talk.table(title, ("arm", "accuracy", *(f"success, {n}" for n in names)), rows)


def _percent(spread: dict[str, float]) -> str:
    mean, std, most = (f"{100 * spread[name]:.1f}" for name in ("mean", "std", "max"))
    return f"{mean} ± {std} ({most})"
