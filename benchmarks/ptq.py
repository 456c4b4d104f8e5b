"""Post-training quantization of one float run at 8 and 4 bits: edgeq's methods and passes beside other tools.

    edgeq train --data folder:CIFAR --model resnet20 --bits 32 --out RUN
    python benchmarks/ptq.py RUN --out docs/results/ptq.json

All rows quantize the same weights with the same calibration images (of the training split, the ones that `edgeq
calibrate` takes) and are measured on the whole test split: edgeq's integer model and that of ONNX Runtime's
`quantize_static` in ONNX Runtime, NNCF's in OpenVINO. NNCF is not an extra of edgeq: `pip install nncf openvino`; its
rows are left out where it is missing. Rows that the JSON file holds for this run are not made again.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from provenance import commit, without_place
from ptq_others import Floats, float_model, nncf_quantized, openvino_logits, ort_logits, ort_static

from edgeq import calib, runs
from edgeq.bench.machine import describe
from edgeq.data import Split, batches, decoded, holdout, load
from edgeq.evaluate import accuracies
from edgeq.export import lower
from edgeq.export.dialects import build
from edgeq.export.engines import session
from edgeq.export.graph import INPUT
from edgeq.files import read_json, write_json
from edgeq.quant.network import MultiBitNet

BITS = (8, 4)
Row = dict[str, object]  # JSON: accuracy in per cent by width, or why there is none


@dataclass(frozen=True)
class Task:
    """What is quantized: a float run, calibration images and the test split."""

    info: runs.RunInfo
    net: MultiBitNet
    images: torch.Tensor
    test: Split

    def fresh(self) -> MultiBitNet:
        """Return the float network with the widths of the table, not yet calibrated."""
        quant = replace(self.info.quant, bits=(32, *BITS))
        return runs.requantized(replace(self.info, quant=quant), self.net)


@dataclass(frozen=True)
class Ours:
    """One row of edgeq's.

    Attributes:
        method: Of the activation ranges; min-max weights go with min-max.
        tensor: One weight step for a whole layer.
        passes: What is run on top.
        bn: Of BatchNorm's statistics: "" for what rounding changed, "kept", or "of the images".
        sequential: Edge by edge.
    """

    method: str
    tensor: bool = False
    passes: tuple[str, ...] = ()
    bn: str = ""
    sequential: bool = False

    @property
    def name(self) -> str:
        parts = ["per tensor" if self.tensor else "per channel", *self.passes]
        parts += ["edge by edge"] * self.sequential + [f"BatchNorm {self.bn}"] * bool(self.bn)
        return f"edgeq {self.method}, {', '.join(parts)}"

    def run(self, task: Task) -> Row:
        net = task.fresh()
        rule = "minmax" if self.method == "minmax" else "mse"
        calib.calibrate(
            net,
            task.images,
            method=calib.method(self.method),
            bits=BITS,
            weights=f"{rule}-tensor" if self.tensor else rule,
            bn=not self.bn,
            sequential=self.sequential,
            passes=self.passes,
        )
        for bits in BITS if self.bn == "of the images" else ():
            calib.reestimate(net, task.images, bits=bits)
        return {str(bits): integer_accuracy(net.eval(), bits, task.test) for bits in BITS}


METHODS = tuple(method.name for method in calib.METHODS)
OURS = (
    *(Ours(method, tensor) for tensor, method in product((False, True), METHODS)),
    *(Ours(method, bn="kept") for method in METHODS),
    *(Ours(method, bn="of the images") for method in METHODS),
    *(Ours("mse", passes=(name,)) for name in calib.PASSES),
    Ours("mse", passes=("rounding", "bias")),
    *(Ours(method, passes=tuple(calib.PASSES)) for method in METHODS),
    Ours("mse", sequential=True),
    Ours("mse", sequential=True, passes=tuple(calib.PASSES)),
)


def others(task: Task) -> dict[str, Callable[[], Row]]:
    """Return ONNX Runtime's and NNCF's rows."""
    rows: dict[str, Callable[[], Row]] = {}
    for calibration, (weights, activations) in product(
        ("MinMax", "Entropy", "Percentile"), (("QInt8", "QUInt8"), ("QInt4", "QUInt8"), ("QInt4", "QUInt4"))
    ):
        bits = "8" if weights == "QInt8" else "4"
        name = f"ORT quantize_static {calibration}, W{weights[-1]}A{activations[-1]}"

        def ort(what: tuple[str, str, str] = (calibration, activations, weights), bits: str = bits) -> Row:
            return attempt(task, bits, lambda model: ort_logits(ort_static(model, calibration_images(task), *what)))

        rows[name] = ort
    if find_spec("nncf") is None:
        print("NNCF is not installed: its rows are left out")
        return rows
    for preset, accurate, bits in product(("performance", "mixed"), (False, True), BITS):
        name = f"NNCF {preset}{', accurate bias correction' if accurate else ''}, W{bits}A{bits}"

        def nncf(how: tuple[str, bool, int] = (preset, accurate, bits)) -> Row:
            return attempt(
                task, str(how[2]), lambda model: openvino_logits(nncf_quantized(model, calibration_images(task), *how))
            )

        rows[name] = nncf
    return rows


def attempt(task: Task, bits: str, quantize: Callable[[Path], Callable[[Floats], Floats]]) -> Row:
    """Return the accuracy of a quantized copy of the float network, or what the tool said instead."""
    with TemporaryDirectory() as folder:
        source = float_model(task.net, Path(folder) / "float.onnx")
        try:
            logits = quantize(source)
            return {bits: accuracy(lambda images: logits(pixels(images)), task.test)}
        except Exception as error:  # a tool's refusal is its row
            return {bits: None, "refused": " ".join(f"{type(error).__name__}: {error}".split())[:200]}


def integer_accuracy(net: MultiBitNet, bits: int, test: Split) -> float:
    """Return the accuracy in per cent of the `ort` model, whose codes are those of the network in PyTorch."""
    running = session(build(lower(net, bits=bits), "ort").SerializeToString())
    return accuracy(lambda images: np.asarray(running.run(None, {INPUT: images.numpy()})[0]), test)


def accuracy(logits: Callable[[torch.Tensor], np.ndarray], test: Split) -> float:
    right = sum(int((logits(images).argmax(1) == labels.numpy()).sum()) for images, labels in batches(test, 250))
    return round(100 * right / len(test), 3)


def pixels(images: torch.Tensor) -> Floats:
    return images.numpy().astype(np.float32) / np.float32(255)


def calibration_images(task: Task) -> Floats:
    return pixels(task.images)


def main() -> None:
    """Make the rows that are missing and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--part", default="1/1", help="which rows: 1/2 is every second one, for two processes")
    args = parser.parse_args()
    info, net = runs.load_run(args.run)
    dataset = load(info.data, seed=0)
    assert isinstance(dataset.test, Split)
    part, _ = holdout(dataset.train, args.images, seed=0)
    images = decoded(part)
    task = Task(info, net, images, dataset.test)
    body = read_json(args.out) if args.out.exists() else {"runs": {}}
    entry = body["runs"].setdefault(args.run.name, {"rows": {}})
    described = {"model": info.model, "training": without_place(info.training), "images": len(images)}
    entry.update(described, test=len(dataset.test), machine=describe(), versions=versions())
    entry["commit"] = commit()
    rows = {"float": lambda: {"32": round(100 * accuracies(net, dataset.test, bits=(32,))[0].accuracy, 3)}}
    rows |= {ours.name: lambda ours=ours: ours.run(task) for ours in OURS}
    rows |= others(task)
    mine, parts = map(int, args.part.split("/"))
    for number, (name, make) in enumerate(rows.items()):
        if name not in entry["rows"] and number % parts == mine - 1:
            entry["rows"][name] = make()
            print(f"{name}: {entry['rows'][name]}", flush=True)
            entry["rows"] = {row: entry["rows"][row] for row in rows if row in entry["rows"]}
            write_json(args.out, body)


def versions() -> dict[str, str]:
    found = {name: version(name) for name in ("onnxruntime", "nncf", "openvino") if find_spec(name)}
    return {**runs.versions(), **found}


if __name__ == "__main__":
    main()
