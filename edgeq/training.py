"""Train one shared backbone at all its widths: setup, data, model, loop, result.

The loop is the same for every defence; an objective (`edgeq.defenses`) turns a batch into losses. Everything that the
next step depends on is a function of the saved state and of (seed, epoch, batch), so a run that was killed goes on from
its last save and ends with the same bits, on a CPU with the same number of threads.

The last `deployed` fraction of the epochs trains in the deployed arithmetic: BatchNorm frozen and folded, multipliers
short, integers throughout. It recovers what folding and snapping cost.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from edgeq import calib, runs
from edgeq.average import Average
from edgeq.curriculum import Curriculum
from edgeq.data import Augment, Dataset, Split, TrainBatches, holdout, load
from edgeq.data.seeds import generator
from edgeq.defenses import DEFENSES, Standard, StandardObjective
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.optimizer import learning_rate, make_optimizer
from edgeq.quant.bits import FLOAT_BITS
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.state import Position, clear_state, load_state, save_state

CALIBRATION_IMAGES = 512
SMALLEST = 4  # images: two to calibrate with, two for a batch
MONITOR_IMAGES = 1000  # per epoch, of the test split; the final figures use all of it


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a training run.

    Attributes:
        data: Data specification, see `edgeq.data.load`.
        model: Network, see `edgeq.models.build`.
        defense: Objective.
        quant: Widths, BatchNorm, scales.
        epochs: Passes over the training images.
        batch_size: Over all processes.
        lr: Peak learning rate.
        schedule: "cosine" with a short warm-up, or "step" (divided by 10 at 50 % and 75 %, as in the paper).
        weight_decay: Of the weights; steps and BatchNorm have none.
        deployed: Fraction of the epochs, at the end, that train in the deployed arithmetic; 0 turns it off.
        curriculum: When the widths enter.
        standard: Choices of the standard objective.
        crop: Padding of the random crop in pixels.
        cutout: Side of the square that is blanked, in pixels; 0 for none.
        ema: Decay of an averaged copy that replaces the weights at the end; 0 for none.
        seed: Decides initial weights, order, augmentation.
        precision: "32" or "bf16".
        device: "auto", "cpu" or "cuda".
        save_every: Seconds between saves within an epoch.
    """

    data: str = "signs"
    model: str = "resnet8"
    defense: str = "standard"
    quant: QuantConfig = field(default_factory=QuantConfig)
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    weight_decay: float = 5e-4
    deployed: float = 0.1
    curriculum: Curriculum = field(default_factory=Curriculum)
    standard: Standard = field(default_factory=Standard)
    crop: int = 4
    cutout: int = 0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["32", "bf16"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        if self.defense not in DEFENSES:
            raise InputError(f"expected a defence out of {', '.join(DEFENSES)}, got {self.defense!r}")
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(f"expected at least 1 epoch and batches of 2, got {self.epochs} and {self.batch_size}")
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise InputError(f"expected lr > 0 and weight_decay >= 0, got {self.lr} and {self.weight_decay}")
        if not 0 <= self.save_every < math.inf:
            raise InputError(f"expected save_every in seconds, 0 or more, got {self.save_every}; 60 are usual")
        if not 0.0 <= self.deployed < 1.0 or not 0.0 <= self.ema < 1.0:
            raise InputError(f"expected deployed and ema from 0 to below 1, got {self.deployed} and {self.ema}")
        if self.schedule not in ("cosine", "step"):
            raise InputError(f"expected schedule cosine or step, got {self.schedule!r}")
        if self.precision not in ("32", "bf16"):
            raise InputError(f"expected precision 32 or bf16, got {self.precision!r}")


@dataclass(frozen=True)
class Progress:
    """What a progress bar needs; `accuracy` is filled once an epoch."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    active: tuple[int, ...]
    losses: dict[str, float]
    accuracy: dict[int, float] = field(default_factory=dict)


class Diverged(InputError):
    """The loss is no longer finite; the last good state is kept."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state was saved, `--resume` goes on."""


def train(
    config: TrainConfig,
    *,
    out: str | Path,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    dataset: Dataset | None = None,
) -> MultiBitNet:
    """Train a network, write the run folder `out`, and return the network.

    Args:
        config: All choices.
        out: Run folder; must be new or empty unless `resume`.
        resume: Go on from the folder's saved state (or start, where there is none).
        progress: Called after every batch and every epoch.
        stop: Asked after every batch; True saves and raises `Interrupted`.
        dataset: Use this data instead of loading `config.data`.
    """
    out = Path(out)
    _check_folder(out, config, resume)
    fabric = _fabric(config)
    dataset = load(config.data, seed=0) if dataset is None else dataset
    trainer = _Trainer(config, out, fabric, dataset, progress or (lambda _: None), stop or (lambda: False))
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        return trainer.run(resume)


class _Trainer:
    """The pieces of one run; `run` reads top to bottom."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        fabric: Fabric,
        dataset: Dataset,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config, self.out, self.fabric, self.progress, self.stop = config, out, fabric, progress, stop
        self.main = fabric.global_rank == 0
        _check_dataset(dataset)
        image_shape = _image_shape(dataset)
        self.info = runs.RunInfo(config.model, config.data, config.quant, dataset.classes, image_shape, _plain(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = runs.new_network(self.info)
        self.net.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.calibration, rest = holdout(
            dataset.train, max(2, min(CALIBRATION_IMAGES, len(dataset.train) // 4)), seed=0
        )
        self.monitor = (
            holdout(dataset.test, MONITOR_IMAGES, seed=0)[0] if len(dataset.test) > MONITOR_IMAGES else dataset.test
        )
        self.batches = TrainBatches(
            rest,
            batch_size=min(config.batch_size, len(rest)),
            seed=config.seed,
            augment=Augment(crop=config.crop, flip=dataset.flip, cutout=config.cutout),
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            device=fabric.device,
        )
        self.frozen_from = config.epochs - round(config.deployed * config.epochs)
        self.optimizer = make_optimizer(self.net, lr=config.lr, weight_decay=config.weight_decay)
        self.average = Average(self.net, config.ema) if config.ema else None

    def run(self, resume: bool) -> MultiBitNet:
        """Train to the end."""
        position = Position(0, 0, ())
        if resume:
            position = load_state(self.out / runs.STATE, self.net, self.optimizer, self._averages) or position
        if self.main:
            runs.write_info(self.out, self.info)
        objective = StandardObjective(self.net, self.config.standard)
        wrapped = self.fabric.setup_module(objective)
        optimizer = self.fabric.setup_optimizers(self.optimizer)
        for epoch in range(position.epoch, self.config.epochs):
            started = position.batch if epoch == position.epoch else 0
            position = self._epoch(epoch, started, position.entered, wrapped, optimizer)
        if self.average is not None:
            self.average.copy_to(self.net)
        self.net.width.deployed = False
        self.net.eval()
        if self.main:
            runs.save_weights(self.out, self.net)
            clear_state(self.out / runs.STATE)
        return self.net

    def _epoch(
        self, epoch: int, start: int, entered: tuple[int, ...], objective: nn.Module, optimizer: Any
    ) -> Position:
        active = self.config.curriculum.active(self.net.bits, self.config.epochs, epoch, self.frozen_from)
        if epoch == 0 and start == 0 and FLOAT_BITS in active:
            # ranges are read from the float pass, whose statistics must fit the initial weights first
            calib.reestimate(self.net, _images(self.calibration), bits=FLOAT_BITS)
        for bits in active:
            if bits not in entered and bits != FLOAT_BITS:
                calib.init_width(self.net, bits, _images(self.calibration))
                if self.average is not None:
                    self.average.adopt(self.net, bits)
        self.net.train()
        self.net.width.deployed = epoch >= self.frozen_from
        saved = time.monotonic()
        losses: dict[str, float] = {}
        for batch, (images, labels) in enumerate(self.batches.epoch(epoch, start), start=start):
            self._set_rate(epoch + batch / len(self.batches))
            self._seed(epoch, batch)
            losses = self._step(objective, optimizer, images, labels, active)
            if self.average is not None:
                self.average.update(self.net, epoch * len(self.batches) + batch)
            here = Position(epoch, batch + 1, active)
            if not math.isfinite(losses["loss"]):
                raise Diverged(
                    f"expected a finite loss, got {losses['loss']} at epoch {epoch}, batch {batch}; the last saved "
                    f"state is kept in {self.out / runs.STATE}: start anew with a smaller lr than {self.config.lr}"
                )
            self.progress(Progress(epoch, self.config.epochs, batch + 1, len(self.batches), active, losses))
            if batch + 1 == len(self.batches):
                break  # the end of an epoch is saved below, with its line of metrics
            stop, due = self._agreed(self.stop(), time.monotonic() - saved > self.config.save_every)
            if stop or due:
                self._save(here)
                saved = time.monotonic()
            if stop:
                raise Interrupted
        here = Position(epoch + 1, 0, active)
        self._finish_epoch(epoch, active, losses, here)
        if self._agreed(self.stop())[0] and here.epoch < self.config.epochs:
            raise Interrupted
        return here

    def _step(
        self, objective: nn.Module, optimizer: Any, images: torch.Tensor, labels: torch.Tensor, active: tuple[int, ...]
    ) -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        losses = objective(images, labels, active)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if math.isfinite(values["loss"]):
            self.fabric.backward(losses["loss"])
            optimizer.step()
        return values

    def _seed(self, epoch: int, batch: int) -> None:
        """Make what is random inside the network (dropout) a function of the place in the run, like the images."""
        key = generator("network", self.config.seed, epoch, batch, self.fabric.global_rank)
        torch.manual_seed(key.initial_seed())

    def _agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """Return for each wish whether any process has it: clocks and signals differ, collectives must not."""
        if self.fabric.world_size == 1:
            return wishes
        flags = torch.tensor(wishes, dtype=torch.int32, device=self.fabric.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return tuple(map(bool, flags.tolist()))

    def _set_rate(self, position: float) -> None:
        config = self.config
        rate = learning_rate(
            config.schedule, position / config.epochs, warmup=min(1.0, 0.1 * config.epochs) / config.epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate * group["lr_factor"]

    def _finish_epoch(self, epoch: int, active: tuple[int, ...], losses: dict[str, float], here: Position) -> None:
        self._check_finite(epoch)
        if self.main:
            results = accuracies(self.net, self.monitor, bits=active)
            accuracy = {r.bits: r.accuracy for r in results}
            line = {"epoch": epoch, "active": list(active), "losses": losses, "accuracy": accuracy}
            runs.append_metrics(self.out, line)
            self.progress(Progress(epoch, self.config.epochs, 0, len(self.batches), active, losses, accuracy))
        self._save(here)

    def _check_finite(self, epoch: int) -> None:
        """Stop before a step that went wrong is evaluated, or saved over the last good state."""
        wrong = [name for name, p in self.net.named_parameters() if not bool(torch.isfinite(p).all())]
        if wrong:
            raise Diverged(
                f"expected finite parameters, got others in {wrong[0]} at epoch {epoch}; the last saved state "
                f"is kept in {self.out / runs.STATE}: start anew with a smaller lr than {self.config.lr}"
            )

    @property
    def _averages(self) -> dict[str, torch.Tensor] | None:
        return None if self.average is None else self.average.tensors

    def _save(self, position: Position) -> None:
        self._check_finite(position.epoch)
        if self.main:
            save_state(self.out / runs.STATE, self.net, self.optimizer, self._averages, position)
        self.fabric.barrier()


def stop_on_signals() -> Callable[[], bool]:
    """Return a `stop` function that turns true at the first Ctrl-C or SIGTERM; for the command line."""
    caught: list[int] = []

    def handler(number: int, _frame: object) -> None:
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return lambda: bool(caught)


def _fabric(config: TrainConfig) -> Fabric:
    accelerator = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a CUDA device, got none that torch can see; use --device cpu")
    precision: Any = "bf16-mixed" if config.precision == "bf16" else "32-true"
    if dist.is_torchelastic_launched():
        import os

        local, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        strategy = DDPStrategy(find_unused_parameters=True, process_group_backend=None)
        fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy=strategy, precision=precision)
    else:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    fabric.launch()
    return fabric


def _check_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / runs.CONFIG).exists():
        raise InputError(
            f"expected a new or empty folder, or a run, got {out}, which holds something else; choose another"
        )
    if not resume:
        raise InputError(
            f"expected a new or empty folder, got {out}, which holds a run; resume it or choose another --out"
        )
    before, now = runs.read_info(out).training, _plain(config)
    changed = sorted(k for k in now if before.get(k) != now[k] and k not in ("save_every", "device"))
    if changed:
        name = changed[0]
        raise InputError(
            f"expected the choices of the run in {out} to resume it, got {name}={now[name]!r}, not {before.get(name)!r}"
        )
    if (out / runs.WEIGHTS).exists():
        raise InputError(f"expected an unfinished run to resume, got {out}, which has finished; evaluate or export it")


def _plain(config: TrainConfig) -> dict[str, Any]:
    import json

    return json.loads(json.dumps(asdict(config)))


def _check_dataset(dataset: Dataset) -> None:
    if len(dataset.classes) < 2 or len(dataset.train) < SMALLEST:
        raise InputError(
            f"expected at least 2 classes and {SMALLEST} training images, got {len(dataset.classes)} and "
            f"{len(dataset.train)}; add images"
        )


def _image_shape(dataset: Dataset) -> tuple[int, int, int]:
    if isinstance(dataset.train, Split):
        _, c, h, w = dataset.train.images.shape
        return c, h, w
    return 3, dataset.train.image_size, dataset.train.image_size


def _images(split: Any) -> torch.Tensor:
    from edgeq.data import batches

    return torch.cat([images for images, _ in batches(split, 256)])
