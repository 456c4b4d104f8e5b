"""Shared against dedicated: what does one backbone for all widths cost beside one network per width?

    python benchmarks/shared_vs_dedicated.py --plan cifar --data folder:PATH --out docs/results/shared_cifar.json
    python benchmarks/shared_vs_dedicated.py --plan signs --out docs/results/shared_signs.json

Plans: `cifar` trains the default variant (learned scales, BatchNorm per width) once, shared and dedicated, and takes
the dedicated float network through post-training quantization with each method. `signs` does the same for every variant
with three seeds, and trains the default with one seed in other ways: all widths in each step instead of turns, three,
as many passes over the images in an epoch as there are widths, with distillation, without the deployed stage, without
the curriculum.
Same epochs, schedule and data for all. Everything is a run folder under --work; finished ones are not trained again,
half-finished ones go on, and what --out holds already counts as finished (another machine may have made it).
"""

import argparse
import statistics
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from provenance import commit, without_place

from edgeq import calib, runs
from edgeq.config import plain
from edgeq.curriculum import Curriculum
from edgeq.data import Dataset, decoded, holdout, load
from edgeq.defenses import Standard, Turns
from edgeq.evaluate import accuracies
from edgeq.files import read_json, write_json
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.training import CALIBRATION_IMAGES, Progress, TrainConfig, train

Json = dict[str, Any]  # Any: JSON
RESULT = Path(runs.RESULTS) / "accuracy.json"
BITS = (32, 8, 5, 4, 2)
VARIANTS = tuple((scales, norm) for scales in ("learned", "observer") for norm in ("per-bit", "shared"))
PLANS = {
    "cifar": TrainConfig(model="resnet8", epochs=12, lr=0.2, precision="bf16"),
    "signs": TrainConfig(
        data="signs:train=2560,test=2000", model="resnet8", epochs=12, batch_size=64, lr=0.15, precision="bf16"
    ),
}


@dataclass(frozen=True)
class Job:
    """One training: a name for its folder and its configuration."""

    name: str
    config: TrainConfig


def jobs(plan: str, config: TrainConfig, seeds: int) -> list[Job]:
    """Return the plan's trainings, the most informative first."""
    found: list[Job] = []
    variants = VARIANTS if plan == "signs" else VARIANTS[:1]
    for seed in range(seeds):
        for scales, norm in variants:
            quant = QuantConfig(bits=BITS, scales=scales, batchnorm=norm)
            found.append(Job(f"{plan}-shared-{scales}-{norm}-{seed}", replace(config, quant=quant, seed=seed)))
        for scales in dict.fromkeys(scales for scales, _ in variants):
            for bits in BITS:
                if bits == 32 and scales == "observer":
                    continue  # the same float network
                quant = QuantConfig(bits=(bits,), scales=scales)
                found.append(Job(f"{plan}-dedicated{bits}-{scales}-{seed}", replace(config, quant=quant, seed=seed)))
        if seed == 0 and plan == "signs":
            plain = replace(config, quant=QuantConfig(bits=BITS), seed=seed)
            found += [Job(f"{plan}-shared-{name}-{seed}", arm) for name, arm in ablations(plain).items()]
    return found


def ablations(plain: TrainConfig) -> dict[str, TrainConfig]:
    """Return what else the default variant is trained with."""
    return {
        "all-at-once": replace(plain, turns=Turns()),
        "three-widths": replace(plain, turns=Turns(3)),
        "as-many-passes-as-widths": replace(plain, turns=Turns(1, passes=0)),
        "distillation": replace(plain, turns=Turns(), standard=Standard(distill=0.5)),
        "no-deployed-stage": replace(plain, deployed=0.0),
        "no-curriculum": replace(plain, curriculum=Curriculum(enabled=False)),
    }


def run_job(job: Job, work: Path, data: Dataset, commit: str) -> None:
    """Train (or load) one run and write its accuracy per width on the whole test split."""
    folder = work / job.name
    if (folder / runs.WEIGHTS).exists():
        _, net = runs.load_run(folder)
    else:
        net = train(job.config, out=folder, resume=folder.exists(), dataset=data, progress=_report(job.name))
    found: dict[str, float] = {str(a.bits): a.accuracy for a in accuracies(net, data.test)}
    net.width.snapped = False
    found |= {f"{a.bits}-unsnapped": a.accuracy for a in accuracies(net, data.test, bits=net.quantized_bits())}
    net.width.snapped = True
    if net.bits == (32,):
        found |= post_training(net, job.config, data)
    write_json(folder / RESULT, {"commit": commit, "accuracy": found})


