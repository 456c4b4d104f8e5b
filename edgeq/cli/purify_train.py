"""`edgeq purify train`: a purifier of any kind."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Literal

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
from edgeq.cli.purify_evaluate import keep
from edgeq.cli.purify_show import progress, show_fidelity
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.purifiers import Method, PurifierConfig


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
        keep(self.out, {"data": self.data, "fidelity": measured})
        talk.note(f"the purifier is in {self.out}; next: edgeq purify apply {self.out} IN OUT")
        return document
