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
    MaybeFolder,
)
from edgeq.cli.purify_show import show_attacks, show_fidelity, show_latent
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.attacks.pipeline_report import Assault

EVALUATION = "purify.json"


@dataclass(frozen=True, kw_only=True)
class Evaluate(AbstractCommand):
    """Measure how faithful a purifier is on clean images, what it costs a classifier, and what both withstand.

    Attributes:
        folder: A purifier's run folder.
        classifier: Run folder of the classifier behind it.
        against: all, or some of straight, soft, identity, eot, fixed, transfer, square (see docs/purifiers.md). Or
            latent: attacks on the latents of a vae or srl, which need no classifier.
        eps: Largest changes of a pixel, of 255.
        images: Test images to attack.
        steps: Gradient steps of an attack.
        starts: Random starts of an attack.
        eot: alp: draws averaged in a step of eot.
        queries: Questions of square per image.
        bits: Widths of the classifier.
        data: Test on other data. Default: the classifier's, or what the purifier was trained on.
        samples: alp: draws whose logits are averaged (20).
        seed: Decides the noise.
        device: Where to run.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    classifier: MaybeFolder = None
    against: Annotated[tuple[str, ...], arg(metavar="WAY …", help_behavior_hint="")] = ()
    eps: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    images: int = 100
    steps: int = 100
    starts: int = 2
    eot: int = 20
    queries: int = 2000
    bits: AllWidths = ()
    data: MaybeData = ""
    samples: MaybeCount = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def run(self, talk: Talk) -> Document:
        """Measure."""
        with talk.busy("loading torch"):
            from edgeq.cli.measure import device
            from edgeq.data import load
            from edgeq.purifiers import fidelity, load_purifier
            from edgeq.purifiers.alp import SAMPLES
        latent = self.against == ("latent",)
        if self.classifier is None and (self.bits or (self.against and not latent)):
            option = "--bits" if self.bits else "--against"
            raise InputError(f"expected --classifier RUN with {option}, got none; name the classifier's run")
        if self.images < 2:
            raise InputError(f"expected 2 or more --images, got {self.images}; 100 give intervals of 10 points")
        info, purifier = load_purifier(self.folder, device=device(self.device))
        samples = self.samples if self.samples is not None else SAMPLES if purifier.stochastic else 1
        check_samples(samples, stochastic=purifier.stochastic)
        assault = self._assault(info.config.method.kind, purifier) if self.against else None
        document: dict[str, Any] = {"run": str(self.folder), "kind": info.config.method.kind, "samples": samples}
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
        if assault is not None and latent:
            document["latent"] = self._drawn_away(talk, purifier, dataset, assault)
        elif assault is not None:
            document["attacks"] = self._attacked(talk, purifier, samples, dataset, assault)
        if not self.data:
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
            {"bits": a.bits, "accuracy": a.accuracy, "purified_accuracy": b.accuracy, "total": a.total}
            for a, b in zip(bare, clean, strict=True)
        ]
        talk.table(
            f"{self.classifier} behind {self.folder}: accuracy on clean images of {dataset.name}",
            ("bits", "bare", "purified", "images"),
            [
                (
                    str(r["bits"]),
                    f"{100 * r['accuracy']:.2f} %",
                    f"{100 * r['purified_accuracy']:.2f} %",
                    str(r["total"]),
                )
                for r in rows
            ],
        )
        return spec, dataset, rows

    def _assault(self, kind: str, purifier: Any) -> "Assault":
        """Return what is tried, checked before anything heavy is done."""
        from edgeq.attacks.latent import LATENT_WAYS
        from edgeq.attacks.pipeline import Effort, ways_for
        from edgeq.attacks.pipeline_report import Assault

        effort = Effort(steps=self.steps, starts=self.starts, eot=self.eot, queries=self.queries)
        if self.against == ("latent",):
            if kind not in ("vae", "srl"):
                raise InputError(f"expected a run of kind vae or srl with --against latent, got one of {kind}")
            return Assault(ways=LATENT_WAYS, eps=self.eps, effort=effort, seed=self.seed)
        if "latent" in self.against:
            raise InputError("expected --against latent alone, got other ways beside it; evaluate twice")
        known = ways_for(purifier)
        ways = known if self.against == ("all",) else self.against
        for way in ways:
            if way not in known:
                raise InputError(f"expected --against all or some of {', '.join(known)}, got {way!r}")
        return Assault(ways=ways, eps=self.eps, effort=effort, seed=self.seed)

    def _part(self, dataset: Any) -> tuple[Any, Any]:
        """Return the images to attack and their classes."""
        from edgeq.cli.measure import device
        from edgeq.data import batches, holdout

        count = min(self.images, len(dataset.test))
        part = holdout(dataset.test, count, seed=2)[0] if count < len(dataset.test) else dataset.test
        return next(batches(part, count, device=device(self.device)))

    def _drawn_away(self, talk: Talk, purifier: Any, dataset: Any, assault: "Assault") -> dict[str, Any]:
        """Attack the autoencoder, and the one that it started from."""
        from edgeq.attacks.latent import autoencoder
        from edgeq.attacks.latent_report import latents_withstood
        from edgeq.purifiers.srl import SRLPurifier

        smoothed = isinstance(purifier, SRLPurifier)
        networks = {"start": purifier.origin, "srl": purifier} if smoothed else {"vae": purifier}
        models = {name: autoencoder(network) for name, network in networks.items()}
        with talk.line("attacking") as line:
            document = latents_withstood(models, *self._part(dataset), assault, progress=line.show)
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
        images, labels = self._part(dataset)
        found = []
        for bits in check_widths(self.bits, net.bits):
            deployed = Purified(purifier, surrogate(net, bits), samples, Draw(self.seed))
            with talk.line(f"{bits} bits") as line:
                document = withstood(deployed, images, labels, assault, progress=line.show)
            bare = bare_accuracy(deployed, images, labels, assault)
            for row in document["rows"]:
                row["bare"] = bare[row["eps"]]
            found.append({"bits": bits, **document})
            show_attacks(talk, found[-1])
        return found


def keep(folder: Path, body: dict[str, Any]) -> None:
    """Write what was found into the run's results."""
    from edgeq.files import write_json
    from edgeq.runs import RESULTS

    write_json(folder / RESULTS / EVALUATION, body)


def check_samples(samples: int, *, stochastic: bool) -> None:
    """Refuse a number of draws that the purifier cannot have."""
    if samples < 1 or (samples > 1 and not stochastic):
        raise InputError(
            f"expected --samples 1 for a purifier without noise, 1 or more for one with noise, got {samples}"
        )
