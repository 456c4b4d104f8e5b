"""`edgeq bench`: size and latency of artefacts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, Document, Failed, MaybeData
from edgeq.cli.talk import Talk


@dataclass(frozen=True, kw_only=True)
class Bench(AbstractCommand):
    """Measure the latency of artefacts against each other; refuse to report what is too noisy.

    Attributes:
        folders: Artefact folders.
        engines: Where to run them; ort is ONNX Runtime.
        threads: Thread counts; 0 is the engine's own choice.
        batch: Images per run.
        seconds: Measuring time per artefact, setting and attempt.
        limit: Largest uncertainty of a median, as a fraction of it.
        attempts: How often to try, each time twice as long, before giving up.
        data: Measure the accuracy on the test split of this data too.
        seed: Decides the order in which the artefacts take turns.
    """

    folders: Positional[Annotated[tuple[Path, ...], arg(metavar="ART …", help_behavior_hint="")]] = ()
    engines: Annotated[tuple[str, ...], arg(metavar="E …")] = ("ort",)
    threads: Annotated[tuple[int, ...], arg(metavar="N …")] = (1,)
    batch: int = 1
    seconds: float = 2.0
    limit: float = 0.05
    attempts: int = 3
    data: MaybeData = ""
    seed: int = 0

    def run(self, talk: Talk) -> Document:
        """Measure, show, keep, and refuse what is noisy."""
        from edgeq.bench.timing import Plan

        plan = Plan(seconds=self.seconds, limit=self.limit, attempts=self.attempts, seed=self.seed)
        with talk.busy("loading"):
            from edgeq.bench.artefacts import Setting, bench
            from edgeq.cli.artefacts import keep, open_artefacts
        setting = Setting(self.engines, self.threads, self.batch)
        artefacts = open_artefacts(self.folders)
        accuracy = self._accuracies(talk, artefacts) if self.data else {}
        with talk.busy(f"measuring {len(artefacts)} artefacts, about {self._about(len(artefacts)):.0f} s"):
            result = bench(artefacts, setting=setting, plan=plan)
        for row in result["rows"]:
            row["accuracy"] = accuracy.get(row["artefact"])
        show(talk, result)
        if result["noisy"]:
            worst = max(row["noise"] for row in result["rows"])
            raise Failed(
                f"expected medians known to {100 * plan.limit:g} %, got up to {100 * worst:.1f} % after "
                f"{plan.attempts} attempts ({result['noisy'][0]}): too noisy; "
                f"stop other programs or raise --seconds",
                result,
            )
        for artefact in artefacts:
            rows = [row for row in result["rows"] if row["artefact"] == str(artefact.path)]
            keep(artefact, "bench", {"machine": result["machine"], "plan": result["plan"], "rows": rows})
        return result

    def _about(self, count: int) -> float:
        return self.seconds * count * len(self.threads) * len(self.engines)

    def _accuracies(self, talk: Talk, artefacts) -> dict[str, float]:
        from edgeq.cli.measure import integer_row, load_fitting

        found = {}
        for artefact in artefacts:
            dataset = load_fitting(self.data, artefact.labels, artefact.graph.input_shape)
            with talk.busy(f"evaluating {artefact.path}"):
                found[str(artefact.path)] = integer_row(artefact, dataset)["accuracy"]
        return found


def show(talk: Talk, result: Document) -> None:
    """Write the table of a benchmark and its verdict."""
    machine = result["machine"]
    talk.table(
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['int8']) or 'no vector units known'}), "
        f"load {machine['load']:.1f}",
        ("artefact", "bits", "engine", "threads", "bytes", "accuracy", "p50 ms", "+-", "p90", "p99", "min"),
        [_cells(row) for row in result["rows"]],
    )
    for where, sentence in result["verdicts"].items():
        talk.note(f"{where}: {sentence}")


def _cells(row: Document) -> tuple[str, ...]:
    accuracy = "" if row.get("accuracy") is None else f"{100 * row['accuracy']:.2f} %"
    times = (f"{row[key]:.3f}" for key in ("p90_ms", "p99_ms", "min_ms"))
    count = str(row["threads"] or "all")
    head = (row["artefact"], str(row["bits"]), row["engine"], count, str(row["size_bytes"]), accuracy)
    return (*head, f"{row['p50_ms']:.3f}", f"{100 * row['noise']:.1f} %", *times)
