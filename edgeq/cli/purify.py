"""`edgeq purify train|apply|evaluate`: networks that clean an image before a classifier sees it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from edgeq.cli.command import (
    AbstractCommand,
    AllWidths,
    DataSpec,
    Document,
    Failed,
    Folder,
    MaybeData,
    MaybeFolder,
    Stopped,
)
from edgeq.cli.purify_show import counting, progress, show_attacks, show_fidelity, show_latent, told
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.attacks.pipeline_report import Assault
    from edgeq.purifiers import Method, PurifierConfig

MaybeNumber = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
MaybeCount = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
EVALUATION = "purify.json"


@dataclass(frozen=True, kw_only=True)
class Train(AbstractCommand):
    """Train a purifier and write a run folder. Options left out have the defaults of the kind.

    Attributes:
        out: Run folder to make.
        kind: purevq: a codebook between encoder and decoder. alp: Gaussian noise between them. vae: a variational
            autoencoder. srl: a finished vae, trained on against attacks.
        data: signs, signs:train=N,test=N, folder:PATH, cifar10:PATH, imagenet:PATH or poisoned:FOLDER; labels are not
            looked at.
        epochs: Passes over the training images.
        resume: Go on with an unfinished run in --out; give the same options as before.
        batch_size: Images per step.
        lr: Adam's peak learning rate.
        channels: Of the inner layers (64).
        blocks: Residual blocks in each half (2).
        form: integer is BatchNorm, ReLU, nearest upsampling; paper has GroupNorm and SiLU and is not exportable.
        bottleneck: purevq: vq is a learned codebook, fsq rounding (vq).
        codes: purevq: codewords (512).
        code_dim: purevq: length of a codeword (16).
        beta: purevq: weight of the commitment loss (0.25).
        adversarial: purevq: weight of the discriminator, 0 for none (0.1).
        latent: alp, vae: channels of the bottleneck (64, 16).
        kl: vae: weight of the divergence from the prior (0.001).
        start: srl: run folder of the vae to smooth; the network's options are its own.
        eps: srl: largest change of a pixel in training, of 255 (8).
        steps: srl: gradient steps of the attack in training (5).
        step: srl: their size, in units of eps (0.3).
        gamma: srl: weight of staying near the start's latents (0.1).
        clean: srl: weight of the reconstruction of clean images (1).
        free_decoder: srl: train the decoder, too.
        sigma: alp: noise at the start, in standard deviations of the latent (0.5).
        fixed_sigma: alp: do not learn sigma.
        rate: alp: price of the bottleneck's capacity (0.01).
        seed: Decides initial weights, order and noise.
        device: Where to train.
        save_every: Seconds between saves within an epoch.
    """

    out: Folder
    kind: Literal["purevq", "alp", "vae", "srl"] = "purevq"
    data: DataSpec = "signs"
    epochs: int = 30
    resume: bool = False
    batch_size: int = 64
    lr: float = 4e-4
    channels: MaybeCount = None
    blocks: MaybeCount = None
    form: Annotated[Literal["integer", "paper"] | None, arg(help_behavior_hint="")] = None
    bottleneck: Annotated[Literal["vq", "fsq"] | None, arg(help_behavior_hint="")] = None
    codes: MaybeCount = None
    code_dim: MaybeCount = None
    beta: MaybeNumber = None
    adversarial: MaybeNumber = None
    latent: MaybeCount = None
    kl: MaybeNumber = None
    start: MaybeFolder = None
    eps: MaybeNumber = None
    steps: MaybeCount = None
    step: MaybeNumber = None
    gamma: MaybeNumber = None
    clean: MaybeNumber = None
    free_decoder: bool = False
    sigma: MaybeNumber = None
    fixed_sigma: bool = False
    rate: MaybeNumber = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0

    def config(self) -> "PurifierConfig":
        """Return the choices in the form that `edgeq.purifiers.train_purifier` takes."""
        from edgeq.purifiers import PurifierConfig

        return PurifierConfig(
            method=self._method(),
            data=self.data,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=self.seed,
            device=self.device,
            save_every=self.save_every,
        )

    def _method(self) -> "Method":
        from edgeq.purifiers import METHODS, SRL, srl_from

        kinds = {method.kind: method for method in METHODS}
        every = {f.name for method in METHODS for f in fields(method)}
        given = {name: getattr(self, name) for name in every if getattr(self, name, None) is not None}
        if self.fixed_sigma:
            given["learn_sigma"] = False
        if self.free_decoder:
            given["frozen_decoder"] = False
        method = kinds[self.kind]
        foreign = sorted(set(given) - {f.name for f in fields(method)})
        if foreign:
            option = {"learn_sigma": "fixed_sigma", "frozen_decoder": "free_decoder"}.get(foreign[0], foreign[0])
            owners = [m.kind for m in METHODS if foreign[0] in {f.name for f in fields(m)}]
            raise InputError(
                f"expected options of {self.kind}, got --{option.replace('_', '-')}, which is one of "
                f"{' and '.join(owners)}; leave it out or use --kind {owners[0]}"
            )
        if method is SRL:
            if self.start is None:
                raise InputError("expected --start RUN with --kind srl, got none; name a finished run of --kind vae")
            return srl_from(**given)
        return method(**given)

    def run(self, talk: Talk) -> Document:
        """Train, then measure on the whole test split."""
        with talk.busy("loading torch"):
            from edgeq.cli.train import stopping
            from edgeq.data import load
            from edgeq.purifiers import fidelity, train_purifier
            from edgeq.training import Interrupted
        config = self.config()
        dataset = load(config.data, seed=0)
        try:
            with stopping() as stop, progress(talk) as show:
                purifier = train_purifier(
                    config, out=self.out, resume=self.resume, progress=show, stop=stop, dataset=dataset
                )
        except Interrupted:
            raise Stopped(f"stopped; the state is saved in {self.out}", again=("--resume",)) from None
        with talk.busy(f"measuring {len(dataset.test)} test images"):
            measured = fidelity(purifier, dataset.test)
        show_fidelity(talk, self.out, measured)
        document = {"run": str(self.out), "kind": self.kind, "data": self.data, "epochs": self.epochs}
        document |= {"fidelity": measured, "not_exportable": purifier.not_exportable()}
        _keep(self.out, {"data": self.data, "fidelity": measured})
        talk.note(f"the purifier is in {self.out}; next: edgeq purify apply {self.out} IN OUT")
        return document


@dataclass(frozen=True, kw_only=True)
class Apply(AbstractCommand):
    """Purify a folder of images: names and sub-folders stay, finished images are not made again, bad files are named.

    Attributes:
        folder: A purifier's run folder.
        source: Folder of images.
        target: Folder for the purified ones.
        samples: alp: draws whose images are averaged.
        png: Write PNG whatever the format was; JPEG blurs what the purifier made a little.
        seed: alp: decides the noise.
        device: Where to purify.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    source: Positional[Annotated[Path, arg(metavar="IN")]]
    target: Positional[Annotated[Path, arg(metavar="OUT")]]
    samples: int = 1
    png: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def run(self, talk: Talk) -> Document:
        """Purify what is not there yet."""
        with talk.busy("loading torch"):
            from edgeq.cli.measure import device
            from edgeq.purifiers import load_purifier
            from edgeq.purifiers.apply import apply_folder, weights_of
        _, purifier = load_purifier(self.folder, device=device(self.device))
        _check_samples(self.samples, stochastic=purifier.stochastic)
        try:
            with counting(talk) as show:
                applied = apply_folder(
                    purifier,
                    self.source,
                    self.target,
                    weights=weights_of(self.folder),
                    samples=self.samples,
                    seed=self.seed,
                    png=self.png,
                    progress=show,
                )
        except KeyboardInterrupt:
            raise Stopped(f"stopped; what is finished is in {self.target}", again=()) from None
        for message in applied.bad:
            talk.note(message)
        talk.note(f"{applied.done} images purified into {self.target}, {applied.kept} were there already")
        document = {"run": str(self.folder), "source": str(self.source), "target": str(self.target)}
        document |= {"purified": applied.done, "kept": applied.kept, "bad": applied.bad}
        if applied.bad:
            raise Failed(
                f"expected images that can be read and written, got {len(applied.bad)} that cannot (named above); "
                "repair or remove them and run the same command again",
                document,
            )
        return document


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
        _check_samples(samples, stochastic=purifier.stochastic)
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
            _keep(self.folder, {name: document[name] for name in document if name not in ("run", "not_exportable")})
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
        document = latents_withstood(models, *self._part(dataset), assault, progress=told(talk, ""))
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
            document = withstood(deployed, images, labels, assault, progress=told(talk, f"{bits} bits, "))
            bare = bare_accuracy(deployed, images, labels, assault)
            for row in document["rows"]:
                row["bare"] = bare[row["eps"]]
            found.append({"bits": bits, **document})
            show_attacks(talk, found[-1])
        return found


Purify = (
    Annotated[Train, subcommand("train")]
    | Annotated[Apply, subcommand("apply")]
    | Annotated[Evaluate, subcommand("evaluate")]
)


def _check_samples(samples: int, *, stochastic: bool) -> None:
    if samples < 1 or (samples > 1 and not stochastic):
        raise InputError(
            f"expected --samples 1 for a purifier without noise, 1 or more for one with noise, got {samples}"
        )


def _keep(folder: Path, body: dict[str, Any]) -> None:
    from edgeq.files import write_json
    from edgeq.runs import RESULTS

    write_json(folder / RESULTS / EVALUATION, body)
