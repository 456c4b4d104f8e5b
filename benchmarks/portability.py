"""One file, several engines: how many codes differ from the integer graph, per network, width and dialect.

    python benchmarks/portability.py --out docs/results/portability.json

All built-in networks with random weights, calibrated on drawn signs, at 8, 5, 4 and 2 bits. Each model runs in ONNX
Runtime at its four optimisation levels, in `onnx.reference` (one image), in OpenVINO's CPU plug-in (`pip install
'edgeq[openvino]'`) with edgeq's settings ("exact"), with EXECUTION_MODE_HINT=ACCURACY alone and with none, and the
`trt` file also operator by operator in torch (`onnx_in_torch.py`), on a GPU too where there is one, without TF32. Where
float32 may not hold the sums of a `trt` file in every order, it runs once more with these in integers
(`edgeq.export.exactsums`), as its certificate has it. ONNX Runtime and OpenVINO ("exact") run twice: with every edge as
an output, and as the file is, because outputs change what is fused. A network and width that the JSON file holds
already is not run again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from onnx_in_torch import TorchModel
from provenance import commit

from edgeq import calib, models, runs
from edgeq.bench.machine import describe
from edgeq.data import Split, load
from edgeq.export import IntegerGraph, build, lower
from edgeq.export.certificate import Run
from edgeq.export.compare import compare_with
from edgeq.export.dialects import dialect
from edgeq.export.engines import OPENVINO_EXACT, Engine, View, engine_makers, openvino_makers
from edgeq.export.exactsums import exact_sums, ordered
from edgeq.export.graph import INPUT
from edgeq.export.verify import trial_images
from edgeq.files import read_json, write_json
from edgeq.quant.convert import multibit

BITS = (8, 5, 4, 2)
TARGETS = ("trt", "proof", "ort")
SUMMED = "trt, wide sums in integers"
SETTINGS = {"exact": OPENVINO_EXACT, "accuracy": {"EXECUTION_MODE_HINT": "ACCURACY"}, "default": {}}
SIGNS, RANDOM = 2, 2  # images, besides six extreme ones
Makers = list[tuple[str, Callable[[], Engine]]]


def graphs(name: str, images: torch.Tensor) -> dict[int, IntegerGraph]:
    """Return a network at all widths."""
    torch.manual_seed(0)
    net = multibit(models.build(name, classes=10), bits=(32, *BITS))
    calib.reestimate(net, images, bits=32)
    calib.calibrate(net, images, method=calib.MinMax(), weights="minmax", bits=BITS)
    return {bits: lower(net.eval(), bits=bits) for bits in BITS}


def torch_makers(graph: IntegerGraph, model: bytes) -> Makers:
    """Return torch on every kind of device that is there."""
    view = View(graph, dialect("trt").observe(graph), dialect("trt").dtype)
    edges = list(view.observed)

    def make(device: str) -> Engine:
        running = TorchModel(model, device)

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            return view.decoded(edges, running.run(INPUT, images, view.tensors(edges)))

        return Engine(f"torch, the file on {device}", torch.__version__, run)

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [(f"torch, the file on {device}", lambda device=device: make(device)) for device in devices]


def openvino_reads(model: bytes) -> str:
    """Return why OpenVINO does not load a model, or nothing. It is tried in a process of its own: it may crash."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        code = "import openvino, sys; c = openvino.Core(); c.compile_model(c.read_model(sys.argv[1]), 'CPU')"
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=600)
    if done.returncode < 0:
        return f"crashed with signal {-done.returncode} while loading the model"
    return " ".join(done.stderr.split())[-120:] if done.returncode else ""


def makers(graph: IntegerGraph, model: bytes, target: str) -> tuple[Makers, str]:
    """Return the engines for a model, and why OpenVINO is not among them, if so."""
    names = ("onnx.reference", "onnxruntime", *(("torch",) if target == "trt" else ()))  # torch: the graph itself
    found = engine_makers(graph, model, names, 1, target)
    refused = openvino_reads(model) if target == "ort" else ""  # the others load; a process costs seconds
    if not refused:
        for note, settings in SETTINGS.items():
            every, logits = openvino_makers(graph, model, target, settings, note)
            found += [every, logits] if note == "exact" else [logits]
    return found + (torch_makers(graph, model) if target == "trt" else []), refused


def measure(graph: IntegerGraph, images: np.ndarray) -> dict[str, object]:
    """Return codes and mismatches of every engine on every dialect of one graph."""
    chosen: Makers = []
    refusals = {}
    for target in TARGETS:
        model = build(graph, target).SerializeToString()
        found, refused = makers(graph, model, target)
        if refused:
            refusals[f"{target}|openvino"] = {"codes": 0, "mismatches": 0, "error": refused}
        chosen += [(f"{target}|{name}", make) for name, make in found]
        if target == "trt" and ordered(graph):
            summed = exact_sums(graph, model)
            found = engine_makers(graph, summed, ("onnxruntime",), 1, target) + torch_makers(graph, summed)
            chosen += [(f"{SUMMED}|{name}", make) for name, make in found]
    done = compare_with(graph, images, chosen)
    rows = {name: row(run) for (name, _), run in zip(chosen, done, strict=True)}
    return {"ordered": len(ordered(graph)), "layers": len(graph.nodes), "engines": {**rows, **refusals}}


def row(run: Run) -> dict[str, object]:
    first = {} if run.first is None else {"first": run.first.layer, "largest": run.first.largest}
    return {"codes": run.codes, "mismatches": run.mismatches, "error": run.error, **first}


def main() -> None:
    """Measure what is missing and write the table after each network and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[factory.__name__ for factory in models.BUILT_IN])
    parser.add_argument("--bits", nargs="*", type=int, default=list(BITS), choices=BITS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load("signs:train=32,test=10")
    assert isinstance(dataset.train, Split) and isinstance(dataset.test, Split)
    body = read_json(args.out) if args.out.exists() else {"table": {}}
    table = body["table"]
    for name in args.models:
        missing = [bits for bits in args.bits if str(bits) not in table.get(name, {})]
        found = graphs(name, dataset.train.images) if missing else {}
        for bits in missing:
            start = time.monotonic()
            kinds = trial_images(found[bits], dataset.test.images[:SIGNS].numpy(), quick=True)
            images = np.concatenate([kinds["extreme"], kinds["given"], kinds["random"][:RANDOM]])
            table.setdefault(name, {})[str(bits)] = measure(found[bits], images)
            wrong = {k: v for k, v in table[name][str(bits)]["engines"].items() if v["mismatches"] or v["error"]}
            print(f"{name} {bits}: {time.monotonic() - start:.0f} s, {wrong or 'no code differs'}", flush=True)
            versions = {**runs.versions(), **engine_versions()}
            said = {"machine": describe(), "versions": versions, "commit": commit()}
            write_json(args.out, {"images": len(images), "table": table, **said})


def engine_versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import openvino  # pyright: ignore[reportMissingImports]  # an extra

    return {p.__name__: p.__version__.split("-")[0] for p in (onnx, onnxruntime, openvino)}


if __name__ == "__main__":
    main()
