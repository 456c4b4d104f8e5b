"""`edgeq train`: one shared backbone at all its widths."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from edgeq.cli.command import AbstractCommand, DataSpec, Document, Folder, MaybeFile, Stopped, Widths
from edgeq.cli.talk import Talk
from edgeq.errors import InputError, require

if TYPE_CHECKING:
    from edgeq.defenses import Patches, TriQDef, Turns
    from edgeq.training import Progress, TrainConfig

PATCHED = ("patch-at", "triqdef", "pbat")
MEANT_FOR = {  # options that do nothing under another defense
    "distill": ("standard",),
    **dict.fromkeys(("rho", "lambda_adv", "patch_sizes", "online", "online_steps", "online_scouts", "warmup"), PATCHED),
    **dict.fromkeys(("pool_copies", "pool_steps", "pool_images", "pool_from"), PATCHED),
    **dict.fromkeys(("lambda_fdp", "lambda_gpdp", "pairs", "penalty_share", "taps"), ("triqdef",)),
    "clip": ("patch-at", "triqdef"),
    **dict.fromkeys(("alpha", "beta", "channels", "centred", "excess"), ("triqdef",)),
    **dict.fromkeys(("pgd_eps", "pgd_steps"), ("dwq",)),
}


@dataclass(frozen=True, kw_only=True)
class Train(AbstractCommand):
    """Train one shared backbone at all its bit-widths and write a run folder.

    Attributes:
        out: Run folder to make.
        data: signs, signs:train=N,test=N, folder:PATH, cifar10:PATH, imagenet:PATH or poisoned:FOLDER.
        model: resnet8, resnet20, resnet32, resnet56, vgg16_bn, mobilenet_v2, torchvision/NAME or
            package.module:factory.
        defense: standard, patch-at (patches at all widths), triqdef (patch-at and penalties on what the widths share),
            pbat (patches, one width) or dwq (random widths, perturbed images).
        bits: Widths, 2 to 8 and 32 for float.
        epochs: Passes over the training images.
        resume: Go on with an unfinished run in --out; give the same options as before.
        batch_size: Images per step, over all processes.
        lr: Peak learning rate.
        schedule: How the rate falls; 'step' is a tenth at 50 % and again at 75 %.
        weight_decay: Of the weights.
        deployed: Fraction of the epochs, at the end, that train in the deployed integer arithmetic.
        curriculum: Let the low widths enter one by one; --no-curriculum trains all of them from the first epoch.
        stage: Fraction of the epochs between two entries of the curriculum.
        alone: Fraction of the epochs, at the beginning, in which the highest width trains alone.
        distill: Weight of the distillation from the next higher width, which must be in the step.
        label_smoothing: Of the cross-entropy.
        widths_per_step: 0: all; 1: the widths take turns (default of standard); 2: the pairs do; 3 and more: the
            highest, the lowest and others.
        passes: Where widths or pairs take turns: passes over the images in an epoch; 0 for one per turn.
        batchnorm: One BatchNorm per width, or one shared by all.
        scales: Learned step sizes, or those of an observer.
        edge_bits: Width of the first and last layer where the others have fewer bits; 0 gives them the others' width.
        full_range: Allow the weight code -2^(b-1) too.
        layer_bits: File with bits of single layers, .toml or .json; edgeq sensitivity --search writes one.
        rho: Share of each batch that is also shown patched.
        lambda_adv: Weight of the patched images' loss.
        patch_sizes: Sides of the patches in pixels.
        online: Share of the patches that are made in the step for their image; the others come from a pool.
        online_steps: Gradient steps of such a patch.
        online_scouts: Other starts that are asked about before them, a forward pass each.
        warmup: Fraction of the epochs, at the beginning, without patches.
        pool_copies: Patches of the pool for each class and size.
        pool_steps: Gradient steps of each.
        pool_images: Training images that the pool is made with.
        pool_from: Run whose highest width the pool is made on; this one, after the warm-up, by default.
        lambda_fdp: Weight of the penalty on features.
        lambda_gpdp: Weight of the penalty on input gradients.
        pairs: Random pairs of widths compared in a step; 0 for all.
        penalty_share: Share of the patched images that the penalties are computed on.
        taps: Steps of the network whose features are compared; chosen from its stages by default.
        clip: patch-at and triqdef: largest norm of a step's gradient, 0 for any.
        alpha: Weight of edges in the penalties.
        beta: Weight of orientations in the penalties.
        channels: Compare the maps of each channel, or their mean.
        centred: Compare orientations less their mean over the batch.
        excess: Penalise only what lies above the similarity of different images.
        pgd_eps: Largest change of a pixel in dwq's attack, of 255.
        pgd_steps: Steps of dwq's attack.
        crop: Padding of the random crop in pixels.
        cutout: Side of the square that is blanked in pixels.
        ema: Decay of an averaged copy that replaces the weights at the end; 0 for none.
        seed: Decides initial weights, order and augmentation.
        precision: 32-bit floats, or bf16 where it is safe.
        device: Where to train.
        save_every: Seconds between saves within an epoch.
        tensorboard: Write each epoch's losses and accuracies to RUN/tensorboard too.
    """

    out: Folder
    data: DataSpec = "signs"
    model: str = "resnet8"
    defense: str = "standard"
    bits: Widths = (32, 8, 5, 4, 2)
    epochs: int = 20
    resume: bool = False
    batch_size: int = 128
    lr: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    weight_decay: float = 5e-4
    deployed: float = 0.1
    curriculum: bool = True
    stage: float = 0.1
    alone: float = 0.0
    distill: float = 0.0
    label_smoothing: float = 0.0
    widths_per_step: int | None = None
    passes: int = 2
    batchnorm: Literal["per-bit", "shared"] = "per-bit"
    scales: Literal["learned", "observer"] = "learned"
    edge_bits: int = 8
    full_range: bool = False
    layer_bits: MaybeFile = None
    rho: float = 0.5
    lambda_adv: float = 1.0
    patch_sizes: tuple[int, ...] = (6,)
    online: float = 0.0
    online_steps: int = 4
    online_scouts: int = 8
    warmup: float = 0.2
    pool_copies: int = 1
    pool_steps: int = 200
    pool_images: int = 1000
    pool_from: str = ""
    lambda_fdp: float = 0.8
    lambda_gpdp: float = 0.5
    pairs: int = 0
    penalty_share: float = 0.5
    taps: tuple[str, ...] = ()
    clip: float = 3.0
    alpha: float = 0.5
    beta: float = 1.0
    channels: Literal["each", "mean"] = "each"
    centred: bool = False
    excess: bool = False
    pgd_eps: float = 8.0
    pgd_steps: int = 7
    crop: int = 4
    cutout: int = 0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["32", "bf16"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0
    tensorboard: bool = False

    def config(self) -> "TrainConfig":
        """Return the choices in the form that `edgeq.train` takes."""
        from edgeq.curriculum import Curriculum
        from edgeq.defenses import DWQ, Standard
        from edgeq.quant.layer_bits import read_layer_bits
        from edgeq.quant.network import QuantConfig
        from edgeq.training import TrainConfig

        self._refuse_idle()
        return TrainConfig(
            data=self.data,
            model=self.model,
            defense=self.defense,
            quant=QuantConfig(
                bits=self.bits,
                batchnorm=self.batchnorm,
                scales=self.scales,
                edge_bits=self.edge_bits,
                full_range=self.full_range,
                layer_bits={} if self.layer_bits is None else read_layer_bits(self.layer_bits),
            ),
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            deployed=self.deployed,
            curriculum=Curriculum(enabled=self.curriculum, stage=self.stage, alone=self.alone),
            turns=self._turns(),
            standard=Standard(self.distill, self.label_smoothing),
            patches=self._patches(),
            triqdef=self._triqdef(),
            dwq=DWQ(eps=self.pgd_eps, steps=self.pgd_steps),
            crop=self.crop,
            cutout=self.cutout,
            ema=self.ema,
            seed=self.seed,
            precision=self.precision,
            device=self.device,
            save_every=self.save_every,
        )

    @contextlib.contextmanager
    def _watched(self, progress: "Callable[[Progress], None]") -> "Iterator[Callable[[Progress], None]]":
        """Give out what takes the progress: the screen, and TensorBoard where it is wanted."""
        if not self.tensorboard:
            yield progress
            return
        from edgeq.cli.board import Board

        board: Board | None = None

        def both(now: "Progress") -> None:
            nonlocal board
            if now.accuracy and board is None:  # now the run folder is surely ours
                board = Board(self.out, now.epoch)
            if board is not None:
                board.take(now)
            progress(now)

        try:
            yield both
        finally:
            if board is not None:
                board.close()

    def _refuse_idle(self) -> None:
        """Refuse options that would do nothing: who forgets --defense triqdef shall not train without it."""
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        for name in given:
            meant = MEANT_FOR.get(name)
            if meant is not None and self.defense not in meant:
                raise InputError(
                    f"expected --{name.replace('_', '-')} with --defense {' or '.join(meant)}, got {self.defense}; "
                    "name the defense, or leave the option out"
                )
        for name in ("stage", "alone"):
            if name in given and not self.curriculum:
                raise InputError(f"expected no --{name} with --no-curriculum, got both; leave one out")
        if "passes" in given and self.widths_per_step not in (None, 1, 2):
            raise InputError(
                f"expected --passes where widths or pairs take turns, got {self.widths_per_step} --widths-per-step; "
                "leave one out"
            )

    def _turns(self) -> "Turns | None":
        from edgeq.defenses import Turns

        if self.widths_per_step is None and self.passes == Turns().passes:
            return None
        if self.widths_per_step is None and self.defense in ("dwq", "pbat"):
            raise InputError(f"expected no --passes with defense {self.defense}, got {self.passes}; leave it out")
        widths = self.widths_per_step if self.widths_per_step is not None else int(self.defense == "standard")
        return Turns(widths, self.passes)

    def _patches(self) -> "Patches":
        from edgeq.defenses import Patches

        return Patches(
            rho=self.rho,
            lambda_adv=self.lambda_adv,
            sizes=self.patch_sizes,
            online=self.online,
            online_steps=self.online_steps,
            online_scouts=self.online_scouts,
            warmup=self.warmup,
            copies=self.pool_copies,
            pool_steps=self.pool_steps,
            pool_images=self.pool_images,
            source=self.pool_from,
        )

    def _triqdef(self) -> "TriQDef":
        from edgeq.defenses import TriQDef
        from edgeq.perceptual import Alignment

        return TriQDef(
            lambda_fdp=self.lambda_fdp,
            lambda_gpdp=self.lambda_gpdp,
            pairs=self.pairs,
            share=self.penalty_share,
            taps=self.taps,
            clip=self.clip,
            alignment=Alignment(
                alpha=self.alpha, beta=self.beta, channels=self.channels, centred=self.centred, excess=self.excess
            ),
        )

    def run(self, talk: Talk) -> Document:
        """Train, then measure every width on the whole test split."""
        with talk.busy("loading torch"):
            from edgeq.cli.measure import record_accuracies
            from edgeq.data import load
            from edgeq.training import Interrupted, train
        config = self.config()
        if self.tensorboard:
            require("tensorboard", "tensorboard")
        dataset = load(config.data, seed=0)
        try:
            with stopping() as stop, talk.training() as progress, self._watched(progress) as watched:
                net = train(config, out=self.out, resume=self.resume, progress=watched, stop=stop, dataset=dataset)
        except Interrupted:
            raise Stopped(f"stopped; the state is saved in {self.out}", again=("--resume",)) from None
        if talk.console.quiet:  # not the first of several processes
            return {}
        results = record_accuracies(talk, self.out, net, dataset)
        talk.note(f"the run is in {self.out}; next: edgeq export {self.out} --bits {min(self.bits)} --out ART")
        return {"run": str(self.out), "model": self.model, "data": self.data, "epochs": self.epochs, "results": results}


@contextlib.contextmanager
def stopping() -> Iterator:
    """Turn the first Ctrl-C or SIGTERM into a request to save and stop, and put the signals back afterwards."""
    from edgeq.launch import stop_on_signals

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_on_signals()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
