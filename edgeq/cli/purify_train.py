"""`edgeq purify train`: a purifier of any kind, two towers, or their shield."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from edgeq.cli.command import (
    AbstractCommand,
    DataSpec,
    Document,
    Folder,
    MaybeCount,
    MaybeFolder,
    MaybeNumber,
    Stopped,
)
from edgeq.cli.purify_answering import keep
from edgeq.cli.purify_show import progress, show_answers, show_fidelity
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.data import Dataset
    from edgeq.purifiers import AbstractGuard, Method, PurifierConfig

FLAGS = {  # switches, and the choices that they stand for
    "fixed_sigma": ("learn_sigma", False),
    "free_decoder": ("frozen_decoder", False),
    "continuous": ("discrete", False),
    "adversarial_towers": ("hardened", True),
}
NAMES = {"towers": "pair of towers", "shield": "shield"}
TOWER_RATE = 1e-3  # of the towers that are trained for a shield


@dataclass(frozen=True, kw_only=True)
class Train(AbstractCommand):
    """Train a purifier or a shield and write a run folder. Options left out have the defaults of the kind.

    Attributes:
        out: Run folder to make.
        kind: purevq: a codebook between encoder and decoder. alp: Gaussian noise between them. vae: a variational
            autoencoder. srl: a finished vae, trained on against attacks. shield: a codebook on the features of two
            frozen towers, of images and of texts. towers: the towers alone.
        data: signs, signs:train=N,test=N, folder:PATH, cifar10:PATH, imagenet:PATH or poisoned:FOLDER; purifiers do
            not look at the labels.
        epochs: Passes over the training images.
        resume: Go on with an unfinished run in --out; give the same options as before.
        batch_size: Images per step.
        lr: Adam's peak learning rate.
        channels: Of the inner layers (64).
        blocks: Residual blocks in each half (2).
        form: integer is BatchNorm, ReLU, nearest upsampling; paper has GroupNorm and SiLU and is not exportable.
        bottleneck: purevq: vq is a learned codebook, fsq rounding (vq).
        codes: purevq, shield: codewords (512).
        code_dim: purevq, shield: length of a codeword (16).
        beta: purevq: weight of the commitment loss (0.25). shield: of the codebook (0.1).
        adversarial: purevq: weight of the discriminator, 0 for none (0.1).
        latent: alp, vae: channels of the bottleneck (64, 16).
        kl: vae: weight of the divergence from the prior (0.001).
        start: srl: run folder of the vae to smooth, or a folder of diffusers' AutoencoderKL or AutoencoderTiny; the
            network's options are its own. shield: run folder of kind towers, or with --model-name a file of weights;
            left out, towers are trained first, beside --out.
        eps: srl, towers, shield: largest change of a pixel in training, of 255 (8, 4, 4).
        steps: srl, towers, shield: gradient steps of the attack in training (5, 2, 3).
        step: srl, shield: their size, in units of eps (0.3, 2/3).
        gamma: srl: weight of staying near the start's latents (0.1).
        clean: srl: weight of the reconstruction of clean images (1).
        free_decoder: srl: train the decoder, too.
        sigma: alp: noise at the start, in standard deviations of the latent (0.5).
        fixed_sigma: alp: do not learn sigma.
        rate: alp: price of the bottleneck's capacity (0.01).
        features: shield: what is rebuilt: grid, class, or none, which is the control without a shield (grid).
        continuous: shield: the same network without a codebook.
        fusion: shield: weight of its logits beside those of the class feature (0.5).
        prompt_length: shield: learned vectors before a class's name (16).
        alpha: shield: weight of the reconstruction (0.5).
        lam: shield: weight of staying near the class feature (10).
        mu: shield: weight of texts staying near captions (20).
        adversarial_towers: towers: train them against changed images. shield: train such towers first.
        tower_epochs: shield: passes of the training of towers, where there is no --start.
        patch: towers: side of a patch in pixels (4).
        width: towers: numbers per token (64).
        depth: towers: blocks of the image tower (3).
        model_name: shield: open_clip's name of the model in the file --start, or a JSON file with its config.
        quick_gelu: shield: the model has OpenAI's activations.
        seed: Decides initial weights, order and noise.
        device: Where to train.
        save_every: Seconds between saves within an epoch.
    """

    out: Folder
    kind: Literal["purevq", "alp", "vae", "srl", "towers", "shield"] = "purevq"
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
    features: Annotated[Literal["grid", "class", "none"] | None, arg(help_behavior_hint="")] = None
    continuous: bool = False
    fusion: MaybeNumber = None
    prompt_length: MaybeCount = None
    alpha: MaybeNumber = None
    lam: MaybeNumber = None
    mu: MaybeNumber = None
    adversarial_towers: bool = False
    tower_epochs: int = 30
    patch: MaybeCount = None
    width: MaybeCount = None
    depth: MaybeCount = None
    model_name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    quick_gelu: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0

    def config(self, classes: tuple[str, ...] = ()) -> "PurifierConfig":
        """Return the choices in the form that `edgeq.purifiers.train_purifier` takes.

        Args:
            classes: Names of the data's classes, for kinds that read them.
        """
        return self._common(self._method(classes), self.epochs, self.lr)

    def _common(self, method: "Method", epochs: int, lr: float) -> "PurifierConfig":
        from edgeq.purifiers import PurifierConfig

        return PurifierConfig(
            method=method,
            data=self.data,
            epochs=epochs,
            batch_size=self.batch_size,
            lr=lr,
            seed=self.seed,
            device=self.device,
            save_every=self.save_every,
        )

    def given(self) -> dict[str, Any]:
        """Return the method's options that were given; refuse those of other kinds."""
        from edgeq.purifiers import METHODS

        every = {f.name for method in METHODS for f in fields(method)}
        given = {name: getattr(self, name) for name in every if getattr(self, name, None) is not None}
        given |= {field: value for option, (field, value) in FLAGS.items() if getattr(self, option)}
        method = {method.kind: method for method in METHODS}[self.kind]
        own = {f.name for f in fields(method)} | ({"hardened"} if self.kind == "shield" else set())
        foreign = sorted(set(given) - own)
        if foreign:
            option = {field: option for option, (field, _) in FLAGS.items()}.get(foreign[0], foreign[0])
            owners = [m.kind for m in METHODS if foreign[0] in {f.name for f in fields(m)}]
            raise InputError(
                f"expected options of {self.kind}, got --{option.replace('_', '-')}, which is one of "
                f"{' and '.join(owners)}; leave it out or use --kind {owners[0]}"
            )
        if (self.model_name is not None or self.quick_gelu) and (self.kind != "shield" or self.start is None):
            raise InputError("expected --kind shield and --start FILE with --model-name, got others; name the file")
        if self.quick_gelu and self.model_name is None:
            raise InputError("expected --model-name with --quick-gelu, got none; name the model of open_clip")
        if self.kind == "shield" and self.adversarial_towers and self.start is not None:
            raise InputError("expected --adversarial-towers without --start, got both; the start's towers are finished")
        if self.kind == "srl" and self.start is None:
            raise InputError("expected --start RUN with --kind srl, got none; name a finished run of --kind vae")
        return given

    def _method(self, classes: tuple[str, ...]) -> "Method":
        from edgeq.purifiers import METHODS, OpenClip, Towers, shield_from, srl_from, towers_of

        given = self.given()
        if self.kind == "srl":
            return srl_from(**given)
        if self.kind == "towers":
            return Towers(classes, **given)
        if self.kind == "shield":
            start = given.pop("start", None) or self.towers_place
            given.pop("hardened", None)
            name = self.model_name
            network = towers_of(start) if name is None else OpenClip.of(name, quick_gelu=self.quick_gelu)
            return shield_from(start, classes, network=network, **given)
        return {method.kind: method for method in METHODS}[self.kind](**given)

    @property
    def towers_place(self) -> Path:
        """Where towers are trained for a shield that is given none."""
        return self.out.with_name(f"{self.out.name}-towers")

    def towers_config(self, classes: tuple[str, ...]) -> "PurifierConfig":
        """Return the choices of the towers that are trained for a shield."""
        from edgeq.purifiers import Towers

        hardened = {"hardened": True} if self.adversarial_towers else {}
        return self._common(Towers(classes, **hardened), self.tower_epochs, TOWER_RATE)

    def run(self, talk: Talk) -> Document:
        """Train, then measure on the whole test split."""
        with talk.busy("loading torch"):
            from edgeq.data import load
            from edgeq.purifiers import AbstractPurifier, clean_measures
        self.given()
        config = None if self.kind in ("towers", "shield") else self.config()
        dataset = load(self.data, seed=0)
        if self.kind == "shield" and self.start is None:
            self._towers(talk, dataset)
        config = config or self.config(dataset.classes)
        purifier = self._train(talk, config, self.out, dataset)
        with talk.busy(f"measuring {len(dataset.test)} test images"):
            measured = clean_measures(purifier, dataset.test)
        document: dict[str, Any] = {"run": str(self.out), "kind": self.kind, "data": self.data, "epochs": self.epochs}
        if isinstance(purifier, AbstractPurifier):
            show_fidelity(talk, self.out, measured)
            found, further = {"fidelity": measured}, f"apply {self.out} IN OUT"
        else:
            show_answers(talk, self.out, measured)
            then = f"train --kind shield --start {self.out}" if self.kind == "towers" else f"evaluate {self.out}"
            found, further = {"clean": measured}, then
        keep(self.out, {"data": self.data, **found})
        talk.note(f"the {NAMES.get(self.kind, 'purifier')} is in {self.out}; next: edgeq purify {further}")
        return document | found | {"not_exportable": purifier.not_exportable()}

    def _train(self, talk: Talk, config: "PurifierConfig", out: Path, dataset: "Dataset") -> "AbstractGuard":
        from edgeq.cli.train import stopping
        from edgeq.purifiers import train_purifier
        from edgeq.training import Interrupted

        resume = self.resume or (out != self.out and out.exists())
        try:
            with stopping() as stop, progress(talk) as show:
                return train_purifier(config, out=out, resume=resume, progress=show, stop=stop, dataset=dataset)
        except Interrupted:
            raise Stopped(f"stopped; the state is saved in {out}", again=("--resume",)) from None

    def _towers(self, talk: Talk, dataset: "Dataset") -> None:
        """Train the towers of a shield that is given none, or find them finished."""
        from edgeq.purifiers.folders import same_choices
        from edgeq.runs import WEIGHTS

        place, config = self.towers_place, self.towers_config(dataset.classes)
        if not (place / WEIGHTS).exists():
            talk.note(f"towers first, in {place}")
            self._train(talk, config, place, dataset)
        elif not same_choices(place, config):
            raise InputError(
                f"expected towers of these choices in {place}, got others; name them with --start, or choose another "
                "--out"
            )
