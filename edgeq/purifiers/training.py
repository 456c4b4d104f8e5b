"""Train a purifier, two towers or a shield.

Everything that the next step depends on is a function of the saved state and of (seed, epoch, batch), so a run that was
killed goes on from its last save and ends with the same bits on a CPU with the same number of threads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edgeq import runs
from edgeq.data import Augment, Dataset, ImageFiles, Split, TrainBatches, holdout, load
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.files import load_tensors, save_tensors
from edgeq.optimizer import learning_rate
from edgeq.purifiers.base import AbstractGuard, AbstractPurifier, Draw
from edgeq.purifiers.blocks import check_shape
from edgeq.purifiers.config import Method, PurifierConfig
from edgeq.purifiers.evaluate import clean_measures
from edgeq.purifiers.folders import PurifierInfo, check_folder, save_weights, write_info
from edgeq.purifiers.objective import AbstractObjective
from edgeq.purifiers.shield import Shield
from edgeq.purifiers.towers import Towers
from edgeq.training import Diverged, Interrupted

MONITOR_IMAGES = 500  # per epoch, of the test split
STATE_FILE = "state.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a training stands; `fidelity` (of a shield: accuracies) is filled once an epoch."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: dict[str, float]
    fidelity: dict[str, float | int] = field(default_factory=dict)


def train_purifier(
    config: PurifierConfig,
    *,
    out: str | Path,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    dataset: Dataset | None = None,
) -> AbstractGuard:
    """Train a purifier or a shield, write the run folder `out`, and return what was trained.

    Args:
        config: All choices.
        out: Run folder; must be new or empty unless `resume`.
        resume: Go on from the folder's saved state (or start, where there is none).
        progress: Called after every batch and every epoch.
        stop: Asked after every batch; True saves and raises `Interrupted`.
        dataset: Use this data instead of loading `config.data`.

    Raises:
        InputError: The folder, the data or the choices do not fit.
        Diverged: The loss is no longer finite; the last good state is kept.
    """
    out = Path(out)
    check_folder(out, config, resume=resume)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a CUDA device, got none that torch can see; use --device cpu")
    on = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    dataset = load(config.data, seed=0) if dataset is None else dataset
    forked = [torch.cuda.current_device()] if on == "cuda" else []
    with torch.random.fork_rng(devices=forked):  # the caller's random state is not ours to move
        trainer = _Trainer(
            config, out, torch.device(on), dataset, progress or (lambda _: None), stop or (lambda: False)
        )
        return trainer.run(resume)


class _Trainer:
    """The pieces of one run; `run` reads top to bottom."""

    def __init__(
        self,
        config: PurifierConfig,
        out: Path,
        device: torch.device,
        dataset: Dataset,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config, self.out, self.device, self.progress, self.stop = config, out, device, progress, stop
        shape = _image_shape(dataset.train)
        check_shape(shape)
        _check_classes(config.method, dataset)
        batch_size = min(config.batch_size, len(dataset.train))
        self.info = PurifierInfo(config, shape)
        self._seed("weights", 0)
        purifier = config.method.build(shape, batch_size)
        self.objective: AbstractObjective = config.method.objective(purifier, config.lr).to(device)
        test = dataset.test
        self.monitor = holdout(test, MONITOR_IMAGES, seed=0)[0] if len(test) > MONITOR_IMAGES else test
        self.batches = TrainBatches(
            dataset.train,
            batch_size=batch_size,
            seed=config.seed,
            augment=Augment(crop=0, flip=dataset.flip),
            device=device,
        )
        self.saved = time.monotonic()

    def run(self, resume: bool) -> AbstractGuard:
        """Train to the end."""
        epoch, start = self._load() if resume else (0, 0)
        write_info(self.out, self.info)
        for number in range(epoch, self.config.epochs):
            self._epoch(number, start)
            start = 0
        purifier = self.objective.purifier.eval()
        save_weights(self.out, purifier)
        (self.out / runs.STATE / STATE_FILE).unlink(missing_ok=True)
        if (self.out / runs.STATE).is_dir():
            (self.out / runs.STATE).rmdir()
        return purifier.requires_grad_(False)

    def _epoch(self, epoch: int, start: int) -> None:
        self.objective.train()
        losses: dict[str, float] = {}
        total = len(self.batches)
        for batch, (images, labels) in enumerate(self.batches.epoch(epoch, start), start=start):
            done = (epoch + batch / total) / self.config.epochs
            self._set_rate(done)
            self._seed("step", epoch, batch)
            draw = Draw((self.config.seed, epoch, batch), shared=False)
            losses = self.objective.step(images, labels, done=done, draw=draw)
            if not math.isfinite(losses["loss"]):
                raise self._diverged(f"a finite loss, got {losses['loss']} at epoch {epoch}, batch {batch}")
            self.progress(Progress(epoch, self.config.epochs, batch + 1, total, losses))
            if batch + 1 == total:
                break  # the end of an epoch is saved below, with its line of metrics
            stop = self.stop()
            if stop or time.monotonic() - self.saved > self.config.save_every:
                self._save(epoch, batch + 1)
            if stop:
                raise Interrupted
        self._check_finite(epoch)
        measured = clean_measures(self.objective.purifier, self.monitor)
        name = "fidelity" if isinstance(self.objective.purifier, AbstractPurifier) else "clean"
        runs.append_metrics(self.out, {"epoch": epoch, "losses": losses, name: measured})
        self.progress(Progress(epoch, self.config.epochs, 0, total, losses, measured))
        self._save(epoch + 1, 0)
        if self.stop() and epoch + 1 < self.config.epochs:
            raise Interrupted

    def _seed(self, *key: int | str) -> None:
        """Make what is random inside the package's codebook a function of the place in the run."""
        torch.manual_seed(generator("purifier training", self.config.seed, *key).initial_seed())

    def _set_rate(self, done: float) -> None:
        rate = learning_rate("cosine", done, warmup=min(1.0, 0.1 * self.config.epochs) / self.config.epochs)
        for optimizer in self.objective.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * rate * group.get("lr_factor", 1.0)

    def _check_finite(self, epoch: int) -> None:
        trained = ((name, p) for name, p in self.objective.named_parameters() if p.requires_grad)
        wrong = [name for name, p in trained if not bool(torch.isfinite(p).all())]
        if wrong:
            raise self._diverged(f"finite parameters, got others in {wrong[0]} at epoch {epoch}")

    def _diverged(self, what: str) -> Diverged:
        kept = f"the last saved state is kept in {self.out / runs.STATE}"
        return Diverged(f"expected {what}; {kept}: start anew with a smaller lr than {self.config.lr}")

    def _save(self, epoch: int, batch: int) -> None:
        self._check_finite(epoch)
        tensors: dict[str, Tensor] = {f"nets.{name}": t for name, t in self.objective.state_dict().items()}
        for player, optimizer in enumerate(self.objective.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{player}.{index}.{key}": t for key, t in state.items()}
        tensors["position"] = torch.tensor([epoch, batch])
        save_tensors(self.out / runs.STATE / STATE_FILE, tensors)
        self.saved = time.monotonic()

    def _load(self) -> tuple[int, int]:
        path = self.out / runs.STATE / STATE_FILE
        if not path.exists():
            return 0, 0
        tensors = load_tensors(path)
        try:
            self.objective.load_state_dict(_under(tensors, "nets."))
            for player, optimizer in enumerate(self.objective.optimizers):
                states: dict[int, dict[str, Tensor]] = {}
                for name, t in _under(tensors, f"optimizer.{player}.").items():
                    index, _, key = name.partition(".")
                    states.setdefault(int(index), {})[key] = t
                optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
            epoch, batch = tensors["position"].tolist()
            return int(epoch), int(batch)
        except (KeyError, RuntimeError, ValueError) as error:
            text = str(error).splitlines()[0]
            raise InputError(
                f"expected this run's state in {path}, got one that does not fit: {text}; start a new run"
            ) from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _check_classes(method: Method, dataset: Dataset) -> None:
    if isinstance(method, Towers | Shield) and method.classes != dataset.classes:
        raise InputError(
            f"expected data with the {len(method.classes)} classes whose names are read ({method.classes[0]} first), "
            f"got {len(dataset.classes)} in {dataset.name}; name the classes of the data"
        )


def _image_shape(split: Split | ImageFiles) -> tuple[int, int, int]:
    if isinstance(split, ImageFiles):
        return 3, split.image_size, split.image_size
    _, channels, height, width = split.images.shape
    return channels, height, width
