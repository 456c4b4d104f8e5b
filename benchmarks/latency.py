"""ResNet-20's integer artefacts beside ONNX Runtime's own `quantize_static` model of the same float network.

    python benchmarks/latency.py --out docs/results/latency.json

One process, interleaved calls, batch 1, one thread by default. Rows: the float network, ONNX Runtime's QDQ model (U8
activations, S8 weights per channel, min-max), edgeq's artefacts at 8/5/4/2 bits, and the 8-bit artefact without its
ceiling at 127 (`Clip` operators removed: other codes, same work otherwise), to price that ceiling. The weights are
random: latency does not depend on them. File sizes come from the same files.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from provenance import commit

from edgeq import calib, runs
from edgeq.bench.machine import describe
from edgeq.bench.timing import Plan, measure, noisy
from edgeq.export import lower
from edgeq.export.dialects import build as build_onnx
from edgeq.files import write_json
from edgeq.models import build
from edgeq.quant.convert import multibit

BITS = (8, 5, 4, 2)


def float_model(model: torch.nn.Module, path: Path) -> None:
    """Write the float network as ONNX, its normalisation outside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model.eval(), (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False, opset_version=17)


def static_model(source: Path, target: Path, images: np.ndarray) -> None:
    """Write ONNX Runtime's own quantized model of the float one."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(source).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter([{name: (images[i : i + 1].astype(np.float32) - 128) / 64} for i in range(32)])

        def get_next(self) -> dict:
            return next(self.items, {})  # empty: the end

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def without_ceilings(model: bytes) -> bytes:
    """Return an artefact's model with every `Clip` operator taken out."""
    import onnx

    proto = onnx.load_model_from_string(model)
    renamed: dict[str, str] = {}
    kept = []
    for node in proto.graph.node:
        inputs = [renamed.get(n, n) for n in node.input]
        del node.input[:]
        node.input.extend(inputs)
        if node.op_type in ("Min", "Clip"):
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return proto.SerializeToString()


def main() -> None:
    """Measure and write the table."""
    import onnxruntime as ort

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--model", default="resnet20")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build(args.model, classes=10)
    images = np.random.default_rng(0).integers(0, 256, (256, 3, 32, 32), dtype=np.uint8)
    net = multibit(model.train(), bits=(32, *BITS))
    calib.reestimate(net, torch.from_numpy(images), bits=32)
    for bits in BITS:
        calib.init_width(net, bits, torch.from_numpy(images))
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        source, static = Path(folder) / "float.onnx", Path(folder) / "static.onnx"
        float_model(model, source)
        static_model(source, static, images)
        models = {"float32": source.read_bytes(), "ORT quantize_static": static.read_bytes()}
    for bits in BITS:
        models[f"edgeq {bits} bits"] = build_onnx(lower(net.eval(), bits=bits), target="ort").SerializeToString()
    models["edgeq 8 bits, no ceiling"] = without_ceilings(models["edgeq 8 bits"])
    calls = {}
    for name, data in models.items():
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        x = images[:1] if "uint8" in entry.type else ((images[:1].astype(np.float32) - 128) / 64)
        calls[name] = lambda session=session, feed={entry.name: x}: session.run(None, feed)
    plan = Plan(seconds=args.seconds, rounds=1000, warmup=50)
    results = measure(calls, plan=plan)
    base, eight = results["ORT quantize_static"].p50_ms, len(models["edgeq 8 bits"])
    table = {
        name: {
            "p50_us": round(1e3 * r.p50_ms, 1),
            "low_us": round(1e3 * r.low_ms, 1),
            "high_us": round(1e3 * r.high_ms, 1),
            "p99_us": round(1e3 * r.p99_ms, 1),
            "of_quantize_static": round(r.p50_ms / base, 3),
            "bytes": len(models[name]),
            "bytes_of_8_bits": round(len(models[name]) / eight, 3),
        }
        for name, r in results.items()
    }
    for name, row in table.items():
        print(f"{name:28s}" + "".join(f"  {key} {value}" for key, value in row.items()))
    unsteady = noisy(results, plan=plan)
    if unsteady:
        print(f"too noisy to publish: {', '.join(unsteady)}")
    if args.out and not unsteady:
        body = {"model": args.model, "threads": args.threads, "batch": 1, "table": table, "machine": describe()}
        said = {"commit": commit(), "versions": {**runs.versions(), "onnxruntime": ort.__version__}}
        write_json(args.out, {**body, **said})


if __name__ == "__main__":
    main()
