"""`edgeq purify evaluate`: what a purifier keeps, costs and withstands."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from edgeq.cli.command import (
    AbstractCommand,
    AllWidths,
    Document,
    MaybeCount,
    MaybeData,
    MaybeFile,
    MaybeFolder,
)
from edgeq.cli.purify_answering import evaluate_answering, found_in, keep, keep_samples
from edgeq.cli.purify_show import show_attacks, show_fidelity, show_latent, show_purified
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.attacks.pipeline_report import Assault
    from edgeq.purifiers.deep_metrics import DeepMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluate(AbstractCommand):
    """Measure how faithful a purifier is on clean images, what it costs a classifier, and what both withstand.

    Attributes:
        folder: A purifier's run folder.
        classifier: Run folder of the classifier behind it.
        against: all, or some of straight, soft, identity, eot, fixed, transfer, fab, square (see docs/purifiers.md). Or
            latent: attacks on the latents of a vae or srl, which need no classifier. A shield, which needs none
            either, has straight, soft, identity, class-branch, shield-branch, fab and square.
        control: Run folder of a shield that is attacked beside it, usually of --features none.
        eps: Largest changes of a pixel, of 255.
        images: Test images to attack.
        steps: Gradient steps of an attack.
        starts: Random starts of an attack.
        ascent: pgd, or auto: Auto-PGD with AutoAttack's losses; with --starts 10 --queries 5000 all of it.
        eot: alp: draws averaged in a step of eot.
        queries: Questions of square per image.
        bits: Widths of the classifier.
        data: Test on other data. Default: the classifier's, or what the purifier was trained on.
        samples: alp: draws whose logits are averaged (20).
        lpips: latent: LPIPS too, by AlexNet's weights in this file (torchvision's alexnet-owt-7be5be79.pth).
        fid: latent: FID too, by Inception's in this file (torch-fidelity's weights-inception-2015-12-05-6726825d.pth).
        seed: Decides the noise.
        device: Where to run.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    classifier: MaybeFolder = None
    against: Annotated[tuple[str, ...], arg(metavar="WAY …", help_behavior_hint="")] = ()
    control: MaybeFolder = None
    eps: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    images: int = 100
    steps: int = 100
    starts: int = 2
    ascent: Literal["pgd", "auto"] = "pgd"
    eot: int = 20
    queries: int = 2000
    bits: AllWidths = ()
    data: MaybeData = ""
    samples: MaybeCount = None
    lpips: MaybeFile = None
    fid: MaybeFile = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def run(self, talk: Talk) -> Document:
        """Measure."""
        with talk.busy("loading torch"):
            from edgeq.cli.measure import device
            from edgeq.data import load
            from edgeq.purifiers import fidelity, load_purifier
            from edgeq.purifiers.folders import read_info
        if self.images < 2:
            raise InputError(f"expected 2 or more --images, got {self.images}; 100 give intervals of 10 points")
        latent = self.against == ("latent",)
        if not latent and (self.lpips or self.fid):
            raise InputError("expected --lpips and --fid with --against latent, got another evaluation; leave them out")
        kind = read_info(self.folder).config.method.kind if self.folder.is_dir() else ""
        if kind in ("towers", "shield"):
            return evaluate_answering(self, talk)
        if self.control is not None:
            raise InputError(f"expected --control with a run of kind shield, got one of {kind or 'none'}; leave it out")
        if self.classifier is None and (self.bits or (self.against and not latent)):
            option = "--bits" if self.bits else "--against"
            raise InputError(f"expected --classifier RUN with {option}, got none; name the classifier's run")
        info, purifier = load_purifier(self.folder, device=device(self.device))
        samples = check_samples(self.samples, stochastic=purifier.stochastic)
        assault = self._assault(kind, purifier) if self.against else None
        deep = self._deep(info.image_shape) if latent else None
        document: dict[str, Any] = {"run": str(self.folder), "kind": kind, "samples": samples}
        if self.classifier is None:
            spec = self.data or info.config.data
            dataset = load(spec, seed=0, image_size=info.image_shape[1])
            rows = []
        else:
            spec, dataset, rows = self._classified(talk, purifier, samples)
        with talk.busy(f"measuring {len(dataset.test)} test images"):
            document |= {"data": spec, "fidelity": fidelity(purifier, dataset.test)}
        document |= {"not_exportable": purifier.not_exportable()}
        show_fidelity(talk, self.folder, document["fidelity"])
        if rows:
            document |= {"classifier": str(self.classifier), "results": rows}
        if assault is not None and deep is not None:
            document["latent"] = self._drawn_away(talk, purifier, dataset, assault, deep)
        elif assault is not None:
            document["attacks"] = self._attacked(talk, purifier, samples, dataset, assault)
        if not self.data:
            keep_samples(self.folder, purifier, dataset.test)
            keep(self.folder, {name: document[name] for name in document if name not in ("run", "not_exportable")})
        return document

    def _classified(self, talk: Talk, purifier: Any, samples: int) -> tuple[str, Any, list[dict[str, Any]]]:
        """Measure the classifier bare and behind the purifier."""
        from edgeq.cli.measure import check_widths, device, load_fitting
        from edgeq.evaluate import accuracies
        from edgeq.purifiers import purified_accuracies
        from edgeq.runs import load_run

        assert self.classifier is not None
        info, net = load_run(self.classifier, device=device(self.device))
        bits = check_widths(self.bits, net.bits)
        spec = self.data or info.data
        dataset = load_fitting(spec, info.classes, info.image_shape)
        with talk.busy(f"evaluating {len(dataset.test)} test images with and without the purifier"):
            bare = accuracies(net, dataset.test, bits=bits)
            clean = purified_accuracies(purifier, net, dataset.test, bits=bits, samples=samples, seed=self.seed)
        rows = [
            {
                "classifier": str(self.classifier),
                "bits": a.bits,
                "accuracy": a.accuracy,
                "purified_accuracy": b.accuracy,
                "total": a.total,
            }
            for a, b in zip(bare, clean, strict=True)
        ]
        show_purified(talk, f"{self.classifier} behind {self.folder}: accuracy on clean images of {dataset.name}", rows)
        return spec, dataset, rows

    def _assault(self, kind: str, purifier: Any) -> "Assault":
        """Return what is tried, checked before anything heavy is done."""
        from edgeq.attacks.latent import LATENT_WAYS
        from edgeq.purifiers.deployed import ways_for

        if self.against == ("latent",):
            if kind not in ("vae", "srl"):
                raise InputError(f"expected a run of kind vae or srl with --against latent, got one of {kind}")
            return self.assault(LATENT_WAYS, LATENT_WAYS)
        if "latent" in self.against:
            raise InputError("expected --against latent alone, got other ways beside it; evaluate twice")
        return self.assault(self.against, ways_for(purifier))

    def assault(self, ways: tuple[str, ...], known: tuple[str, ...]) -> "Assault":
        """Return an attack of some of the known ways, or all."""
        from edgeq.attacks.pipeline import Effort
        from edgeq.attacks.pipeline_report import Assault

        effort = Effort(steps=self.steps, starts=self.starts, eot=self.eot, queries=self.queries, ascent=self.ascent)
        ways = known if ways == ("all",) else ways
        for way in ways:
            if way not in known:
                raise InputError(f"expected --against all or some of {', '.join(known)}, got {way!r}")
        return Assault(ways=ways, eps=self.eps, effort=effort, seed=self.seed)

    def part(self, dataset: Any) -> tuple[Any, Any]:
        """Return the images to attack and their classes."""
        from edgeq.cli.measure import device
        from edgeq.data import batches, holdout

        count = min(self.images, len(dataset.test))
        part = holdout(dataset.test, count, seed=2)[0] if count < len(dataset.test) else dataset.test
        return next(batches(part, count, device=device(self.device)))

    def _deep(self, image_shape: tuple[int, ...]) -> "DeepMetrics":
        """Return the distances whose weights are given."""
        from edgeq.cli.measure import device
        from edgeq.purifiers.deep_metrics import deep_metrics

        return deep_metrics(self.lpips, self.fid, image_shape=image_shape, device=device(self.device))

    def _drawn_away(
        self, talk: Talk, purifier: Any, dataset: Any, assault: "Assault", deep: "DeepMetrics"
    ) -> dict[str, Any]:
        """Attack the autoencoder, and the one that it started from."""
        from edgeq.attacks.latent import autoencoder
        from edgeq.attacks.latent_report import latents_withstood
        from edgeq.purifiers.srl import SRLPurifier

        smoothed = isinstance(purifier, SRLPurifier)
        networks = {"start": purifier.origin, "srl": purifier} if smoothed else {"vae": purifier}
        models = {name: autoencoder(network) for name, network in networks.items()}
        with talk.line("attacking") as line:
            document = latents_withstood(models, *self.part(dataset), assault, deep=deep, progress=line.show)
        show_latent(talk, document)
        return document

    def _attacked(
        self, talk: Talk, purifier: Any, samples: int, dataset: Any, assault: "Assault"
    ) -> list[dict[str, Any]]:
        """Attack the pipeline at every width."""
        from edgeq.attacks import surrogate
        from edgeq.attacks.pipeline_report import bare_accuracy, withstood
        from edgeq.cli.measure import check_widths, device
        from edgeq.purifiers import Draw, Purified
        from edgeq.runs import load_run

        assert self.classifier is not None
        on = device(self.device)
        _, net = load_run(self.classifier, device=on)
        images, labels = self.part(dataset)
        found = []
        for bits in check_widths(self.bits, net.bits):
            deployed = Purified(purifier, surrogate(net, bits), samples, Draw(self.seed))
            kept = found_in(
                self.folder, self.classifier, assault, (images, labels), bits=bits, samples=samples, draw=self.seed
            )
            with talk.line(f"{bits} bits") as line:
                document = withstood(deployed, images, labels, assault, progress=line.show, kept=kept)
            bare = bare_accuracy(deployed, images, labels, assault)
            for row in document["rows"]:
                row["bare"] = bare[row["eps"]]
            found.append({"classifier": str(self.classifier), "bits": bits, **document})
            show_attacks(talk, found[-1], f"{bits} bits")
        return found


def check_samples(samples: int | None, *, stochastic: bool) -> int:
    """Return the draws whose logits are averaged; refuse a number that the purifier cannot have."""
    from edgeq.purifiers.alp import SAMPLES

    if samples is None:
        return SAMPLES if stochastic else 1
    if samples < 1 or (samples > 1 and not stochastic):
        raise InputError(
            f"expected --samples 1 for a purifier without noise, 1 or more for one with noise, got {samples}"
        )
    return samples
