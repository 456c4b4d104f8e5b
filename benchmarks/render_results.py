"""Write the tables of docs/results.md from the JSON files beside it, so that no figure is typed by hand.

    python benchmarks/render_results.py           # rewrites the tables in place
    python benchmarks/render_results.py --check   # exit code 1 where a table is not what its file says

A table stands between `<!-- NAME -->` and `<!-- end -->`; NAME is one of `TABLES`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgeq.files import read_json, write_text

DOCS = Path(__file__).parents[1] / "docs"
BITS = ("32", "8", "5", "4", "2")
KINDS = {
    "clean": "clean",
    "white_box_6px": "white box",
    "other_6px": "another width",
    "joint_6px": "all widths",
    "tuned_6px": "tuned copy",
    "white_box": "white box, any size",
    "transfer": "the rest, any size",
}
METHODS = ("minmax", "percentile", "entropy", "mse")
MISSING = "*Not measured yet.*"
Body = dict[str, Any]  # JSON


def latency(body: Body) -> str:
    """Return medians and bytes of ResNet-20's artefacts beside quantize_static."""
    rows = [
        (
            name,
            f"{r['p50_us']} ({r['low_us']}-{r['high_us']})",
            r["of_quantize_static"],
            r["bytes"],
            r["bytes_of_8_bits"],
        )
        for name, r in body["table"].items()
    ]
    return table(("model", "p50, µs (95 %)", "of quantize_static", "bytes", "of 8 bits"), rows)


def training_step(body: Body) -> str:
    """Return the time of one shared step."""
    rows = [
        (name, r["median_ms"], f"{r['min_ms']} to {r['max_ms']}", r["times_edgeq_float32"])
        for name, r in body["table"].items()
    ]
    return table(("step", "median, ms", "range", "times edgeq float32"), rows)


def export_time(body: Body) -> str:
    """Return how long export and proof took, network by network."""
    rows = [
        (
            f"{found['model']} at {found['side']}",
            ", ".join(str(row["bits"]) for row in found["rows"]),
            *(f"{sum(row[stage] for row in found['rows']):.1f}" for stage in ("lower", "save", "verify")),
            f"{found['seconds']:.1f}",
            f"{found['peak_gib']:.2f}",
        )
        for found in body["networks"]
    ]
    return table(("network", "bits", "lower, s", "save, s", "verify, s", "in all, s", "peak, GiB"), rows)


def shared(body: Body) -> str:
    """Return accuracies: shared against dedicated, by variant."""
    arms = body["arms"]
    dedicated: dict[str, Body] = {}
    rows = []
    for arm, figures in arms.items():
        found = re.match(r"\w+?-dedicated(\d+)-(\w+)", arm)
        if found:
            dedicated.setdefault(found[2], {})[found[1]] = figures.get(found[1])
        else:
            rows.append((arm.partition("-")[2], *(_figure(figures.get(b)) for b in BITS)))
    for scales, figures in dedicated.items():
        if scales == "observer" and "learned" in dedicated:
            figures = {"32": dedicated["learned"].get("32"), **figures}
        rows.insert(0, (f"dedicated-{scales}", *(_figure(figures.get(b)) for b in BITS)))
    return table(("arm", *(f"{b} bits" for b in BITS)), rows)


def post_training(body: Body) -> str:
    """Return accuracies of the dedicated float network, quantized after training."""
    figures = next((f for arm, f in body["arms"].items() if "dedicated32" in arm), None)
    if figures is None:
        return MISSING
    rows = [
        (method, _figure(figures["32"]), *(_figure(figures.get(f"ptq-{method}-{b}")) for b in BITS[1:]))
        for method in METHODS
    ]
    return table(("method", *(f"{b} bits" for b in BITS)), rows)


def snapping(body: Body) -> str:
    """Return what the short multipliers cost: accuracy with them minus accuracy with exact ones."""
    rows = []
    for arm, figures in body["arms"].items():
        if "-shared-" in arm:
            rows.append((arm.partition("-")[2], *(_difference(figures, b) for b in BITS[1:])))
    return table(("arm", *(f"{b} bits" for b in BITS[1:])), rows)


