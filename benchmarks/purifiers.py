"""What the purifiers keep, cost and withstand: the papers' protocols beside the strongest attacks of ours.

    python benchmarks/purifiers.py pipelines --out docs/results/purifiers_pipelines.json
    python benchmarks/purifiers.py sigma --out docs/results/purifiers_sigma.json
    python benchmarks/purifiers.py srl --out docs/results/purifiers_srl.json
    python benchmarks/purifiers.py purevq --data folder:PATH --out docs/results/purifiers_purevq.json
    python benchmarks/purifiers.py throughput --out docs/results/purifiers_throughput.json

`pipelines`: a plain and an adversarially trained classifier, bare, behind ALP and behind PureVQ. `paper` is PGD with 7
steps and one start, on the bare classifier (what is left to an attacker who takes the purifier for non-differentiable)
and through the purifier with one draw a step; `ours` is the minimum over every way of attack, image by image.

`sigma`: ALP at fixed noise: fidelity, accuracy by one draw and by twenty, both attacked, and what they cost.

`srl`: autoencoders smoothed with several weights of the clean term, with the decoder frozen and free, beside their
start and beside a control that trains on without attacks; each attacked by one who knows it. `within` says whether its
clean PSNR is within 0.3 dB of the start's: only such rows may be compared.

`purevq`: PureVQ at full size; a classifier trained on the images and one trained on purified images, each judged on
test images of its kind.

`throughput`: images a second of the purifiers, beside the U-Net that a diffusion purifier calls once a step (the one
of DDPM on CIFAR-10, 35.7 million weights, random here: time does not hang on them).

Every training is a run folder under --work and goes on where it was stopped; so do the rows of --out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from provenance import commit

from edgeq import runs
from edgeq.attacks import surrogate
from edgeq.attacks.latent import autoencoder
from edgeq.attacks.latent_report import latents_withstood
from edgeq.attacks.pipeline import Effort
from edgeq.attacks.pipeline_report import Assault, Nothing, bare_accuracy, withstood
from edgeq.data import Dataset, Split, batches, holdout, load
from edgeq.defenses import DWQ
from edgeq.evaluate import accuracies
from edgeq.files import read_json, write_json
from edgeq.launch import image_shape
from edgeq.poison.cache import in_memory
from edgeq.poison.filters import purified
from edgeq.purifiers import (
    ALP,
    VAE,
    AbstractPurifier,
    Draw,
    Method,
    PureVQ,
    Purified,
    PurifierConfig,
    fidelity,
    load_purifier,
    purified_accuracies,
    srl_from,
    train_purifier,
)
from edgeq.purifiers.alp import SAMPLES
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.training import TrainConfig, train

SIGNS = "signs:train=2560,test=1000"
SMALL: dict[str, Any] = {"channels": 32, "blocks": 1}
CLASSIFIER = TrainConfig(data=SIGNS, epochs=12, batch_size=32, quant=QuantConfig(bits=(32,)))
ADVERSARIAL = replace(CLASSIFIER, defense="dwq", dwq=DWQ(eps=8.0, step=2.0, steps=7))
PURIFIER = PurifierConfig(data=SIGNS, epochs=30)
CIFAR = TrainConfig(data="", epochs=6, batch_size=64, lr=0.1, quant=QuantConfig(bits=(32,)))
SIGMAS = (0.1, 0.25, 0.5, 1.0)
SMOOTHING = 10  # epochs
PAPER = Effort(steps=7, starts=1)
WITHIN = 0.3  # dB
DIFFUSION_STEPS = 100  # DiffPure on CIFAR-10 at 8/255: a tenth of 1,000 steps
Json = dict[str, Any]  # Any: JSON
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """Where runs lie, and how hard to try."""

    work: Path
    rows: "Rows"
    images: int
    effort: Effort
    eps: tuple[int, ...]
    seed: int

    def classifier(self, name: str, config: TrainConfig, data: Dataset) -> MultiBitNet:
        """Train a classifier, or load it."""
        folder = self.work / f"{name}-{self.seed}"
        if (folder / runs.WEIGHTS).exists():
            return runs.load_run(folder)[1]
        say(f"training {folder}")
        return train(replace(config, seed=self.seed), out=folder, resume=folder.exists(), dataset=data)

    def purifier(self, name: str, method: Method, data: Dataset, **changes: Any) -> AbstractPurifier:
        """Train a purifier, or load it."""
        folder = self.work / f"{name}-{self.seed}"
        if not (folder / runs.WEIGHTS).exists():
            say(f"training {folder}")
            config = replace(PURIFIER, method=method, seed=self.seed, **changes)
            train_purifier(config, out=folder, resume=folder.exists(), dataset=data)
        return load_purifier(folder)[1]

    def part(self, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images that are attacked, and their classes."""
        chosen = holdout(in_memory(data)[1], self.images, seed=2)[0]
        return next(batches(chosen, self.images))

    def assault(self, **changes: Any) -> Assault:
        """Return the attack of ours."""
        return replace(Assault(eps=self.eps, effort=self.effort, seed=self.seed), **changes)


