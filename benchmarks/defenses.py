"""The table of defences: what each costs in accuracy, and what the strongest attacker found makes of it.

    python benchmarks/defenses.py --plan signs --out docs/results/defenses_signs.json
    python benchmarks/defenses.py --plan cifar --data folder:PATH --out docs/results/defenses_cifar.json

Plans: `signs` trains every arm with two seeds, `cifar` four with one, on a part of the training images. Network,
epochs, schedule, data and patch sizes are the same for all arms; every run is then attacked with the same plan
(`edgeq.robustness`): patches made on each width, the strongest also on all jointly and on a tuned copy, at the seen
size and two unseen ones. Everything is a run folder under --work; finished runs are not trained again, half-finished
ones go on, finished cells of an attack are kept, and what --out holds already counts as finished.

Arms: `standard`, `patch-at` (the control: the same patches without penalties), each penalty alone (`fdp`, `gpdp`),
both without the curriculum (`no-bact`), all of it (`triqdef`), with shared BatchNorm (`triqdef-shared-bn`), with
penalties above the similarity of different images only (`triqdef-excess`), and the strongest recipes: patches made in
the step for every image, without and with the penalties (`online-at`, `combined`); `pbat` (a network per width), `dwq`
(random-precision adversarial training), and `random-width`, which is `dwq` asked at a width drawn for each image.
Pairs of widths take turns in all of them, with two passes over the images in an epoch; `dwq` and `pbat`, which train
one width a step by their nature, get twice the epochs for it.
"""

import argparse
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from provenance import commit, without_place

from edgeq import runs
from edgeq.config import plain
from edgeq.curriculum import Curriculum
from edgeq.data import Dataset, batches, holdout, load
from edgeq.defenses import Patches, RandomWidth, TriQDef, Turns
from edgeq.evaluate import accuracies
from edgeq.files import read_json, write_json
from edgeq.launch import check_choices
from edgeq.perceptual import Alignment
from edgeq.quant.network import QuantConfig
from edgeq.robustness import EFFORTS, Plan, attack_matrix, document, doubts
from edgeq.training import Progress, TrainConfig, train

BITS = (32, 8, 5, 4, 2)
RESULT = "defense.json"
RANDOM = "random-width"
POOL = Patches(sizes=(6,), copies=2)
ONLINE = replace(POOL, online=1.0)  # half of the images, as the arms beside it
SINGLE = replace(ONLINE, online_steps=5, online_scouts=16)
STRONG = replace(ONLINE, rho=1.0, lambda_adv=2.0, online_steps=5, online_scouts=16, warmup=0.1)
SIGNS = TrainConfig(
    data="signs:train=2560,test=1000",
    epochs=20,
    batch_size=32,
    lr=0.1,
    quant=QuantConfig(bits=BITS),
    patches=POOL,
    turns=Turns(2),
)
CIFAR = replace(SIGNS, data="", epochs=12, batch_size=64)
CIFAR_TRAIN = 12_500  # images, or all of them where there are fewer
ATTACKS = ("located", "gap", "lavan-universal", "patch-mono", "patch-texture")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Job:
    """One training and its evaluation."""

    name: str
    config: TrainConfig


def arms(config: TrainConfig) -> dict[str, TrainConfig]:
    """Return every arm's configuration, the most informative first."""
    full = replace(config, defense="triqdef")
    shared = replace(config.quant, batchnorm="shared")
    twice = replace(config, epochs=2 * config.epochs, turns=None)
    found = {
        "standard": replace(config, defense="standard"),
        "patch-at": replace(config, defense="patch-at"),
        "triqdef": full,
        "online-at": replace(config, defense="patch-at", patches=STRONG),
        "combined": replace(full, patches=STRONG),
        "triqdef-excess": replace(full, triqdef=TriQDef(alignment=Alignment(excess=True, centred=True))),
        "fdp": replace(full, triqdef=TriQDef(lambda_gpdp=0.0)),
        "gpdp": replace(full, triqdef=TriQDef(lambda_fdp=0.0)),
        "no-bact": replace(full, curriculum=Curriculum(enabled=False)),
        "triqdef-shared-bn": replace(full, quant=shared),
        "dwq": replace(twice, defense="dwq", curriculum=Curriculum(enabled=False)),
    }
    for bits in BITS:
        alone = replace(config.quant, bits=(bits,))
        found[f"pbat{bits}"] = replace(twice, defense="pbat", quant=alone, patches=SINGLE)
    return found


def jobs(plan: str, config: TrainConfig, seeds: int) -> list[Job]:
    """Return the plan's jobs, a seed of every arm before the next seed."""
    chosen = arms(config)
    if plan == "cifar":
        chosen = {name: chosen[name] for name in ("standard", "patch-at", "triqdef", "online-at")}
    return [
        Job(f"{plan}-{name}-{seed}", replace(arm, seed=seed)) for seed in range(seeds) for name, arm in chosen.items()
    ]


