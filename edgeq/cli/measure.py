"""What several commands share: loading a run's data, measuring its widths, keeping the result in the run folder."""

from pathlib import Path
from typing import Any

from edgeq import runs
from edgeq.cli.artefacts import model_sha256
from edgeq.cli.talk import Talk
from edgeq.data import Dataset, load
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.export import Artefact
from edgeq.files import write_json
from edgeq.integer import evaluate_integer, runner
from edgeq.quant.network import MultiBitNet


def device(name: str) -> str:
    """Return torch's device for auto, cpu or cuda."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a CUDA device, got none that torch can see; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def check_widths(bits: tuple[int, ...], available: tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths asked for, from high to low, or all that there are."""
    from edgeq.quant.bits import check_bits

    if not bits:
        return available
    for b in check_bits(bits):
        if b not in available:
            raise InputError(f"expected widths of the run, {list(available)}, got {b}; choose among those")
    return check_bits(bits)


def load_fitting(spec: str, classes: tuple[str, ...], shape: tuple[int, ...]) -> Dataset:
    """Load a data set for a network that is already there: its image size, and the same classes.

    Raises:
        InputError: The data set has other classes, or the network none.
    """
    if not classes:
        raise InputError(
            "expected a network that names classes, got an artefact that draws images; put it before a classifier: "
            "edgeq evaluate RUN|ART --purifier"
        )
    dataset = load(spec, seed=0, image_size=shape[1])
    if dataset.classes != classes:
        raise InputError(
            f"expected data with the {len(classes)} classes {_few(classes)}, got '{spec}' with the "
            f"{len(dataset.classes)} classes {_few(dataset.classes)}; use the data that the network was trained for"
        )
    return dataset


def record_accuracies(
    talk: Talk, folder: Path, net: MultiBitNet, dataset: Dataset, *, bits: tuple[int, ...] = (), keep: bool = True
) -> list[dict[str, Any]]:
    """Measure widths on the whole test split, show them, and merge them into the run's results if `keep`."""
    widths = bits or net.bits
    before = runs.read_evaluation(folder) if keep else []
    with talk.busy(f"evaluating {len(dataset.test)} test images at {', '.join(map(str, widths))} bits"):
        results = accuracies(net, dataset.test, bits=widths)
    rows = [{"bits": r.bits, "accuracy": r.accuracy, "correct": r.correct, "total": r.total} for r in results]
    talk.table(
        f"{folder}: accuracy on {dataset.name}, deployed arithmetic",
        ("bits", "accuracy", "right", "images"),
        [(str(r.bits), f"{100 * r.accuracy:.2f} %", str(r.correct), str(r.total)) for r in results],
    )
    if keep:
        others = [row for row in before if row["bits"] not in widths]
        merged = sorted([*others, *rows], key=lambda row: -row["bits"])
        write_json(folder / runs.RESULTS / runs.EVALUATION, {"data": dataset.name, "results": merged})
    return rows


def integer_row(artefact: Artefact, dataset: Dataset, *, against: MultiBitNet | None = None) -> dict[str, Any]:
    """Measure an artefact on the whole test split in ONNX Runtime; `equal` is None without a network to compare."""
    bits, shape = artefact.graph.bits, artefact.graph.edges[artefact.graph.output].shape
    if len(shape) != 1:
        raise InputError(
            f"expected an artefact that names one class for an image, got {artefact.path} with logits of shape "
            f"{shape}; its accuracy is a matter of your own labels"
        )
    result = evaluate_integer(runner(artefact.model), dataset.test, against=against, bits=bits)
    return {
        "bits": bits,
        "model_sha256": model_sha256(artefact),
        "data": dataset.name,
        "accuracy": result.accuracy,
        "correct": result.correct,
        "total": result.total,
        "codes": result.codes,
        "mismatches": result.mismatches,
        "equal": result.equal if against is not None else None,
    }


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