class Rows:
    """The rows of a table, kept one by one."""

    def __init__(self, out: Path, plan: str, said: Json) -> None:
        self.out, self.head = out, {"command": f"python benchmarks/purifiers.py {plan}", "protocol": said}
        self.rows: dict[str, Json] = {}
        if out.exists():
            body = read_json(out)
            if body["protocol"] != said:
                raise SystemExit(f"expected rows of the same protocol in {out}, got another one; name another --out")
            self.rows = body["rows"]

    def add(self, name: str, make: Callable[[], Json]) -> Json:
        """Make a row unless it is there."""
        if name not in self.rows:
            started = time.perf_counter()
            self.rows[name] = make()
            facts = {"commit": commit(), "versions": runs.versions(), "hardware": runs.hardware()}
            write_json(self.out, {**self.head, **facts, "rows": self.rows})
            say(f"{name}: {time.perf_counter() - started:.0f} s")
        return self.rows[name]


def pipelines(bench: Bench, data: Dataset) -> None:
    """Attack classifiers bare and behind purifiers."""
    images, labels = bench.part(data)
    methods: dict[str, Method | None] = {"none": None, "alp": ALP(**SMALL), "purevq": PureVQ(**SMALL)}
    for name, config in {"plain": CLASSIFIER, "adversarial": ADVERSARIAL}.items():
        net = bench.classifier(name, config, data)
        for kind, method in methods.items():
            purifier = bench.purifier(kind, method, data) if method else None

            def row(purifier: AbstractPurifier | None = purifier, net: MultiBitNet = net) -> Json:
                if purifier is None:
                    return _bare(bench, net, data)
                samples = SAMPLES if purifier.stochastic else 1
                deployed = Purified(purifier, surrogate(net, 32), samples, Draw(bench.seed))
                clean = purified_accuracies(purifier, net, data.test, bits=(32,), samples=samples, seed=bench.seed)
                paper = bench.assault(effort=PAPER, ways=("transfer", "straight"))
                return {
                    "clean": clean[0].accuracy,
                    "fidelity": fidelity(purifier, data.test),
                    "paper": withstood(deployed, images, labels, paper),
                    "ours": withstood(deployed, images, labels, bench.assault(), progress=say),
                }

            bench.rows.add(f"{name} {kind}", row)


def _bare(bench: Bench, net: MultiBitNet, data: Dataset) -> Json:
    images, labels = bench.part(data)
    alone = Purified(Nothing(), surrogate(net, 32))
    ways = ("straight", "fab", "square")
    return {
        "clean": accuracies(net, data.test)[0].accuracy,
        "paper": bare_accuracy(alone, images, labels, bench.assault(effort=PAPER)),
        "ours": withstood(alone, images, labels, bench.assault(ways=ways), progress=say),
    }


def sigma(bench: Bench, data: Dataset) -> None:
    """Sweep ALP's noise."""
    images, labels = bench.part(data)
    net = bench.classifier("plain", CLASSIFIER, data)
    for value in SIGMAS:

        def row(value: float = value) -> Json:
            purifier = bench.purifier(f"alp-{value}", ALP(**SMALL, sigma=value, learn_sigma=False), data)
            found: Json = {"fidelity": fidelity(purifier, data.test)}
            for samples in (1, SAMPLES):
                deployed = Purified(purifier, surrogate(net, 32), samples, Draw(bench.seed))
                clean = purified_accuracies(purifier, net, data.test, bits=(32,), samples=samples, seed=bench.seed)
                withstand = withstood(deployed, images, labels, bench.assault(ways=("straight", "eot")), progress=say)
                cost = _milliseconds(lambda deployed=deployed: deployed(images[:1]))
                found[str(samples)] = {"clean": clean[0].accuracy, "ours": withstand, "ms": cost}
            return found

        bench.rows.add(f"sigma {value}", row)