def run_job(job: Job, work: Path, data: Dataset, plan: Plan, said: Json) -> None:
    """Train (or load) one run, attack it, and keep what came out in its folder."""
    folder = work / job.name
    if (folder / runs.WEIGHTS).exists():
        check_choices(folder, job.config)
    else:
        train(job.config, out=folder, resume=folder.exists(), dataset=data, progress=_report(job.name))
    _, net = runs.load_run(folder, device=DEVICE)
    victims = {RANDOM: RandomWidth(net)} if job.config.defense == "dwq" else {}
    matrix = attack_matrix(
        net,
        data,
        plan,
        folder=folder / runs.RESULTS / "robustness",
        victims=victims,
        progress=lambda p: p.entry and print(f"{job.name} {p.done}/{p.total} {p.cell.name}", flush=True),
    )
    body = document(matrix, warnings=doubts(matrix, net))
    write_json(folder / runs.RESULTS / "robustness.json", body)
    kept = {key: body[key] for key in ("headline", "integer", "warnings")}
    clean = {str(found.bits): found.accuracy for found in accuracies(net, data.test)}
    clean |= {name: _clean(victim, data) for name, victim in victims.items()}
    written = {"choices": without_place(plain(job.config)), "protocol": said, "figures": figures(body, clean), **kept}
    write_json(folder / runs.RESULTS / RESULT, written)


def finished(plan: list[Job], work: Path, said: Json) -> dict[str, Json]:
    """Return the results that are there, whichever process made them; those of other choices do not count."""
    found: dict[str, Json] = {}
    for job in plan:
        path = work / job.name / runs.RESULTS / RESULT
        if path.exists() and _fits(body := read_json(path), job, said):
            found[job.name] = body
    return found


def figures(body: Json, clean: dict[str, float]) -> Json:
    """Return one run's numbers: per width (or victim), accuracy on the whole test split, and the largest success.

    The latter by what the patches were made on (`white_box`; `transfer`, which is everything else, and its parts
    `other`, one other width, `joint` and `tuned`), by size and by attack.
    """
    rows: Json = {}
    for line in body["headline"]:
        name = line["name"]
        row: Json = {"clean": clean[name]}
        for kind, top in line["untargeted"].items():
            row[kind] = top["rate"]
            row[f"{kind}_worst"] = top["worst"]["rate"]
        for kind, top in line["targeted"].items():
            row[f"{kind}_targeted"] = top["rate"]
        for other in body["by_size"]:
            if other["name"] == name:
                row |= {f"{kind}_{other['size']}px": top["rate"] for kind, top in other["untargeted"].items()}
        row |= _by_attack(body, name)
        rows[name] = row
    return rows


def summary(results: dict[str, Json]) -> Json:
    """Return mean, spread and values over seeds, in per cent, for every arm, width and figure."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, body in results.items():
        arm = name.partition("-")[2].rpartition("-")[0]
        for width, row in body["figures"].items():
            place = found.setdefault(RANDOM if width == RANDOM else arm, {}).setdefault(width, {})
            for key, value in row.items():
                place.setdefault(key, []).append(round(100 * value, 2))
    return {
        arm: {width: {key: _spread(v) for key, v in row.items()} for width, row in rows.items()}
        for arm, rows in found.items()
    }


def goals(found: Json, seen: int, sizes: list[int]) -> Json:
    """Return by arm and width whether it meets what a defence is asked for here, judged on the means over seeds.

    `white_box`: at most 0.6 of `standard`'s at the seen size. `transfer`: at most half of `standard`'s, and 10 points
    below `patch-at`'s. `unseen`: the white box at other sizes at most 3 points above. `clean`: at most 4 points lost.
    """
    white, moved = f"white_box_{seen}px", f"transfer_{seen}px"
    if not {"standard", "patch-at"} <= set(found):
        return {}
    said: Json = {}
    for arm, rows in found.items():
        for width, row in rows.items():
            bare, control = found["standard"].get(width), found["patch-at"].get(width)
            if bare is None or control is None or arm == "standard" or white not in row:
                continue
            mean = {key: value["mean"] for key, value in row.items()}
            said.setdefault(arm, {})[width] = {
                "white_box": mean[white] <= 0.6 * bare[white]["mean"],
                "transfer": moved in mean
                and mean[moved] <= min(0.5 * bare[moved]["mean"], control[moved]["mean"] - 10),
                "unseen": all(mean[f"white_box_{size}px"] <= mean[white] + 3 for size in sizes),
                "clean": mean["clean"] >= bare["clean"]["mean"] - 4,
            }
    return said


def _by_attack(body: Json, name: str) -> Json:
    """Return the largest success of each attack over surrogates, in all and by size, and of each kind of surrogate."""
    row: Json = {}
    for cell in body["cells"]:
        if cell["probe"]:
            continue
        made = cell["surrogate"]
        white = made in (name, "joint" if name == RANDOM else name)
        kind = "white_box" if white else "transfer"
        part = [] if white else [f"{'other' if made.isdecimal() else made}_{cell['size']}px"]
        rate = next(r["untargeted"]["rate"] for r in cell["results"] if r["name"] == name)
        attack, size = cell["attack"], cell["size"]
        for key in (f"{kind}_{attack}", f"{kind}_{attack}_{size}px", *part):
            row[key] = max(rate, row.get(key, 0.0))
    return row


@torch.no_grad()
def _clean(victim: RandomWidth, data: Dataset) -> float:
    right = [(victim(images).argmax(-1) == labels).float() for images, labels in batches(data.test, 500, device=DEVICE)]
    return float(torch.cat(right).mean())


def _spread(values: list[float]) -> Json:
    std = round(statistics.stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 2), "std": std, "values": values}


def _report(name: str):
    def report(p: Progress) -> None:
        if p.accuracy:
            losses = " ".join(f"{k} {v:.3f}" for k, v in p.losses.items() if not k.startswith("ce_"))
            text = " ".join(f"{b}:{a:.3f}" for b, a in p.accuracy.items())
            print(f"{name} epoch {p.epoch + 1}/{p.epochs} {losses} {text}", flush=True)

    return report


def adopt(out: Path, plan: list[Job], work: Path, said: Json) -> None:
    """Take over the results of a file that this plan wrote before, here or elsewhere."""
    if not out.exists():
        return
    body = read_json(out)
    for job in plan:
        path = work / job.name / runs.RESULTS / RESULT
        kept = body["results"].get(job.name)
        if kept and _fits(kept, job, said) and not (path.exists() and _fits(read_json(path), job, said)):
            write_json(path, kept)


def _fits(result: Json, job: Job, said: Json) -> bool:
    """Return whether a result is this job's, attacked as is said."""
    return bool(result["choices"] == without_place(plain(job.config)) and result.get("protocol") == said)