def portability(body: Body) -> str:
    """Return codes that differ, per file and engine, network by network; widths where all of them are 0 are one 0."""
    found: dict[str, dict[str, list[Body]]] = {}
    networks = list(body["table"])
    for network, widths in body["table"].items():
        for bits in sorted(widths, key=int, reverse=True):
            for name, row in widths[bits]["engines"].items():
                found.setdefault(_engine(name), {}).setdefault(network, []).append({**row, "bits": bits})
    files = ("trt", "trt, wide sums in integers", "proof", "ort")
    order = sorted(found, key=lambda name: files.index(name.partition(" | ")[0]))
    rows = []
    for name in order:
        cells = [_mismatches(found[name].get(network, [])) for network in networks]
        codes = sum(row["codes"] for rows_of in found[name].values() for row in rows_of)
        rows.append((name, codes, *cells))
    head = [f"{network} at {', '.join(sorted(body['table'][network], key=int, reverse=True))}" for network in networks]
    return table(("file", "engine", "codes", *head), [(*row[0].split(" | "), *row[1:]) for row in rows])


def _engine(name: str) -> str:
    """Return the row of an engine: optimisation levels, and runs with and without edges as outputs, are one."""
    target, _, engine = name.partition("|")
    package, *rest = engine.split(":")
    if package == "onnxruntime":
        return f"{target} | ONNX Runtime, four levels"
    if package == "openvino" and rest:
        said = {"exact": "as edgeq sets it", "accuracy": "ACCURACY alone", "default": "its own settings"}
        return f"{target} | OpenVINO, {said[rest[0]]}"
    return f"{target} | {'torch, the integer graph' if package == 'torch' else package.replace('openvino', 'OpenVINO')}"


def _mismatches(rows: list[Body]) -> str:
    if not rows:
        return "-"
    errors = sorted({row["error"] for row in rows if row["error"]})
    if errors:
        return "not read" if all(row["error"] for row in rows) else "partly not read"
    wrong = sum(row["mismatches"] for row in rows)
    return str(wrong) if not wrong else f"{wrong} of {sum(row['codes'] for row in rows)}"


def ptq(body: Body) -> str:
    """Return accuracies after post-training quantization: edgeq's rows beside other tools', run by run."""
    tables = []
    for name, run in body["runs"].items():
        said = (
            f"{run['model']} on {run['training']['data']}, {run['images']} calibration images, "
            f"{run['test']} test images ({name})"
        )
        rows = [
            (row, *("-" if found.get(b) is None else f"{found[b]:.2f}" for b in ("32", "8", "4")), _refusal(found))
            for row, found in run["rows"].items()
        ]
        tables.append(f"{said}:\n\n" + table(("row", "32 bits", "8 bits", "4 bits", ""), rows))
    return "\n\n".join(tables)


def defenses(body: Body) -> str:
    """Return clean accuracy of each arm, and the largest success by what the patches were made on."""
    rows = [
        (arm, " ".join(order), seeds, *(_by_width(widths, order, (kind,)) for kind in KINDS))
        for arm, widths, order, seeds in _arms(body)
    ]
    return table(("arm", "bits", "seeds", *KINDS.values()), rows)


def by_attack(body: Body) -> str:
    """Return the largest success of each attack at the smallest and the largest size, whatever it was made on."""
    attacks, sizes = body["protocol"]["attacks"], body["protocol"]["sizes"]
    rows = [
        (
            arm,
            " ".join(order),
            f"{size}x{size}",
            *(_by_width(widths, order, tuple(f"{kind}_{a}_{size}px" for kind in TWO)) for a in attacks),
        )
        for arm, widths, order, _ in _arms(body)
        for size in (min(sizes), max(sizes))
    ]
    return table(("arm", "bits", "patch", *attacks), rows)