def srl(bench: Bench, data: Dataset) -> None:
    """Smooth an autoencoder in several ways and attack each."""
    images, labels = bench.part(data)
    network = VAE(**SMALL)
    start = bench.purifier("vae", network, data)
    longer = PURIFIER.epochs + SMOOTHING
    before = fidelity(start, data.test)["psnr"]
    folder = bench.work / f"vae-{bench.seed}"
    choices: dict[str, Json] = {
        f"clean {clean:g}, decoder {'free' if free else 'frozen'}": {"clean": clean, "frozen_decoder": not free}
        for free in (False, True)
        for clean in (1.0, 4.0, 16.0)
    }

    def row(purifier: AbstractPurifier) -> Json:
        psnr = fidelity(purifier, data.test)["psnr"]
        models = {"itself": autoencoder(purifier)}
        body = latents_withstood(models, images, labels, bench.assault(), progress=say)
        return {"psnr": psnr, "within": abs(psnr - before) <= WITHIN, "attacked": body}

    bench.rows.add("start", lambda: row(start))
    bench.rows.add(
        "start, as many epochs more", lambda: row(bench.purifier("vae-longer", network, data, epochs=longer))
    )
    for name, chosen in choices.items():
        key = "srl-" + name.replace(" ", "-").replace(",", "")
        method = srl_from(folder, **chosen)
        bench.rows.add(name, lambda key=key, method=method: row(bench.purifier(key, method, data, epochs=SMOOTHING)))


def purevq(bench: Bench, data: Dataset) -> None:
    """Train PureVQ at full size, and classifiers on images as they are and purified."""
    config = replace(CIFAR, data=data.name)
    purifier = bench.purifier("purevq-full", PureVQ(), data, epochs=16)
    bench.rows.add("fidelity", lambda: fidelity(purifier, data.test))

    def accuracy(name: str, seen: Dataset) -> Json:
        net = bench.classifier(name, config, seen)
        return {"clean": accuracies(net, seen.test)[0].accuracy, "on_images": accuracies(net, data.test)[0].accuracy}

    bench.rows.add("classifier on images", lambda: accuracy("cifar-images", data))

    def cleaned() -> Json:
        through = purified(purifier)
        train, test = (_through(through, split) for split in in_memory(data))
        return accuracy("cifar-purified", replace(data, train=train, test=test))

    bench.rows.add("classifier on purified images", cleaned)


def throughput(bench: Bench, data: Dataset) -> None:
    """Time the purifiers and a diffusion model's U-Net."""
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ImportError:
        raise SystemExit("expected the package diffusers; run pip install 'edgeq[diffusers]'") from None
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    images = next(batches(data.test, 16))[0]
    calls: dict[str, Callable[[], object]] = {}
    for name, method in {"purevq": PureVQ(), "alp": ALP(), "vae": VAE()}.items():
        purifier = method.build(image_shape(data), 16).eval()
        calls[name] = lambda purifier=purifier: purifier(images)
    scaled, step = images / 127.5 - 1.0, torch.tensor(100)
    calls["unet"] = lambda: unet(scaled, step)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for number in range(7):  # interleaved; the first is a warm-up
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                if number:
                    times[name].append(time.perf_counter() - started)
    step_s = statistics.median(times["unet"])
    for name, taken in times.items():
        seconds = statistics.median(taken)
        steps = DIFFUSION_STEPS if name == "unet" else 1
        speed = {"seconds": seconds, "calls": steps, "images_per_second": len(images) / (seconds * steps)}
        speed |= {"times_diffusion": DIFFUSION_STEPS * step_s / (seconds * steps), "range": [min(taken), max(taken)]}
        bench.rows.add(name, lambda speed=speed: speed)


def say(line: str) -> None:
    """Tell whoever looks."""
    print(line, flush=True)


def _through(through: Callable[[torch.Tensor], torch.Tensor], split: Split) -> Split:
    return replace(split, images=through(split.images))


def _milliseconds(call: Callable[[], object]) -> float:
    taken = []
    with torch.no_grad():
        for _ in range(20):
            started = time.perf_counter()
            call()
            taken.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(taken[3:]), 3)


PLANS: dict[str, Callable[[Bench, Dataset], None]] = {
    "pipelines": pipelines,
    "sigma": sigma,
    "srl": srl,
    "purevq": purevq,
    "throughput": throughput,
}


def main() -> None:
    """Carry out a plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=sorted(PLANS))
    parser.add_argument("--data", default=SIGNS)
    parser.add_argument("--work", type=Path, default=Path(".work/purifiers"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100, help="test images that are attacked")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--eps", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    effort = Effort(steps=args.steps, starts=args.starts, queries=args.queries)
    said: Json = {"data": args.data.partition(":")[0], "images": args.images, "eps": args.eps, "seed": args.seed}
    said |= {"steps": args.steps, "starts": args.starts, "queries": args.queries}
    data = load(args.data)
    rows = Rows(args.out, args.plan, said)
    PLANS[args.plan](Bench(args.work, rows, args.images, effort, tuple(args.eps), args.seed), data)


if __name__ == "__main__":
    main()
