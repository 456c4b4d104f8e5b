"""What the purifiers keep, cost and withstand: the papers' protocols beside the strongest attacks of ours.

    python benchmarks/purifiers.py pipelines --out docs/results/purifiers_pipelines.json
    python benchmarks/purifiers.py sigma --out docs/results/purifiers_sigma.json
    python benchmarks/purifiers.py srl --out docs/results/purifiers_srl.json
    python benchmarks/purifiers.py shield --out docs/results/purifiers_shield.json
    python benchmarks/purifiers.py purevq --data folder:PATH --out docs/results/purifiers_purevq.json
    python benchmarks/purifiers.py throughput --out docs/results/purifiers_throughput.json

`pipelines`: a plain and an adversarially trained classifier, bare, behind ALP and behind PureVQ. `paper` is PGD on the
cross-entropy with 7 steps, one start and the last iterate: through the purifier, and made on the bare classifier (all
that is left to an attacker who takes the purifier for non-differentiable). `ours` is the minimum over every way of
attack, by PGD and by Auto-PGD, image by image.

`sigma`: ALP at fixed noise: fidelity, accuracy by one draw and by twenty, both attacked, and what they cost.

`srl`: autoencoders smoothed with several weights of the clean term, with the decoder frozen and free, beside their
start and beside controls: the same training with an attack of next to nothing. Each is attacked by one who knows it,
and with what was made on the start. `within` says whether its clean PSNR is within 0.3 dB of its control's: only such
rows may be compared.

`shield`: two towers trained on captions, PerturbShield on them, its ablation, and adversarial training alone.

`purevq`: PureVQ at full size; a classifier trained on the images and one trained on purified images, each judged on
test images of its kind.

`throughput`: images a second of the purifiers, beside U-Nets that a diffusion purifier calls once a step: that of DDPM
on CIFAR-10, and one with about as many weights as PureVQ has (all random here: time does not hang on them).

Every training is a run folder under --work and goes on where it was stopped; so do the rows of --out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from provenance import commit, without_place

from edgeq import runs
from edgeq.attacks import surrogate
from edgeq.attacks.latent import autoencoder
from edgeq.attacks.latent_report import latents_withstood
from edgeq.attacks.pipeline import Effort
from edgeq.attacks.pipeline_report import Assault, Nothing, published_accuracy, withstood
from edgeq.config import plain
from edgeq.data import Dataset, Split, batches, holdout, load
from edgeq.defenses import DWQ
from edgeq.evaluate import accuracies
from edgeq.files import read_json, write_json
from edgeq.launch import check_choices, image_shape
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
    clean_measures,
    fidelity,
    load_guard,
    load_purifier,
    purified_accuracies,
    shield_from,
    shielded,
    srl_from,
    train_purifier,
)
from edgeq.purifiers.alp import SAMPLES
from edgeq.purifiers.config import plain as purifier_choices
from edgeq.purifiers.folders import read_info, towers_of
from edgeq.purifiers.guarded import GuardedTowers
from edgeq.purifiers.towers import Towers
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.robustness.store import fingerprint
from edgeq.training import TrainConfig, train

Json = dict[str, Any]  # Any: JSON
SIGNS = "signs:train=2560,test=1000"
SMALL: dict[str, Any] = {"channels": 32, "blocks": 1}
CLASSIFIER = TrainConfig(data=SIGNS, epochs=12, batch_size=32, quant=QuantConfig(bits=(32,)))
ADVERSARIAL = replace(CLASSIFIER, defense="dwq", dwq=DWQ(eps=8.0, step=2.0, steps=7))
PURIFIER = PurifierConfig(data=SIGNS, epochs=30)
CIFAR = TrainConfig(data="", epochs=6, batch_size=64, lr=0.1, quant=QuantConfig(bits=(32,)))
SIGMAS = (0.1, 0.25, 0.5, 1.0)
SMOOTHING = 10  # epochs
PAPER = Effort(steps=7)
NOTHING = 1e-3  # eps of a control's attack, of 255
CLEANS = (1.0, 4.0, 16.0)  # weights of SRL-VAE's clean term
TOWERS = 40  # epochs
SHIELDS: dict[str, Json] = {
    "shield": {"features": "grid"},
    "shield of the class feature": {"features": "class"},
    "shield without a codebook": {"features": "grid", "discrete": False},
    "adversarial training alone": {"features": "none"},
}
WITHIN = 0.3  # dB
DIFFUSION_STEPS = 100  # DiffPure on CIFAR-10 at 8/255: a tenth of 1,000 steps
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """Where runs lie, and how hard to try."""

    work: Path
    rows: "Rows"
    data: str
    images: int
    assault: Assault
    device: str

    @property
    def seed(self) -> int:
        """Of the trainings, too."""
        return self.assault.seed

    def classifier(self, name: str, config: TrainConfig, data: Dataset) -> MultiBitNet:
        """Train a classifier unless it is there, and load it."""
        folder = self.work / f"{name}-{self.seed}"
        config = replace(config, data=self.data, seed=self.seed)
        if (folder / runs.WEIGHTS).exists():
            check_choices(folder, config)
        else:
            say(f"training {folder}")
            train(config, out=folder, resume=folder.exists(), dataset=data)
        return runs.load_run(folder, device=self.device)[1]

    def guard(self, name: str, method: Method, data: Dataset, **changes: Any) -> Path:
        """Train a purifier or a shield unless it is there, and return its folder."""
        folder = self.work / f"{name}-{self.seed}"
        config = replace(PURIFIER, method=method, data=self.data, seed=self.seed, **changes)
        if (folder / runs.WEIGHTS).exists():
            if purifier_choices(read_info(folder).config) != purifier_choices(config):
                raise SystemExit(f"expected {folder} with the choices of now, got others; remove it or name a --work")
        else:
            say(f"training {folder}")
            train_purifier(config, out=folder, resume=folder.exists(), dataset=data)
        return folder

    def purifier(self, name: str, method: Method, data: Dataset, **changes: Any) -> AbstractPurifier:
        """Train a purifier unless it is there, and load it."""
        return load_purifier(self.guard(name, method, data, **changes), device=self.device)[1]

    def part(self, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images that are attacked, and their classes."""
        chosen = holdout(in_memory(data)[1], self.images, seed=2)[0]
        return next(batches(chosen, self.images, device=self.device))


