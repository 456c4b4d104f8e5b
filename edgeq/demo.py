"""The whole tour on embedded data: one backbone at all widths, integer models, their proofs, their size and latency.

Everything lies in one folder:

    run/          the run folder of the training
    b8/ … b2/     the artefact of each width below 32
    report.html   the page

A training that was stopped goes on where it stopped; a finished one is used again, and what comes after it is made
anew.

The training is the default one: widths enter one by one, each with ranges calibrated on held-out images, and take
turns.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq import calib, runs
from edgeq.bench.artefacts import Setting, bench
from edgeq.bench.timing import Plan
from edgeq.cli.artefacts import keep, origin
from edgeq.cli.measure import integer_row, record_accuracies
from edgeq.cli.talk import Talk
from edgeq.config import plain
from edgeq.data import Dataset, batches, decoded, holdout, load
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.export import Artefact, Certificate, save, verify
from edgeq.export import load as load_artefact
from edgeq.export.lower import lower
from edgeq.files import write_text
from edgeq.quant.bits import FLOAT_BITS
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.report import collect, render
from edgeq.training import CALIBRATION_IMAGES, Interrupted, TrainConfig, train

RUN, REPORT = "run", "report.html"
PROOF_IMAGES = 64


@dataclass(frozen=True)
class Tour:
    """The size of the tour; the defaults take two to three minutes on two cores of 2024.

    Attributes:
        bits: 32 as the float reference, and the widths of the integer models.
        epochs: Passes over the training images.
        train: Training images.
        test: Test images.
        batch_size: Small, because the number of steps decides how far so short a training comes.
        seed: Of the training.
        plan: How latency is measured.
    """

    bits: tuple[int, ...] = (32, 8, 5, 4, 3, 2)
    epochs: int = 7
    train: int = 5600
    test: int = 2000
    batch_size: int = 48
    seed: int = 0
    plan: Plan = field(default_factory=lambda: Plan(seconds=1.0, attempts=2))

    def config(self) -> TrainConfig:
        """Return the choices of the training."""
        return TrainConfig(
            data=f"signs:train={self.train},test={self.test}",
            model="resnet8",
            quant=QuantConfig(bits=self.bits),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )


def tour(choices: Tour, *, out: Path, talk: Talk, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Train, export, prove, measure, report; return what was found.

    Args:
        choices: The size.
        out: Folder of the demo: new, empty, or of a demo with the same choices.
        talk: Whom to tell.
        stop: Asked during the training, which it lets save its state, and between what comes after; True raises
            `edgeq.training.Interrupted`.
    """
    clock = _Clock(stop)
    config = choices.config()
    _check(out, config)
    with talk.busy(f"drawing {choices.train + choices.test} road signs"):
        dataset = load(config.data, seed=0)
    clock.lap("data")
    net = _trained(config, out / RUN, dataset, talk, stop)
    clock.lap("training")
    simulated = {row["bits"]: row["accuracy"] for row in record_accuracies(talk, out / RUN, net, dataset)}
    with talk.busy("calibrating the same weights anew, for comparison"):
        calibrated = calibrated_only(net, dataset)
    clock.lap("evaluation")
    artefacts = _exported(net, out, dataset, talk, clock.look)
    clock.lap("export")
    integer, proofs = _proved(artefacts, net, dataset, talk, clock.look)
    clock.lap("proof")
    with talk.busy("measuring latency"):
        measured = bench(artefacts, setting=Setting(), plan=choices.plan)
    for artefact, row in zip(artefacts, measured["rows"], strict=True):
        keep(artefact, "bench", {"machine": measured["machine"], "plan": measured["plan"], "rows": [row]})
    clock.lap("latency")
    networks = collect([out / RUN, *(artefact.path for artefact in artefacts)])
    write_text(out / REPORT, render(networks, title="edgeq demo"))
    clock.lap("report")
    rows = [
        {
            "bits": artefact.graph.bits,
            "sim_accuracy": simulated[artefact.graph.bits],
            "integer_accuracy": result["accuracy"],
            "calibrated_accuracy": calibrated[artefact.graph.bits],
            "size_bytes": len(artefact.model),
            "p50_ms": timing["p50_ms"],
            "noisy": bool(measured["noisy"]) and timing["noise"] > choices.plan.limit,
            "exact": proof.exact and bool(result["equal"]),
            "codes_compared": proof.codes + result["codes"],
            "artefact": str(artefact.path),
        }
        for artefact, result, proof, timing in zip(artefacts, integer, proofs, measured["rows"], strict=True)
    ]
    return {
        "float_accuracy": simulated[FLOAT_BITS],
        "bits": rows,
        "verdicts": measured["verdicts"],
        "machine": measured["machine"],
        "report": str(out / REPORT),
        "seconds": clock.laps,
    }


