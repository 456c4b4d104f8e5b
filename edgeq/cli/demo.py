"""`edgeq demo`: the whole tour on embedded data."""

from dataclasses import dataclass
from pathlib import Path

from edgeq.cli.command import AbstractCommand, Document, Failed, Folder, Stopped
from edgeq.cli.talk import Talk


@dataclass(frozen=True, kw_only=True)
class Demo(AbstractCommand):
    """Train one network at six widths on drawn road signs, ship five integer models, prove and measure them.

    Nothing is downloaded. If it is stopped, the same command goes on.

    Attributes:
        out: Folder for everything that is made.
        seed: Of the training.
    """

    out: Folder = Path("edgeq-demo")
    seed: int = 0

    def run(self, talk: Talk) -> Document:
        """Take the tour and show the table."""
        with talk.busy("loading torch"):
            from edgeq.cli.train import stopping
            from edgeq.demo import Tour, tour
            from edgeq.training import Interrupted
        try:
            with stopping() as stop:
                result = tour(Tour(seed=self.seed), out=self.out, talk=talk, stop=stop)
        except Interrupted:
            raise Stopped(f"stopped; what is done so far is in {self.out}", again=()) from None
        show(talk, result)
        wrong = [str(row["bits"]) for row in result["bits"] if not row["exact"]]
        if wrong:
            raise Failed(f"expected exact integer models, got differences at {', '.join(wrong)} bits", result)
        return result


def show(talk: Talk, result: Document) -> None:
    """Write the table of the tour."""
    reference = ("32 (float)", f"{100 * result['float_accuracy']:.2f} %", "", "", "", "", "")
    talk.table(
        "one backbone, test accuracy and cost of each width",
        ("bits", "simulated", "integer", "calibrated only", "bytes", "p50 ms", "exact"),
        [reference, *(_cells(row) for row in result["bits"])],
    )
    for sentence in result["verdicts"].values():
        talk.note(sentence)
    codes = sum(row["codes_compared"] for row in result["bits"])
    talk.note(
        f"exact: the network's evaluation and the integer models agree on {codes:,} codes, with 0 differences"
        if all(row["exact"] for row in result["bits"])
        else "NOT exact: see the report"
    )
    talk.note(f"{sum(result['seconds'].values()):.0f} s; the report is {result['report']}")


def _cells(row: Document) -> tuple[str, ...]:
    shares = (f"{100 * row[key]:.2f} %" for key in ("sim_accuracy", "integer_accuracy", "calibrated_accuracy"))
    p50 = f"{'~' if row['noisy'] else ''}{row['p50_ms']:.3f}"
    return (str(row["bits"]), *shares, f"{row['size_bytes']:,}", p50, "yes" if row["exact"] else "NO")