def goals(body: Body) -> str:
    """Return at which widths each arm meets what is asked of a defence."""
    asked = ("white_box", "transfer", "unseen", "clean")
    rows = [
        (arm, *(" ".join(w for w in order if w in met and met[w][goal]) or "-" for goal in asked))
        for arm, _, order, _ in _arms(body)
        if (met := body["goals"].get(arm))
    ]
    return table(("arm", "white box", "transfer", "unseen sizes", "clean"), rows)


TWO = ("white_box", "transfer")


def _arms(body: Body) -> Iterable[tuple[str, Body, list[str], int]]:
    for arm, widths in body["arms"].items():
        order = sorted((w for w in widths if w.isdecimal()), key=int, reverse=True) or list(widths)
        yield arm, widths, order, max(len(widths[w]["clean"]["values"]) for w in order)


def _by_width(widths: Body, order: list[str], keys: tuple[str, ...]) -> str:
    """Return the largest of some figures at each width, as one cell."""
    found = [[widths[w][key]["mean"] for key in keys if key in widths[w]] for w in order]
    return " ".join(f"{max(means):.0f}" if means else "-" for means in found)


def throughput(body: Body) -> str:
    """Return images a second of the purifiers, beside a diffusion purifier's U-Nets."""
    unets = list(next(iter(body["rows"].values()))["times"])
    rows = [
        (
            name,
            f"{row['weights'] / 1e6:.2f}",
            row["calls"],
            f"{1000 * row['seconds']:.1f}",
            _three(row["images_per_second"]),
            *(_three(row["times"][unet]) for unet in unets),
        )
        for name, row in body["rows"].items()
    ]
    beside = tuple(f"times {unet}" for unet in unets)
    head = ("network", "weights, millions", "calls per image", "ms per call, 16 images", "images a second")
    return table((*head, *beside), rows)


def _three(value: float) -> str:
    """Return a number with three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _refusal(found: Body) -> str:
    return found.get("refused", "").replace("|", "/")


TABLES: dict[str, tuple[str, Callable[[Body], str]]] = {
    "latency": ("latency.json", latency),
    "portability": ("portability.json", portability),
    "ptq": ("ptq.json", ptq),
    "purifiers_throughput": ("purifiers_throughput.json", throughput),
    "training_step": ("training_step.json", training_step),
    "export_time": ("export.json", export_time),
    "shared_cifar": ("shared_cifar.json", shared),
    "ptq_cifar": ("shared_cifar.json", post_training),
    "snapping_cifar": ("shared_cifar.json", snapping),
    "shared_signs": ("shared_signs.json", shared),
    "defenses_signs": ("defenses_signs.json", defenses),
    "defenses_signs_by_attack": ("defenses_signs.json", by_attack),
    "defenses_signs_goals": ("defenses_signs.json", goals),
    "defenses_cifar": ("defenses_cifar.json", defenses),
    "defenses_cifar_by_attack": ("defenses_cifar.json", by_attack),
    "defenses_cifar_goals": ("defenses_cifar.json", goals),
    "ptq_signs": ("shared_signs.json", post_training),
    "snapping_signs": ("shared_signs.json", snapping),
}


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def render(text: str, folder: Path) -> str:
    """Return the page with every table made anew."""

    def fresh(found: re.Match[str]) -> str:
        name = found[1]
        file, make = TABLES[name]
        made = make(read_json(folder / file)) if (folder / file).exists() else MISSING
        return f"<!-- {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fresh, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = DOCS / "results.md"
    before = page.read_text(encoding="utf-8")
    after = render(before, DOCS / "results")
    if args.check:
        sys.exit(0 if before == after else "docs/results.md is not what docs/results/*.json say; render it again")
    write_text(page, after)


def _figure(figure: Body | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:.2f}" + (f" ± {figure['std']:.2f}" if figure["std"] is not None else "")


def _difference(figures: Body, bits: str) -> str:
    pairs = zip(figures[bits]["values"], figures[f"{bits}-unsnapped"]["values"], strict=True)
    return " ".join(f"{a - b:+.2f}" for a, b in pairs)


if __name__ == "__main__":
    main()