def calibrated_only(net: MultiBitNet, dataset: Dataset) -> dict[int, float]:
    """Return the accuracy of each width when its learned ranges are replaced by calibrated ones."""
    other = copy.deepcopy(net)
    part, _ = holdout(dataset.train, min(CALIBRATION_IMAGES, len(dataset.train) // 4), seed=0)
    calib.calibrate(other, decoded(part))
    return {r.bits: r.accuracy for r in accuracies(other, dataset.test, bits=other.quantized_bits())}


def _trained(
    config: TrainConfig, folder: Path, dataset: Dataset, talk: Talk, stop: Callable[[], bool] | None
) -> MultiBitNet:
    if (folder / runs.WEIGHTS).exists():
        talk.note(f"using the trained network in {folder}")
        return runs.load_run(folder)[1]
    widths = ", ".join(map(str, config.quant.bits))
    talk.note(f"training one {config.model} at {widths} bits, {config.epochs} epochs")
    with talk.training() as progress:
        return train(config, out=folder, resume=True, progress=progress, stop=stop, dataset=dataset)


def _exported(net: MultiBitNet, out: Path, dataset: Dataset, talk: Talk, look: Callable[[], None]) -> list[Artefact]:
    info = runs.read_info(out / RUN)
    images = next(iter(batches(dataset.test, PROOF_IMAGES)))[0].numpy()
    artefacts = []
    for bits in net.quantized_bits():
        path = out / f"b{bits}"
        with talk.busy(f"lowering {bits} bits to integers"):
            graph = lower(net, bits=bits, classes=dataset.classes, name=info.model)
            save(graph, path=path, origin=origin(out / RUN, info, path), inputs=images)
        artefacts.append(load_artefact(path))
        look()
    return artefacts


def _proved(
    artefacts: list[Artefact], net: MultiBitNet, dataset: Dataset, talk: Talk, look: Callable[[], None]
) -> tuple[list[dict[str, Any]], list[Certificate]]:
    images = next(iter(batches(dataset.test, PROOF_IMAGES)))[0].numpy()
    integer, proofs = [], []
    for artefact in artefacts:
        with talk.busy(f"proving {artefact.graph.bits} bits, and comparing all {len(dataset.test)} test images"):
            proofs.append(verify(artefact, inputs=images))
            integer.append(integer_row(artefact, dataset, against=net))
        keep(artefact, "integer", integer[-1])
        look()
    return integer, proofs


def _check(out: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds something else, or a demo with other choices."""
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder for the demo, got the file {out}; choose another --out")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RUN / runs.CONFIG).exists():
        raise InputError(
            f"expected a new or empty folder, or a demo, got {out} with something else; choose another --out"
        )
    before = runs.read_info(out / RUN).training
    now = plain(config)
    changed = sorted(name for name, value in now.items() if name != "device" and before.get(name) != value)
    if changed:
        name = changed[0]
        raise InputError(
            f"expected the demo in {out} with the same choices, got {name}={now[name]}, not {before.get(name)}; "
            "choose another --out"
        )


class _Clock:
    """Seconds of each stage; between them, a look at whether the user wants to stop."""

    def __init__(self, stop: Callable[[], bool] | None) -> None:
        self.stop = stop
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self.last, 2)
        self.last = now
        self.look()

    def look(self) -> None:
        if self.stop is not None and self.stop():
            raise Interrupted
