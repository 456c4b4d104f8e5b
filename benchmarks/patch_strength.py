"""Is our GAP at least as strong as ART's AdversarialPatchPyTorch? Same network, images, side, place and gradient steps.

    python benchmarks/patch_strength.py RUN --out docs/results/patch_strength.json

RUN is any run folder whose network has the width 32. ART gets its best out of four settings (Adam or PGD, two learning
rates each) per target; our GAP runs once with its defaults. Both patches are rounded to bytes and pasted pixel for
pixel, over the same held-out images; success is targeted, among images that are right and not of the target class.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from provenance import commit, without_place
from torch import Tensor, nn

from edgeq.attacks import GAP, Goal, Success, Surrogate, answers, pixels, success, surrogate
from edgeq.attacks.patch import Placement, as_float, like, paste
from edgeq.data import Split, holdout, load
from edgeq.errors import InputError, require
from edgeq.files import write_json
from edgeq.runs import hardware, load_run, versions

SETTINGS = (("Adam", 0.05), ("Adam", 0.02), ("pgd", 0.05), ("pgd", 0.02))
BATCH = 64


class Wrapped(nn.Module):
    """A victim as the module that ART wants; ART computes in float64."""

    def __init__(self, victim: Surrogate) -> None:
        super().__init__()
        self.victim = victim
        self.net = victim.net

    def forward(self, images: Tensor) -> Tensor:
        return self.victim(images.float().contiguous())


def art_patch(victim: Surrogate, images: Tensor, target: int, setting: tuple[str, float], args) -> Tensor:
    """Return ART's patch as bytes in [0, 1]."""
    estimators = require("art.estimators.classification", "art")
    evasion = require("art.attacks.evasion.adversarial_patch.adversarial_patch_pytorch", "art")
    shape, classes = tuple(images.shape[1:]), int(victim(as_float(images[:1])).shape[1])
    model = estimators.PyTorchClassifier(
        model=Wrapped(victim),
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = evasion.AdversarialPatchPyTorch(
        model,
        rotation_max=0.0,
        scale_min=1.0 / 64,
        scale_max=1.0,
        learning_rate=setting[1],
        max_iter=max(1, args.steps * BATCH // len(images)),  # passes over the images
        batch_size=BATCH,
        patch_shape=(shape[0], args.size, args.size),
        patch_location=(args.left, args.top),
        patch_type="square",
        optimizer=setting[0],
        targeted=True,
        verbose=False,
    )
    np.random.seed(0)
    torch.manual_seed(0)
    patch, _ = attack.generate(as_float(images).numpy(), np.eye(classes, dtype=np.float32)[[target] * len(images)])
    return (torch.from_numpy(np.asarray(patch)).float() * 255).round().clamp(0, 255)[None] / 255


def measure(victim: Surrogate, test: Split, clean: Tensor, patch: Tensor, target: int, args) -> Success:
    """Return the targeted success of a patch at the fixed place."""
    where = torch.full((len(test),), args.top), torch.full((len(test),), args.left)
    attacked = paste(test.images, like(test.images, patch), Placement(*where))
    return success(clean, answers(victim, attacked), Goal.towards(test.labels, target))


def compare(
    victim: Surrogate, train: Split, test: Split, clean: Tensor, target: int, args
) -> tuple[dict, list[Success]]:
    """Return the table's row of one target, and the successes of our patch and of ART's best."""
    other = train.subset((train.labels != target).nonzero()[:, 0])
    began = time.perf_counter()
    attack = GAP(
        size=args.size,
        ascent=replace(GAP().ascent, steps=args.steps),
        eot=pixels((args.top, args.left)),
        batch_size=BATCH,
    )
    patch = attack.run(victim, other.images, Goal.towards(other.labels, target)).patch
    ours_s = time.perf_counter() - began
    ours = measure(victim, test, clean, patch, target, args)
    began = time.perf_counter()
    theirs = {}
    for rule, rate in SETTINGS:
        patch = art_patch(victim, other.images, target, (rule, rate), args)
        theirs[f"{rule} {rate}"] = measure(victim, test, clean, patch, target, args)
    art_s = (time.perf_counter() - began) / len(SETTINGS)
    best = max(theirs.values(), key=lambda s: s.rate)
    row = {
        "target": target,
        "edgeq": round(ours.rate, 4),
        "art": round(best.rate, 4),
        "art_settings": {name: round(result.rate, 4) for name, result in theirs.items()},
        "edgeq_s": round(ours_s, 1),
        "art_s": round(art_s, 1),
    }
    return row, [ours, best]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--left", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=256, help="training images that patches are made with")
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--targets", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    """Attack every target with both and write the table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    info, net = load_run(args.run)
    data = load(info.data)
    if not isinstance(data.train, Split) or not isinstance(data.test, Split):
        raise InputError(f"expected data in memory, got {info.data}; use signs or a folder of small images")
    net.requires_grad_(False)
    victim = surrogate(net, 32)
    train, test = (  # drawn: folders have their classes in order
        holdout(split, count, seed=0)[0] if count < len(split) else split
        for split, count in ((data.train, args.images), (data.test, args.test))
    )
    clean = answers(victim, test.images)
    rows, results = [], []
    for target in args.targets:
        row, pair = compare(victim, train, test, clean, target, args)
        rows.append(row)
        results.append(pair)
        print(row, flush=True)
    total = {}
    for name, column in zip(("edgeq", "art"), zip(*results, strict=True), strict=True):
        both = Success(sum(s.wins for s in column), sum(s.total for s in column))
        total[name] = {"rate": round(both.rate, 4), "interval": [round(v, 4) for v in both.interval()]}
    body = {
        "model": info.model,
        "training": without_place(info.training),
        "clean_accuracy": round(float((clean.argmax(1) == test.labels).float().mean()), 4),
        **{name: getattr(args, name) for name in ("size", "top", "left", "steps", "images", "test")},
        "rows": rows,
        "total": total,
        "commit": commit(),
        "versions": {**versions(), "art": require("art", "art").__version__},
        "hardware": hardware(),
    }
    write_json(args.out, body)
    print(total)


if __name__ == "__main__":
    main()
