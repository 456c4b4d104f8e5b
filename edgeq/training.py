"""Train one shared backbone at all its widths: setup, data, model, loop, result.

The loop is the same for every defence; an objective (`edgeq.defenses`) turns a batch into losses. Everything that the
next step depends on is a function of the saved state and of (seed, epoch, batch), so a run that was killed goes on from
its last save and ends with the same bits, on a CPU with the same number of threads.

The last `deployed` fraction of the epochs trains in the deployed arithmetic: BatchNorm frozen and folded, multipliers
short, integers throughout. It recovers what folding and snapping cost.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from edgeq import calib, launch, runs
from edgeq.average import Average
from edgeq.config import TrainConfig as TrainConfig
from edgeq.config import plain
from edgeq.data import Augment, Dataset, ImageFiles, Split, TrainBatches, decoded, holdout, load
from edgeq.data.loader import Batch
from edgeq.data.seeds import generator
from edgeq.defenses import DEFENSES, Setting
from edgeq.defenses.base import Key
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.optimizer import learning_rate, make_optimizer, update
from edgeq.quant.bits import FLOAT_BITS
from edgeq.quant.network import MultiBitNet
from edgeq.state import Position, clear_state, load_state, save_state

CALIBRATION_IMAGES = 512
REFRESH_IMAGES, REFRESH_BYTES = 4096, 1 << 26  # for BatchNorm's last statistics
MONITOR_IMAGES = 1000  # per epoch, of the test split; the final figures use all of it


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
    launch.check_folder(out, config, resume)
    fabric = launch.fabric(config)
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
        launch.check_dataset(dataset)
        image_shape = launch.image_shape(dataset)
        self.info = runs.RunInfo(config.model, config.data, config.quant, dataset.classes, image_shape, plain(config))
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
        self.rest = rest
        self.batches = TrainBatches(
            rest,
            batch_size=launch.batch_size(config, len(rest), fabric.world_size),
            seed=config.seed,
            augment=Augment(crop=config.crop, flip=dataset.flip, cutout=config.cutout),
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            device=fabric.device,
        )
        self.frozen_from = config.epochs - round(config.deployed * config.epochs)
        self.optimizer = make_optimizer(self.net, lr=config.lr, weight_decay=config.weight_decay)
        self.average = Average(self.net, config.ema) if config.ema else None
        self.objective = DEFENSES[config.defense](self.net, config)
        self.objective.check(self.info)

    def run(self, resume: bool) -> MultiBitNet:
        """Train to the end."""
        position = Position(0, 0, ())
        if resume:
            position = load_state(self.out / runs.STATE, self.net, self.optimizer, self._averages) or position
        if isinstance(self.calibration, ImageFiles):
            decoded(self.calibration)  # a damaged image shows before anything is written
        if self.main:
            runs.write_info(self.out, self.info)
        wrapped = self.fabric.setup_module(self.objective)
        optimizer = self.fabric.setup_optimizers(self.optimizer)
        for epoch in range(position.epoch, self.config.epochs):
            started = position if epoch == position.epoch else Position(epoch, 0, position.entered)
            position = self._epoch(started, wrapped, optimizer)
        if self.average is not None:
            self.average.copy_to(self.net)
        if self.frozen_from >= self.config.epochs:
            self._refresh(self.net.bits)
        self.net.width.deployed = False
        self.net.eval()
        if self.main:
            runs.save_weights(self.out, self.net)
            clear_state(self.out / runs.STATE)
        return self.net

    def _epoch(self, started: Position, objective: nn.Module, optimizer: Any) -> Position:
        epoch, start = started.epoch, started.batch
        active = self.config.curriculum.active(self.net.bits, self.config.epochs, epoch, self.frozen_from)
        if epoch == 0 and start == 0 and FLOAT_BITS in active:
            # ranges are read from the float pass, whose statistics must fit the initial weights first
            calib.reestimate(self.net, decoded(self.calibration), bits=FLOAT_BITS)
        for bits in active:
            if bits not in started.entered and bits != FLOAT_BITS:
                calib.init_width(self.net, bits, decoded(self.calibration))
                if self.average is not None:
                    self.average.adopt(self.net, bits)
        if epoch == self.frozen_from and start == 0:
            self._refresh(active)
            if self.average is not None:
                self.average.adopt_statistics(self.net)
        self.objective.prepare(self._setting(epoch, active))
        self.net.train()
        self.net.width.deployed = epoch >= self.frozen_from
        saved = time.monotonic()
        sums = dict(started.losses)
        count = len(self.batches) * self.objective.turns.rounds(active)
        for batch, (images, labels) in enumerate(self._batches(epoch, start, count), start=start):
            self._set_rate(epoch + batch / count)
            self._seed(epoch, batch)
            losses = self._step(objective, optimizer, (images, labels, active, self._key(epoch, batch)))
            if self.average is not None:
                self.average.update(self.net, epoch * count + batch)
            if not math.isfinite(losses["loss"]):
                where = f"at epoch {epoch}, batch {batch}"
                raise Diverged(f"expected a finite loss, got {losses['loss']} {where}; {self._start_anew()}")
            for name, value in losses.items():
                total, number = sums.get(name, (0.0, 0))
                sums[name] = (total + value, number + 1)
            here = Position(epoch, batch + 1, active, sums)
            self.progress(Progress(epoch, self.config.epochs, batch + 1, count, active, losses))
            if batch + 1 == count:
                break  # the end of an epoch is saved below, with its line of metrics
            stop, due = self._agreed(self.stop(), time.monotonic() - saved > self.config.save_every)
            if stop or due:
                self._save(here)
                saved = time.monotonic()
            if stop:
                raise Interrupted
        here = Position(epoch + 1, 0, active)
        self._finish_epoch(Progress(epoch, self.config.epochs, 0, count, active, _means(sums)), here)
        if self._agreed(self.stop())[0] and here.epoch < self.config.epochs:
            raise Interrupted
        return here

    def _refresh(self, active: tuple[int, ...]) -> None:
        """Measure BatchNorm's statistics anew before they freeze: where widths take turns, theirs lag behind."""
        if not calib.has_own_norms(self.net) or self.objective.turns.all_at_once(active):
            return
        most = REFRESH_BYTES // math.prod(self.net.image_shape)
        images = self._some_images(max(CALIBRATION_IMAGES, min(most, REFRESH_IMAGES))).images
        for bits in active:
            calib.reestimate(self.net, images, bits=bits)

    def _batches(self, epoch: int, start: int, count: int) -> Iterator[Batch]:
        """Yield an epoch's batches from `start` on; every pass over the images has its own order and augmentation."""
        for turn in range(start // len(self.batches), count // len(self.batches)):
            yield from self.batches.epoch(epoch + turn * self.config.epochs, start % len(self.batches))
            start = 0

    def _step(self, objective: nn.Module, optimizer: Any, batch: tuple[Any, ...]) -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        losses = objective(*batch)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        (diverged,) = self._agreed(not math.isfinite(values["loss"]))
        if diverged:
            return {**values, "loss": math.nan}
        self.fabric.backward(losses["loss"])
        update(self.net, optimizer, clip=self.objective.clip)
        return values

    def _key(self, epoch: int, batch: int) -> Key:
        return self.config.seed, epoch, batch, self.fabric.global_rank

    def _seed(self, epoch: int, batch: int) -> None:
        """Make what is random inside the network (dropout) a function of the place in the run, like the images."""
        torch.manual_seed(generator("network", *self._key(epoch, batch)).initial_seed())

    def _setting(self, epoch: int, active: tuple[int, ...]) -> Setting:
        return Setting(
            epoch,
            self.config.epochs,
            self.out,
            self._some_images,
            active,
            main=self.main,
            wait=lambda: self.fabric.barrier(),
            interrupt=self._interrupt,
        )

    def _some_images(self, count: int) -> Split:
        part = self.rest if count >= len(self.rest) else holdout(self.rest, count, seed=1)[0]
        return Split(decoded(part).to(self.fabric.device), part.labels.to(self.fabric.device))

    def _interrupt(self) -> None:
        if self.fabric.world_size == 1 and self.stop():  # several processes stop together, after a batch
            raise Interrupted

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

    def _finish_epoch(self, done: Progress, here: Position) -> None:
        self._check_finite(done.epoch)
        if self.main:
            accuracy = {r.bits: r.accuracy for r in accuracies(self.net, self.monitor, bits=done.active)}
            line = {"epoch": done.epoch, "active": list(done.active), "losses": done.losses, "accuracy": accuracy}
            runs.append_metrics(self.out, line)
            self.progress(replace(done, accuracy=accuracy))
        self._save(here)

    def _check_finite(self, epoch: int) -> None:
        """Stop before a step that went wrong is evaluated, or saved over the last good state."""
        wrong = [name for name, p in self.net.named_parameters() if not bool(torch.isfinite(p).all())]
        if wrong:
            raise Diverged(
                f"expected finite parameters, got others in {wrong[0]} at epoch {epoch}; {self._start_anew()}"
            )

    def _start_anew(self) -> str:
        """Return what a user can do about a run that diverged."""
        folder = self.out / runs.STATE
        kept = f"the last good state is kept in {folder}: " if folder.exists() else ""
        return f"{kept}start anew with a smaller lr than {self.config.lr}"

    @property
    def _averages(self) -> dict[str, torch.Tensor] | None:
        return None if self.average is None else self.average.tensors

    def _save(self, position: Position) -> None:
        self._check_finite(position.epoch)
        if self.main:
            save_state(self.out / runs.STATE, self.net, self.optimizer, self._averages, position)
        self.fabric.barrier()


def _means(sums: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    return {name: total / number for name, (total, number) in sorted(sums.items())}