def main() -> None:
    """Run a plan to its end and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=("signs", "cifar"), required=True)
    parser.add_argument("--data", help="data specification; the plan's own by default")
    parser.add_argument("--work", type=Path, default=Path(".work/defenses"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--model", help="resnet8 by default; resnet20 and resnet56 want a GPU")
    parser.add_argument("--images", type=int, default=120, help="test images that are attacked")
    parser.add_argument("--effort", choices=sorted(EFFORTS), default="standard")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--several", nargs="+", default=["located"], help="attacks also made on all widths jointly")
    parser.add_argument("--sizes", nargs="+", type=int, default=[6, 8, 10])
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--shard", default="0/1", help="i/n: take every n-th job from the i-th")
    parser.add_argument("--collect", action="store_true", help="train nothing; write what is finished")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = SIGNS if args.plan == "signs" else CIFAR
    if not (args.data or config.data):
        parser.error("--plan cifar needs --data")
    config = replace(config, data=args.data or config.data, epochs=args.epochs or config.epochs)
    config = replace(config, model=args.model or config.model)
    seeds = args.seeds or (2 if args.plan == "signs" else 1)
    plan = Plan(
        attacks=tuple(args.attacks),
        several=tuple(args.several),
        sizes=tuple(args.sizes),
        images=args.images,
        effort=EFFORTS[args.effort],
        batch_size=1000 if DEVICE == "cuda" else 100,
    )
    data = load(config.data)
    if args.plan == "cifar" and len(data.train) > CIFAR_TRAIN:
        data = replace(data, train=holdout(data.train, CIFAR_TRAIN, seed=0)[0])
    chosen = [job for job in jobs(args.plan, config, seeds) if not args.arms or _arm(job) in args.arms]
    said = {"model": config.model, "epochs": config.epochs, "images": args.images, "effort": asdict(plan.effort)}
    said |= {"attacks": list(args.attacks), "several": list(args.several), "sizes": list(args.sizes)}
    said |= {"train": len(data.train), "towards": list(plan.towards), "seed": plan.seed}
    adopt(args.out, chosen, args.work, said)
    index, count = (int(part) for part in args.shard.split("/"))
    for job in chosen[index::count]:
        if not args.collect and job.name not in finished(chosen, args.work, said):
            run_job(job, args.work, data, plan, said)
        results = finished(chosen, args.work, said)
        body = {
            "command": f"python benchmarks/defenses.py --plan {args.plan}",
            "protocol": said,
            "seeds": seeds,
            "finished": len(results),
            "jobs": len(chosen),
            "commit": commit(),
            "versions": runs.versions(),
            "hardware": runs.hardware(),
            "arms": (found := summary(results)),
            "goals": goals(found, min(args.sizes), args.sizes),
            "warnings": {name: body["warnings"] for name, body in results.items() if body["warnings"]},
            "results": results,
        }
        write_json(args.out, body)


def _arm(job: Job) -> str:
    return job.name.partition("-")[2].rpartition("-")[0]


if __name__ == "__main__":
    main()
