"""What `transfer` and `evaluate --attacks` share: options, progress, tables."""

import contextlib
import signal
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from edgeq.cli.command import AbstractCommand, Stopped
from edgeq.cli.talk import Line, Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.data import Dataset
    from edgeq.quant.network import MultiBitNet
    from edgeq.robustness import Matrix, Plan, Progress

QUICK = {
    "attacks": ("located", "gap"),
    "surrogates": ("each", "joint"),
    "sizes": (6,),
    "images": 100,
    "effort": "quick",
}


@dataclass(frozen=True, kw_only=True)
class AbstractAttacking(AbstractCommand, ABC):
    """Options of an evaluation under attack; what is left out has its default, or that of --quick.

    Attributes:
        attacks: located, gap, lavan, lavan-universal, patch-mono, patch-texture.
        surrogates: What patches are made on: each (width), joint, tuned, all-but.
        several: Attacks that are also made on joint, tuned and all-but, which cost several times as much.
        sizes: Sides of the patches in pixels.
        towards: Target classes of the universal patches, as numbers.
        images: Test images to judge on.
        effort: How hard the attacks try; auto is standard, or quick with --quick.
        quick: A first look: 100 images, 6x6, located and gap, each and joint, little effort.
        random: Also attack a network that draws a width for every image; "joint" is its white box.
        simulated: Leave the integer models in ONNX Runtime out.
        seed: Decides images, patches and a purifier's noise.
        device: Where to make the patches.
    """

    attacks: Annotated[tuple[str, ...], arg(metavar="NAME …", help_behavior_hint="")] = ()
    surrogates: Annotated[tuple[str, ...], arg(metavar="NAME …", help_behavior_hint="(default: each joint tuned)")] = ()
    several: Annotated[tuple[str, ...], arg(metavar="NAME …", help_behavior_hint="(default: all of --attacks)")] = ()
    sizes: Annotated[tuple[int, ...], arg(metavar="N …", help_behavior_hint="(default: 6 8 10)")] = ()
    towards: Annotated[tuple[int, ...], arg(metavar="CLASS …")] = (0,)
    images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 500)")] = None
    effort: Annotated[Literal["quick", "standard", "strong"] | None, arg(help_behavior_hint="(default: standard)")] = (
        None
    )
    quick: bool = False
    random: bool = False
    simulated: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def plan(self) -> "Plan":
        """Return the choices in the form that `edgeq.robustness` takes."""
        from edgeq.robustness import EFFORTS, Plan

        given = {name: getattr(self, name) for name in QUICK}
        chosen = {name: value for name, value in given.items() if value not in ((), None, "auto")}
        chosen = (QUICK if self.quick else {}) | chosen
        effort = EFFORTS[str(chosen.pop("effort", "standard"))]
        batch = 1000 if self.on_device() == "cuda" else 100
        fixed = {"several": self.several, "towards": self.towards, "seed": self.seed, "batch_size": batch}
        return Plan(**chosen, **fixed, effort=effort)  # type: ignore[arg-type]

    def idle(self) -> str:
        """Return an option that was given and means something under attack alone, or nothing."""
        given = {name: getattr(self, name) for name in (*QUICK, "several", "quick", "random", "simulated")}
        chosen = [name for name, value in given.items() if value not in ((), None, "auto", False)]
        return next(iter(chosen + ["towards"] * (self.towards != (0,))), "")

    def on_device(self) -> str:
        """Return torch's name of the device."""
        from edgeq.cli.measure import device

        return device(self.device)


def attack(
    talk: Talk, command: AbstractAttacking, run: Path, net: "MultiBitNet", dataset: "Dataset", bits: tuple[int, ...]
) -> "Matrix":
    """Make the matrix, with progress; Ctrl-C keeps what is finished.

    Raises:
        Stopped: By Ctrl-C or SIGTERM.
    """
    from edgeq.defenses import RandomWidth
    from edgeq.robustness import attack_matrix
    from edgeq.robustness.store import FOLDER
    from edgeq.runs import RESULTS

    folder = run / RESULTS / FOLDER
    with talk.line("attacking") as line:
        shown = _Shown(line)
        try:
            with _terminable():
                return attack_matrix(
                    net,
                    dataset,
                    command.plan(),
                    folder=folder,
                    bits=bits,
                    victims={"random": RandomWidth(net, bits, seed=command.seed)} if command.random else {},
                    integer=not command.simulated,
                    progress=shown.take,
                )
        except KeyboardInterrupt:
            raise Stopped(
                f"stopped with {shown.done} of {shown.total or 'some'} cells kept in {folder}", again=()
            ) from None