def finished(plan: list[Job], work: Path) -> dict[str, dict[str, Any]]:
    """Return the results that are there, whichever process made them, each with the commit that trained it."""
    paths = {job.name: work / job.name / RESULT for job in plan}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def adopt(out: Path, plan: list[Job], work: Path, config: Json) -> None:
    """Take over the results of a file that this plan wrote before, here or elsewhere."""
    if not out.exists():
        return
    body = read_json(out)
    changed = [name for name, value in config.items() if body["config"].get(name) != value]
    if changed:
        name = changed[0]
        raise SystemExit(
            f"expected results of {name}={config[name]} in {out}, got {body['config'].get(name)}; name another --out"
        )
    for job in plan:
        path = work / job.name / RESULT
        if job.name in body["results"] and not path.exists():
            write_json(path, body["results"][job.name])


def post_training(net: MultiBitNet, config: TrainConfig, data: Dataset) -> dict[str, float]:
    """Return the accuracy of the float network quantized after training, by method and width."""
    info = runs.RunInfo(config.model, config.data, QuantConfig(bits=BITS), data.classes, net.image_shape, {})
    other = runs.new_network(info)
    with torch.no_grad():
        for name, unit in net.weighted().items():
            twin = other.weighted()[name]
            twin.weight.copy_(unit.weight)
            if unit.bias is not None and twin.bias is not None:
                twin.bias.copy_(unit.bias)
            for bits in BITS:
                if unit.norm is not None and twin.norm is not None:
                    twin.norm.at(bits).load_state_dict(unit.norm.at(32).state_dict())
    images = decoded(holdout(data.train, CALIBRATION_IMAGES, seed=0)[0])
    found = {}
    for method in calib.METHODS:
        calib.calibrate(other.eval(), images, method=method)
        name = type(method).__name__.lower()
        found |= {f"ptq-{name}-{a.bits}": a.accuracy for a in accuracies(other, data.test, bits=other.quantized_bits())}
    return found


def _report(name: str):
    def report(p: Progress) -> None:
        if p.accuracy:
            text = " ".join(f"{b}:{a:.3f}" for b, a in p.accuracy.items())
            print(f"{name} epoch {p.epoch + 1}/{p.epochs} loss {p.losses['loss']:.3f} {text}", flush=True)

    return report


def summary(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, object]]:
    """Return mean, spread and values over seeds for every arm and figure."""
    arms: dict[str, dict[str, list[float]]] = {}
    for name, found in results.items():
        arm, _, _seed = name.rpartition("-")
        for key, value in found["accuracy"].items():
            arms.setdefault(arm, {}).setdefault(key, []).append(round(100 * value, 2))
    return {
        arm: {
            key: {
                "mean": round(statistics.mean(values), 2),
                "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
                "values": values,
            }
            for key, values in figures.items()
        }
        for arm, figures in arms.items()
    }


def main() -> None:
    """Run a plan to its end and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=sorted(PLANS), required=True)
    parser.add_argument("--data", help="data specification; the plan's own by default")
    parser.add_argument("--work", type=Path, default=Path(".work/shared"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int)
    parser.add_argument(
        "--shard", default="0/1", help="i/n: take every n-th job from the i-th, for n processes at once"
    )
    parser.add_argument("--only", default="*", help="train only the jobs whose name matches, as in *-shared-*")
    parser.add_argument("--collect", action="store_true", help="train nothing; write what is finished")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = PLANS[args.plan]
    config = replace(config, data=args.data or config.data, epochs=args.epochs or config.epochs)
    seeds = args.seeds or (3 if args.plan == "signs" else 1)
    data = load(config.data)
    plan = jobs(args.plan, config, seeds)
    said = without_place(plain(config))
    adopt(args.out, plan, args.work, said)
    code = commit()
    index, count = (int(part) for part in args.shard.split("/"))
    for job in plan[index::count]:
        mine = not args.collect and fnmatch(job.name, args.only)
        if mine and job.name not in finished(plan, args.work):
            run_job(job, args.work, data, code)
        results = finished(plan, args.work)
        body = {
            "command": f"python benchmarks/shared_vs_dedicated.py --plan {args.plan}",
            "plan": args.plan,
            "config": said,
            "seeds": seeds,
            "finished": len(results),
            "jobs": len(plan),
            "images": {"train": len(data.train), "test": len(data.test)},
            "versions": runs.versions(),
            "hardware": runs.hardware(),
            "arms": summary(results),
            "results": results,
        }
        write_json(args.out, body)


if __name__ == "__main__":
    main()
