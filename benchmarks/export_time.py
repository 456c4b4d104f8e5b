"""How long export and proof take: lower, save, load, verify, by width, with the peak of the process's memory.

    python benchmarks/export_time.py --model resnet20 --side 32 --bits 8 6 5 4 2 --out docs/results/export.json
    python benchmarks/export_time.py --model torchvision/resnet50 --side 224 --bits 8 --out docs/results/export.json

The weights are drawn, BatchNorm's statistics and the ranges come from the images: proofs do not depend on training.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from provenance import commit

from edgeq import calib, runs
from edgeq.data import batches, load
from edgeq.export import load as load_artefact
from edgeq.export import save, verify
from edgeq.export.lower import lower
from edgeq.files import read_json, write_json
from edgeq.quant.network import MultiBitNet, QuantConfig


def network(model: str, side: int, bits: tuple[int, ...], images: torch.Tensor) -> MultiBitNet:
    """Return a calibrated network with drawn weights."""
    torch.manual_seed(0)
    info = runs.RunInfo(model, "signs", QuantConfig(bits=(32, *bits)), tuple("0123456789"), (3, side, side), {})
    net = runs.new_network(info).eval()
    calib.reestimate(net, images, bits=32)
    for width in bits:
        calib.init_width(net, width, images)
    return net.eval()


def main() -> None:
    """Measure every width and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    pixels = next(batches(load("signs:train=64,test=16").test, 4 if args.side > 64 else 16))[0]
    pixels = torch.nn.functional.interpolate(pixels, size=(args.side, args.side))
    net = network(args.model, args.side, tuple(args.bits), pixels.float() / 255)
    rows = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for bits in args.bits:
            marks = [time.perf_counter()]
            graph = lower(net, bits=bits, name=args.model)
            marks.append(time.perf_counter())
            save(graph, path=Path(folder) / str(bits), inputs=pixels.numpy())
            marks.append(time.perf_counter())
            found = verify(load_artefact(Path(folder) / str(bits)), inputs=pixels.numpy())
            marks.append(time.perf_counter())
            names = ("lower", "save", "verify")
            spent = {name: round(b - a, 2) for name, a, b in zip(names, marks[:-1], marks[1:], strict=True)}
            rows.append({"bits": bits, "exact": found.exact, **spent})
            print(rows[-1], flush=True)
    body = {
        "model": args.model,
        "commit": commit(),
        "side": args.side,
        "seconds": round(time.perf_counter() - begin, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    print({k: v for k, v in body.items() if k != "rows"})
    if args.out is not None:
        before = read_json(args.out)["networks"] if args.out.exists() else []
        others = [b for b in before if (b["model"], b["side"]) != (args.model, args.side)]
        said = {"hardware": runs.hardware(), "versions": runs.versions()}
        write_json(args.out, {**said, "networks": [*others, body]})


if __name__ == "__main__":
    main()