def tables(talk: Talk, folder: Path, document: dict[str, Any], *, cells: bool) -> None:
    """Show the headline, and the matrix of each attack and size if `cells`."""
    names = [line["name"] for line in document["headline"]]
    if cells:
        groups: dict[tuple[str, int, int | None], list[dict[str, Any]]] = {}
        for cell in document["cells"]:
            if not cell["probe"]:
                groups.setdefault((cell["attack"], cell["size"], cell["towards"]), []).append(cell)
        for (attack_name, size, towards), rows in groups.items():
            aim = "" if towards is None else f" (and, in brackets, towards class {towards})"
            talk.table(
                f"{attack_name} {size}x{size}: success{aim}, %; patches made on (row), answered by (column)",
                ("made on", *names),
                [(row["surrogate"], *(_cell(result) for result in row["results"])) for row in rows],
            )
    rows = [
        (
            line["name"],
            f"{100 * line['clean']['rate']:.1f} %",
            *(_top(line["untargeted"].get(kind)) for kind in ("white_box", "transfer", "blind")),
        )
        for line in document["headline"]
    ]
    talk.table(
        f"{folder}: largest untargeted success over all attacks, sizes and surrogates, with intervals of 95 %",
        ("bits", "clean", "white-box", "transfer", "transfer, width unseen"),
        rows,
    )
    talk.note(_integer_words(document["integer"]))
    for warning in document["warnings"]:
        talk.note(f"warning: {warning}")


def perceptual_table(talk: Talk, rows: list[dict[str, Any]]) -> None:
    """Show the similarities of the input gradients."""
    shown = [row for row in rows if row["where"] == "input gradient"]
    if shown:
        talk.table(
            "likeness of the input gradients of two widths, and of different images (the null)",
            ("widths", "cosine", "null", "edge IoU", "null", "HOG cosine", "null"),
            [
                (
                    f"{row['first']} and {row['second']}",
                    *(f"{row[m][part]:.2f}" for m in ("cosine", "edge_iou", "hog") for part in ("similarity", "null")),
                )
                for row in shown
            ],
        )


def refuse_unequal(document: dict[str, Any], outer: dict[str, Any]) -> None:
    """End with exit code 2 where the integer models answered otherwise than the network that was attacked."""
    from edgeq.cli.command import Failed

    if document["integer"]["equal"] is False:
        integer = document["integer"]
        raise Failed(
            f"expected the integer models to answer as simulated, got {integer['mismatches']} of {integer['codes']} "
            "logits that differ; run edgeq verify on the exported models",
            outer,
        )


def _cell(result: dict[str, Any]) -> str:
    text = f"{100 * result['untargeted']['rate']:.0f}"
    return text if result["targeted"] is None else f"{text} ({100 * result['targeted']['rate']:.0f})"


def _top(top: dict[str, Any] | None) -> str:
    if top is None:
        return "-"
    made = f"{top['attack']} {top['size']}x{top['size']} on {top['surrogate']}"
    return f"{100 * top['rate']:.1f} % [{100 * top['low']:.1f}, {100 * top['high']:.1f}] {made}"


def _integer_words(integer: dict[str, Any]) -> str:
    if integer["equal"] is None:
        return "the integer models were not run"
    widths = ", ".join(map(str, integer["bits"]))
    if integer["equal"]:
        return (
            f"the integer models at {widths} bits, in ONNX Runtime, gave the same {integer['codes']} logits, clean and "
            "patched: their success rates are the ones above"
        )
    return f"the integer models at {widths} bits DIFFER in {integer['mismatches']} of {integer['codes']} logits"


class _Shown:
    """Progress: names the cell; a log has a line for each that is finished."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.done = self.total = 0

    def take(self, progress: "Progress") -> None:
        """Show where the evaluation stands."""
        self.done, self.total = progress.done, progress.total
        where = f"{progress.done}/{progress.total} {progress.cell.name}"
        if progress.entry is None:
            step = f" {progress.step}/{progress.steps}" if progress.steps else ""
            self.line.show(where + step)
        else:
            self.line.show(f"{where}  {progress.entry.seconds:.0f} s", at_once=not progress.entry.kept)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM stop as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_choices(command: AbstractAttacking) -> None:
    """Refuse wrong choices before anything heavy is done."""
    if command.images is not None and command.images < 2:
        raise InputError(
            f"expected 2 or more --images, got {command.images}; 500 give intervals of 4 points either way"
        )
    command.plan()