class Rows:
    """The rows of a table, kept one by one."""

    def __init__(self, out: Path, plan: str, said: Json) -> None:
        said = {"plan": plan, **said}
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
                paper, alone = replace(bench.assault, effort=PAPER), Purified(Nothing(), surrogate(net, 32))
                return {
                    "clean": clean[0].accuracy,
                    "fidelity": fidelity(purifier, data.test),
                    "paper": {
                        "through": published_accuracy(deployed, images, labels, paper),
                        "made on the bare classifier": published_accuracy(
                            deployed, images, labels, paper, made_on=alone
                        ),
                    },
                    "ours": withstood(deployed, images, labels, bench.assault, progress=say),
                }

            bench.rows.add(f"{name} {kind}", row)


def _bare(bench: Bench, net: MultiBitNet, data: Dataset) -> Json:
    images, labels = bench.part(data)
    alone = Purified(Nothing(), surrogate(net, 32))
    ways = ("straight", "fab", "square")
    return {
        "clean": accuracies(net, data.test)[0].accuracy,
        "paper": {"through": published_accuracy(alone, images, labels, replace(bench.assault, effort=PAPER))},
        "ours": withstood(alone, images, labels, replace(bench.assault, ways=ways), progress=say),
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
                chosen = replace(bench.assault, ways=("straight", "eot"))
                withstand = withstood(deployed, images, labels, chosen, progress=say)
                cost = _milliseconds(lambda deployed=deployed: deployed(images[:1]))
                found[str(samples)] = {"clean": clean[0].accuracy, "ours": withstand, "ms": cost}
            return found

        bench.rows.add(f"sigma {value}", row)


def srl(bench: Bench, data: Dataset) -> None:
    """Smooth an autoencoder in several ways, and attack each and its control."""
    images, labels = bench.part(data)
    folder = bench.guard("vae", VAE(**SMALL), data)
    start = load_purifier(folder, device=bench.device)[1]

    def row(purifier: AbstractPurifier, like: float | None = None) -> Json:
        psnr = float(fidelity(purifier, data.test)["psnr"])
        models = {"start": autoencoder(start)} | ({} if purifier is start else {"itself": autoencoder(purifier)})
        body = latents_withstood(models, images, labels, bench.assault, progress=say)
        within = {} if like is None else {"within": abs(psnr - like) <= WITHIN}
        return {"psnr": psnr, **within, "attacked": body}

    def smoothed(name: str, **chosen: Any) -> AbstractPurifier:
        key = "srl-" + name.replace(" ", "-").replace(",", "")
        return bench.purifier(key, srl_from(folder, **chosen), data, epochs=SMOOTHING)

    bench.rows.add("start", lambda: row(start))
    for frozen in (True, False):
        decoder = f"decoder {'frozen' if frozen else 'free'}"
        name = f"control, {decoder}"
        control = bench.rows.add(
            name, lambda name=name, frozen=frozen: row(smoothed(name, eps=NOTHING, frozen_decoder=frozen))
        )
        for clean in CLEANS:
            name = f"clean {clean:g}, {decoder}"
            bench.rows.add(
                name,
                lambda name=name, clean=clean, frozen=frozen, psnr=control["psnr"]: row(
                    smoothed(name, clean=clean, frozen_decoder=frozen), psnr
                ),
            )


def shield(bench: Bench, data: Dataset) -> None:
    """Train towers and what guards them, and attack all."""
    images, labels = bench.part(data)
    folder = bench.guard("towers", Towers(data.classes), data, epochs=TOWERS)
    for name, chosen in SHIELDS.items():

        def row(name: str = name, chosen: Json = chosen) -> Json:
            method = shield_from(folder, data.classes, network=towers_of(folder), **chosen)
            guard = load_guard(bench.guard(name.replace(" ", "-"), method, data), device=bench.device)[1]
            assert isinstance(guard, GuardedTowers)
            deployed, paper = shielded(guard), replace(bench.assault, effort=PAPER)
            return {
                "clean": clean_measures(guard, data.test),
                "paper": {"through": published_accuracy(deployed, images, labels, paper)},
                "ours": withstood(deployed, images, labels, bench.assault, progress=say),
            }

        bench.rows.add(name, row)


def purevq(bench: Bench, data: Dataset) -> None:
    """Train PureVQ at full size, and classifiers on images as they are and purified."""
    purifier = bench.purifier("purevq-full", PureVQ(), data, epochs=16)
    bench.rows.add("fidelity", lambda: fidelity(purifier, data.test))

    def accuracy(name: str, seen: Dataset) -> Json:
        net = bench.classifier(name, CIFAR, seen)
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

    def unet(*channels: int, groups: int) -> Any:
        return UNet2DModel(
            sample_size=32,
            block_out_channels=channels,
            layers_per_block=2,
            norm_num_groups=groups,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        ).eval()

    unets = {"unet": unet(128, 256, 256, 256, groups=32), "unet of PureVQ's size": unet(16, 24, 24, 24, groups=8)}
    images = next(batches(data.test, 16))[0]
    calls: dict[str, Callable[[], object]] = {}
    weights = {name: sum(p.numel() for p in network.parameters()) for name, network in unets.items()}
    for name, method in {"purevq": PureVQ(), "alp": ALP(), "vae": VAE()}.items():
        purifier = method.build(image_shape(data), 16).eval()
        weights[name] = sum(p.numel() for p in purifier.parameters())
        calls[name] = lambda purifier=purifier: purifier(images)
    scaled, step = images / 127.5 - 1.0, torch.tensor(100)
    calls |= {name: lambda network=network: network(scaled, step) for name, network in unets.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for number in range(7):  # interleaved; the first is a warm-up
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                if number:
                    times[name].append(time.perf_counter() - started)
    step_s = {name: statistics.median(times[name]) for name in unets}
    for name, taken in times.items():
        seconds = statistics.median(taken)
        steps = DIFFUSION_STEPS if name in unets else 1
        speed: Json = {"weights": weights[name], "seconds": seconds, "calls": steps}
        speed |= {"images_per_second": len(images) / (seconds * steps), "range": [min(taken), max(taken)]}
        speed["times"] = {unet: DIFFUSION_STEPS * one / (seconds * steps) for unet, one in step_s.items()}
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
    "shield": shield,
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
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--auto-starts", type=int, default=2, help="of Auto-PGD; 10 are AutoAttack's")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--eps", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    effort = Effort(steps=args.steps, starts=args.starts, queries=args.queries)
    assault = Assault(eps=tuple(args.eps), effort=effort, seed=args.seed, auto_starts=args.auto_starts)
    data = load(args.data)
    train_split, test = in_memory(data)
    trained = [without_place(plain(config)) for config in (CLASSIFIER, ADVERSARIAL, CIFAR)]
    pictures = fingerprint({"train": train_split.images, "test": test.images})
    said: Json = {"data": args.data.partition(":")[0], "pictures": pictures, "images": args.images}
    said |= {"assault": json.loads(json.dumps(asdict(assault))), "classifiers": trained}
    said |= {"purifier": purifier_choices(replace(PURIFIER, data="")), "towers": TOWERS, "smoothing": SMOOTHING}
    bench = Bench(args.work, Rows(args.out, args.plan, said), args.data, args.images, assault, args.device)
    PLANS[args.plan](bench, data)


if __name__ == "__main__":
    main()
