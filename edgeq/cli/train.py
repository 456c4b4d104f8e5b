"""`edgeq train`: one shared backbone at all its widths."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeq.cli.command import AbstractCommand, DataSpec, Document, Folder, Stopped, Widths
from edgeq.cli.talk import Talk

if TYPE_CHECKING:
    from edgeq.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(AbstractCommand):
    """Train one shared backbone at all its bit-widths and write a run folder.

    Attributes:
        out: Run folder to make.
        data: signs, signs:train=N,test=N, folder:PATH, cifar10:PATH or imagenet:PATH.
        model: resnet8, resnet20, resnet32, resnet56, vgg16_bn, mobilenet_v2, torchvision/NAME or
            package.module:factory.
        defense: The objective; 'standard' is ordinary training.
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
        distill: Weight of the distillation from the next higher width; it costs accuracy in short trainings.
        label_smoothing: Of the cross-entropy.
        batchnorm: One BatchNorm per width, or one shared by all.
        scales: Learned step sizes, or those of an observer.
        edge_bits: Width of the first and last layer where the others have fewer bits; 0 gives them the others' width.
        full_range: Allow the weight code -2^(b-1) too.
        crop: Padding of the random crop in pixels.
        cutout: Side of the square that is blanked in pixels.
        ema: Decay of an averaged copy that replaces the weights at the end; 0 for none.
        seed: Decides initial weights, order and augmentation.
        precision: 32-bit floats, or bf16 where it is safe.
        device: Where to train.
        save_every: Seconds between saves within an epoch.
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
    batchnorm: Literal["per-bit", "shared"] = "per-bit"
    scales: Literal["learned", "observer"] = "learned"
    edge_bits: int = 8
    full_range: bool = False
    crop: int = 4
    cutout: int = 0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["32", "bf16"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0

    def config(self) -> "TrainConfig":
        """Return the choices in the form that `edgeq.train` takes."""
        from edgeq.curriculum import Curriculum
        from edgeq.defenses import Standard
        from edgeq.quant.network import QuantConfig
        from edgeq.training import TrainConfig

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
            ),
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            deployed=self.deployed,
            curriculum=Curriculum(enabled=self.curriculum, stage=self.stage, alone=self.alone),
            standard=Standard(distill=self.distill, label_smoothing=self.label_smoothing),
            crop=self.crop,
            cutout=self.cutout,
            ema=self.ema,
            seed=self.seed,
            precision=self.precision,
            device=self.device,
            save_every=self.save_every,
        )

    def run(self, talk: Talk) -> Document:
        """Train, then measure every width on the whole test split."""
        with talk.busy("loading torch"):
            from edgeq.cli.measure import record_accuracies
            from edgeq.data import load
            from edgeq.training import Interrupted, train
        config = self.config()
        dataset = load(config.data, seed=0)
        try:
            with stopping() as stop, talk.training() as progress:
                net = train(config, out=self.out, resume=self.resume, progress=progress, stop=stop, dataset=dataset)
        except Interrupted:
            raise Stopped(f"stopped; the state is saved in {self.out}", again=("--resume",)) from None
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
